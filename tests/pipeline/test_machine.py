"""The machine: facts against psutil and ONNX Runtime's own list, and a driver that is played."""

# ruff: noqa: N802  (the functions of cuda.h)

from __future__ import annotations

import ctypes
import ctypes.util
import tomllib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import psutil
import pytest
from packaging.specifiers import SpecifierSet

from pipeline.machine import (
    Driver,
    Gpu,
    cuda_libraries,
    declared,
    driver,
    host,
    libraries,
    missing_gpu,
)

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
CARDS = (("Card A", uuid.UUID(int=1), (8, 9), 24 << 30), ("Card B", uuid.UUID(int=2), (9, 0), 80))


class PlayedDriver:
    """What the driver's functions do by their documentation, for cards that are not there."""

    def __init__(self, cards: tuple[Any, ...] = CARDS, error: int = 0) -> None:
        self.cards = cards
        self.cuInit = lambda flags: error
        self.cuDriverGetVersion = _gives(13010)
        self.cuDeviceGetCount = _gives(len(cards))

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = self.cards[device.value][0].encode()
        return 0

    def cuDeviceGetUuid_v2(self, own: Any, device: Any) -> int:
        own._obj[:] = self.cards[device.value][1].bytes
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        size._obj.value = self.cards[device.value][3]
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
        number._obj.value = self.cards[device.value][2][{75: 0, 76: 1}[attribute]]
        return 0


def _gives(value: int) -> Callable[[Any], int]:
    def call(number: Any) -> int:
        number._obj.value = value
        return 0

    return call


def test_gpus_are_what_the_driver_says_of_each() -> None:
    found = driver(lambda name: PlayedDriver())
    assert found.problem == ""
    assert found.cuda == "13.1"
    # No management library knows of cards that are not there, so nobody tells their free memory.
    assert found.gpus == (
        Gpu("Card A", str(uuid.UUID(int=1)), "8.9", 24 << 30, None),
        Gpu("Card B", str(uuid.UUID(int=2)), "9.0", 80, None),
    )
    assert missing_gpu(found) == ()


def absent(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (absent, "no NVIDIA driver: libcuda.so.1: cannot open shared object file"),
        (lambda name: PlayedDriver(cards=()), "NVIDIA's driver shows no GPU to this process"),
        (
            lambda name: PlayedDriver(error=100),
            "cuInit says no CUDA-capable device is detected (100)",
        ),
    ],
)
def test_a_driver_that_is_of_no_use_says_why_and_what_to_do(
    load: Callable[[str], Any], problem: str
) -> None:
    found = driver(load)
    assert problem in found.problem
    assert found.gpus == ()
    (line,) = missing_gpu(found)
    assert line.startswith(found.problem)
    assert "install NVIDIA's driver" in line
    assert missing_gpu(Driver()) == ()


@pytest.mark.parametrize("version", ["12.8", "13.0"])
def test_the_libraries_are_those_that_onnxruntime_loads(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "cuda_version", version)
    reference = onnxruntime._get_nvidia_dll_paths(is_windows=False)  # type: ignore[attr-defined]
    assert set(cuda_libraries(version.partition(".")[0])) == {path[-1] for path in reference}


def test_a_library_is_taken_where_pip_puts_it_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ctypes.util.find_library("m")
    assert name
    (system,) = libraries([name])
    assert (system.place, system.problem) == (name, "")
    place = tmp_path / "nvidia" / "some" / "lib" / name
    place.parent.mkdir(parents=True)
    tried: list[str] = []
    place.touch()
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = libraries([name], tried.append)
    assert found.place == str(place)
    assert tried == [str(place)]
    # One that does not load there may still load elsewhere: an empty file is no library.
    (second,) = libraries([name])
    assert second.place == name


def test_a_library_that_does_not_load_says_why() -> None:
    (lost,) = libraries(["libnot-there.so.1"])
    assert lost.place is None
    assert "libnot-there.so.1" in lost.problem


def test_memory_and_cores_are_what_psutil_says() -> None:
    facts = host()
    assert facts["memory"] == psutil.virtual_memory().total
    assert facts["cores"] == len(psutil.Process().cpu_affinity())
    assert 0 < facts["memory_available"] <= facts["memory"]


def test_every_declared_range_is_one_that_pip_understands() -> None:
    ranges = declared()
    assert {"numpy", "onnxruntime", "onnxruntime-gpu", "torch"} <= ranges.keys()
    assert all(SpecifierSet(text) for text in ranges.values() if text)
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    (wanted,) = (one for one in extras["gpu"] if one.startswith("cuda-bindings"))
    assert SpecifierSet(ranges["cuda-bindings"]) == SpecifierSet(
        wanted.removeprefix("cuda-bindings")
    )
