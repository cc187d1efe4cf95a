"""Distribution: our code as a wheel of what serves, and the packages that it needs, pinned."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from models.errors import BuildFailed

NAME = "fucina"
_OURS = ("models", "pipeline", "serving")
# The oldest time that a zip can hold: the same files make the same wheel.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """A requirement of a served bundle: pinned and of so many bytes where it is installed here."""

    name: str
    requirement: str
    bytes: int | None = None

    @property
    def pinned(self) -> bool:
        return self.bytes is not None


def packages(extras: Iterable[str]) -> list[Package]:
    """All that `fucina` with these extras needs, at the versions installed here.

    What is not installed, such as what is for a device that this machine lacks, keeps its range,
    and what it needs in turn is not known.
    """
    found: dict[str, Package] = {}
    waiting = [(NAME, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one = name, wanted = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for requirement in _requirements(name, wanted):
            needed = canonicalize_name(requirement.name)
            try:
                found[needed] = _installed(needed)
            except metadata.PackageNotFoundError:
                text = f"{requirement.name}{requirement.specifier}"
                found[needed] = Package(needed, text)
            else:
                waiting.append((needed, frozenset(requirement.extras)))
    return [found[name] for name in sorted(found)]


def _requirements(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What a distribution needs on this platform, with these extras."""
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _installed(name: str) -> Package:
    distribution = metadata.distribution(name)
    paths = [Path(str(file.locate())) for file in distribution.files or []]
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return Package(name, f"{name}=={distribution.version}", size)


def write_wheel(modules: Iterable[str], needed: Iterable[Package], folder: Path) -> Path:
    """Our modules that these need, as a wheel in `folder`.

    Its version ends in a digest of its content, so that pip takes it for another than any with
    the same number. What only a module needs that cannot be imported with these packages is left
    out with it, for it builds what is served. Raises `BuildFailed` where that is one of `modules`.
    """
    wanted = list(modules)
    files = dict(_files(wanted, [package.name for package in needed]))
    for module in wanted:
        if f"{module.replace('.', '/')}.py" not in files:
            raise BuildFailed(
                f"{module} cannot be imported with the packages that would be installed",
                fix="install the extras that it needs here",
            )
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(name.encode() + b"\0" + data + b"\0")
    version = f"{metadata.version(NAME)}+s{digest.hexdigest()[:12]}"
    info = f"{NAME}-{version}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n"
        f"Summary: What of Fucina serves one kind of bundle.\n"
    ).encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ).encode()
    record = [f"{name},sha256={_hash(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    wheel = folder / f"{NAME}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return wheel


def _hash(data: bytes) -> str:
    """As a wheel's RECORD spells it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _files(modules: Iterable[str], needed: Iterable[str]) -> list[tuple[str, bytes]]:
    """By its path in the wheel, each module and what lies beside those that serve."""
    provided = {*sys.stdlib_module_names, *_OURS}.union(*map(_provided, needed))
    found: dict[str, bytes] = {}
    waiting, seen = list(modules), {""}
    while waiting:
        module = waiting.pop()
        place = None if module in seen else _place(module)
        seen.add(module)
        if place is None:
            continue
        root, path = place
        tree = ast.parse(path.read_bytes())
        if not {name.partition(".")[0] for name in _imports(tree.body)} <= provided:
            continue
        found[path.relative_to(root).as_posix()] = path.read_bytes()
        # A package runs before what lies in it.
        waiting += [*_imports(ast.walk(tree)), module.rpartition(".")[0]]
        if module.partition(".")[0] == "serving" and path.name == "__init__.py":
            found |= {
                file.relative_to(root).as_posix(): file.read_bytes()
                for file in path.parent.iterdir()
                if file.is_file() and file.suffix not in (".py", ".pyc")
            }
    return sorted(found.items())


def _provided(distribution: str) -> set[str]:
    """The top-level modules of a distribution, nothing of one that is not installed."""
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        return set()
    return {file.parts[0].partition(".")[0] for file in files}


def _place(module: str) -> tuple[Path, Path] | None:
    """Where our packages lie, and there the module; None for others. Nothing is imported."""
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top) if top in _OURS else None
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parents[1]
    path = root.joinpath(*module.split("."))
    places = (path.with_suffix(".py"), path / "__init__.py")
    return next(((root, place) for place in places if place.is_file()), None)


def _imports(nodes: Iterable[ast.AST]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module too.
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
