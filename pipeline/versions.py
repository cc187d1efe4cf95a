"""What a result depends on besides its inputs: library versions and source code."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
from functools import cache
from importlib import metadata
from pathlib import Path

# Also where they are installed like any other package.
_OURS = ("models", "pipeline")


# A distribution that another one takes the place of.
_INSTEAD = {"onnxruntime": "onnxruntime-gpu"}


def libraries(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        if name not in _INSTEAD:
            raise
        return metadata.version(_INSTEAD[name])


def source_digest(*modules: str) -> str:
    """sha256 over the source of modules and of all that they import, but for installed packages.

    A changed line in a file that a stage or a recipe uses makes its cached results stale; a changed
    neighbour that it does not use does not. Installed packages count by their version instead.
    """
    files: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = None if name in files or _installed(name.partition(".")[0]) else _source(name)
        if path is not None:
            files[name] = path.read_bytes()
            waiting += _imports(name, path)
    total = hashlib.sha256()
    for name, source in sorted(files.items()):
        total.update(name.encode() + b"\0" + source + b"\0")
    return total.hexdigest()


def folder_digest(package: str, name: str) -> str:
    """sha256 over the files of a folder that lies inside a package."""
    total = hashlib.sha256()
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted((Path(place) / name).iterdir()):
            if path.is_file():  # pip leaves byte code of what is Python in a folder of its own
                total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


@cache
def _installed(package: str) -> bool:
    """Whether a top-level package came with Python or was installed: not ours, nor the user's."""
    if package in _OURS:
        return False
    spec = importlib.util.find_spec(package)
    if spec is None:
        return True
    # A folder without __init__.py has no origin, only the places of its parts.
    found = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
    places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(path and not any(Path(path).is_relative_to(p) for p in places) for path in found)


@cache
def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports(module: str, path: Path) -> list[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(source, package) if node.level else source
            # `from package import module` names a module too.
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names
