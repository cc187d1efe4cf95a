"""Every name of TensorRT that is used is in each package that the one code path serves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.backends import trt, trt_library

PUBLISHED = Path(__file__).parent / "tensorrt_names"
SOURCES = sorted(Path(trt.__file__).parent.glob("trt*.py"))

# What variables hold, here and with an underscore before.
HELD = {
    "builder": "Builder", "config": "IBuilderConfig", "context": "IExecutionContext",
    "engine": "ICudaEngine", "first": "ParserError", "inspector": "EngineInspector",
    "layer": "ILayer", "network": "INetworkDefinition", "parser": "OnnxParser",
    "runtime": "Runtime", "settings": "IRuntimeConfig",
}  # fmt: skip
# What is used where there is a kernel strategy to set, as TensorRT for RTX has one.
RTX_ALONE = {
    "IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}  # fmt: skip
# What a version may lack is given to `flags` and `has` as text, and so is not looked for.


def published(path: Path) -> dict[str, set[str]]:
    rows = [line.partition(":") for line in path.read_text().splitlines() if line[0] != "#"]
    return {name: set(members.split()) for name, _, members in rows}


def live() -> dict[str, set[str]]:
    package = pytest.importorskip("tensorrt_rtx")
    return {name: set(dir(getattr(package, name))) for name in dir(package)}


def used(path: Path) -> Iterator[tuple[str, str]]:
    """A class and a member of it, or a name of the package and nothing."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        chain = ast.unparse(node).split(".")
        if chain[:1] == ["self"] and len(chain) > 1:
            chain = [chain[1].lstrip("_"), *chain[2:]]
        if not all(part.isidentifier() and part[:2] != "__" for part in chain):
            continue
        match chain:
            case ["trt", name]:
                yield name, ""
            case ["trt", name, member, *_]:
                yield name, member
            case [held, member] if held in HELD and member != "get":  # which a dict has
                yield HELD[held], member


def lacking(names: dict[str, set[str]], path: Path) -> list[str]:
    return sorted(
        {
            f"{name}.{member}"
            for name, member in used(path)
            if name not in names or (member and member not in names[name])
        }
    )


@pytest.mark.parametrize("version", sorted(PUBLISHED.glob("*.txt")), ids=lambda path: path.stem)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_published_binding_has_every_name(version: Path, path: Path) -> None:
    assert set(lacking(published(version), path)) - RTX_ALONE == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_installed_package_has_every_name(path: Path) -> None:
    assert lacking(live(), path) == []


def test_what_rtx_has_alone_is_used_behind_what_it_has_alone() -> None:
    everything = [
        name for path in SOURCES for name in lacking(published(min(PUBLISHED.glob("11*"))), path)
    ]
    assert set(everything) == RTX_ALONE
    kernels = "DynamicShapesKernelSpecializationStrategy"
    assert "NONE" in live()[kernels]
    assert not any(kernels in published(version) for version in PUBLISHED.glob("*.txt"))


def test_names_are_found_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    """The laws above see what the builder uses, and would see a name that is none."""
    found = {f"{name}.{member}" for path in SOURCES for name, member in used(path)}
    assert found >= {
        "Builder.build_serialized_network", "BuilderFlag.TF32", "IBuilderConfig.set_timing_cache",
        "INetworkDefinition.get_layer", "MemoryPoolType.WORKSPACE", "ParserError.node_operator",
        "ProfilingVerbosity.DETAILED",
    }  # fmt: skip
    wrong = tmp_path / "wrong.py"
    wrong.write_text("config.set_flag(trt.BuilderFlag.FP16)\nnetwork.get_layers()\ntrt.Engine()\n")
    (newest,) = PUBLISHED.glob("11.*.txt")
    expected = ["BuilderFlag.FP16", "Engine.", "INetworkDefinition.get_layers"]
    assert lacking(published(newest), wrong) == expected


def test_what_a_version_may_lack_is_asked_for() -> None:
    assert trt_library.flags(type("Flag", (), {"ONE": 0, "THREE": 2}), "ONE", "TWO", "THREE") == 5
    assert (
        "STRONGLY_TYPED" in published(PUBLISHED / "10.16.1.11.txt")["NetworkDefinitionCreationFlag"]
    )
