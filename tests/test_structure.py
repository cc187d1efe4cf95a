"""The repository's own rules: who may import whom, what stays out of a core and of a server."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from models import errors
from models.errors import FucinaError

ROOT = Path(__file__).parent.parent

# What each folder may import of ours.
MAY_IMPORT = {
    "models": ("models",),
    "pipeline": ("models", "pipeline"),
    "serving": (
        "models.signature", "models.errors", "models.codec", "models.recurrence",
        "pipeline.blessed", "pipeline.bundle", "pipeline.backends", "pipeline.cases",
        "pipeline.compare", "pipeline.fitting", "pipeline.rebuild", "pipeline.values", "serving",
    ),
    "flows": ("models", "pipeline", "flows", "serving.launch", "serving.opening", "serving.ask",
        "serving.client", "serving.keys", "serving.tls", "serving.tuning"),
}  # fmt: skip
# Torch ends where the graph begins.
MAY_IMPORT_TORCH = (
    "models/", "pipeline/batches.py", "pipeline/checkpoint.py", "pipeline/train.py",
    "pipeline/distributed.py", "pipeline/recording.py", "pipeline/floors.py",
    "pipeline/quantised.py", "pipeline/export.py", "flows/",
)  # fmt: skip
OURS = tuple(MAY_IMPORT)
SERVING_NEVER = ("torch", "onnx", "onnxscript", "prefect", "sklearn", "matplotlib", "gymnasium")


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    assert sources(folder)
    for path in sources(folder):
        for name in imports(path):
            if name.partition(".")[0] in OURS:
                allowed = any(name == a or name.startswith(f"{a}.") for a in MAY_IMPORT[folder])
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_torch_stays_in_its_places() -> None:
    for folder in OURS:
        for path in sources(folder):
            if any(name.partition(".")[0] == "torch" for name in imports(path)):
                assert str(path.relative_to(ROOT)).startswith(MAY_IMPORT_TORCH), path


def test_no_stage_knows_an_architectures_name() -> None:
    from models.zoo import ZOO

    for folder in ("pipeline", "serving", "flows"):
        for path in sources(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert node.value not in ZOO, f"{path.relative_to(ROOT)} names {node.value}"


def test_files_stay_short_and_well_named() -> None:
    for folder in OURS:
        for path in sources(folder):
            assert len(path.read_text().splitlines()) <= 400, path
            assert path.stem not in {"utils", "helpers", "manager", "base"}, path


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {canonical(line) for line in [*project["dependencies"], *extras]}
    known = metadata.packages_distributions()
    for folder in (*OURS, "tests"):
        for path in sources(folder):
            for top in {name.partition(".")[0] for name in imports(path)}:
                if top not in sys.stdlib_module_names and top not in (*OURS, "deploy", "tests"):
                    names = {canonical(name) for name in known.get(top, [top])}
                    assert names & declared, f"{path.relative_to(ROOT)} imports {top}"


def canonical(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def blocked(packages: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run code where importing any of these packages fails, as if they were not installed."""
    guard = (
        "import sys\n"
        "class Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {packages!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Guard())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", guard + code], capture_output=True, text=True, check=False, cwd=ROOT
    )


EXTRAS = (
    "torch", "onnx", "onnxscript", "onnxruntime", "sklearn", "bentoml", "grpc", "orjson", "PIL",
    "prefect", "sqlalchemy", "fastapi", "matplotlib", "jinja2", "tensorrt", "starlette",
    "gymnasium",
)  # fmt: skip


def test_the_core_imports_without_any_extra() -> None:
    done = blocked(
        EXTRAS,
        "import models.signature, models.errors, models.codec, models.recipe, models.datasets\n"
        "import pipeline.bundle, pipeline.cases, pipeline.compare, pipeline.values\n"
        "import pipeline.verify, pipeline.optimize, pipeline.backends, flows.cli\n",
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_backend_library_is_one_line() -> None:
    done = blocked(
        ("onnxruntime",),
        "from pipeline.backends import backend, target\n"
        "from models.errors import TargetUnavailable\n"
        "try: backend(target('ort-cpu-fp32'))\n"
        "except TargetUnavailable as error: print(error)\n",
    )
    assert done.stdout == (
        "target 'ort-cpu-fp32' needs the package 'onnxruntime': got not installed; "
        "pip install 'fucina[cpu]'\n"
    )


@pytest.mark.parametrize("package", ["torch", "prefect", "grpc"])
def test_a_command_that_lacks_its_extra_says_so_in_one_line(package: str) -> None:
    command = {"torch": "list", "prefect": "run mlp", "grpc": "serve a/bundle"}[package]
    done = blocked(
        (package,), f"sys.argv[1:] = {command.split()!r}\nfrom flows.cli import main; main()"
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        f"fucina: this command needs the package {package!r}: got not installed; "
        "pip install 'fucina[all]'"
    )


def test_serving_imports_without_what_trains_and_schedules() -> None:
    modules = ", ".join(
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in sources("serving")
    ).replace(".__init__", "")
    done = blocked(SERVING_NEVER, f"import {modules}")
    assert done.returncode == 0, done.stderr


def test_the_serve_command_needs_nothing_that_trains_and_schedules() -> None:
    done = blocked(
        SERVING_NEVER,
        "sys.argv[1:] = ['serve', 'no/bundle']\nfrom flows.cli import main; main()",
    )
    assert done.stderr.startswith("fucina: no/bundle is not a bundle"), done.stderr


def test_the_picture_of_the_errors_is_the_tree_of_the_classes() -> None:
    def picture(kind: type[Exception], indent: str = "") -> list[str]:
        lines = []
        children = [c for c in kind.__subclasses__() if c.__module__ == errors.__name__]
        for index, child in enumerate(children):
            last = index == len(children) - 1
            lines.append(f"{indent}{'└── ' if last else '├── '}{child.__name__}")
            lines += picture(child, indent + ("    " if last else "│   "))
        return lines

    drawn = (errors.__doc__ or "").splitlines()[2:]
    expected = [FucinaError.__name__, *picture(FucinaError)]
    stripped = [line[: len(name)] for line, name in zip(drawn, expected, strict=False)]
    assert stripped == expected
    assert len([line for line in drawn if line]) == len(expected)
