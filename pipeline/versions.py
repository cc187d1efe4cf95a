"""What a result depends on besides its inputs: library versions and source code."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from importlib import metadata
from pathlib import Path


def libraries(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions."""
    return {name: metadata.version(name) for name in names}


def source_digest(*modules: str) -> str:
    """sha256 over the source of modules and of all that they import from their own packages.

    A changed line in a file that a stage uses makes its cached results stale; a changed
    neighbour that it does not use does not.
    """
    files: dict[str, bytes] = {}
    packages = {"models", "pipeline"} | {module.partition(".")[0] for module in modules}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in files or path is None:
            continue
        files[name] = path.read_bytes()
        for imported in _imports(path):
            if imported.partition(".")[0] in packages:
                waiting.append(imported)
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
            total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


@cache
def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            # `from package import module`
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
