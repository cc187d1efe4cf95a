"""The machine as it is found: processor, memory, disk, NVIDIA's driver, GPUs and libraries."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from models.errors import first_line

Load = Callable[[str], Any]  # opens a shared library, or raises OSError

# Numbers of cuda.h.
_MAJOR, _MINOR = 75, 76

_GET_DRIVER = (
    "install NVIDIA's driver, and start a container with the GPU (docker run --gpus all); "
    "`nvidia-smi` must list it"
)


@dataclass(frozen=True)
class Gpu:
    """A GPU that CUDA shows to this process; memory in bytes, None where nobody told."""

    name: str
    uuid: str
    compute_capability: str
    memory: int
    free: int | None = None


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: its version, the newest CUDA that it runs, its GPUs, or what is wrong."""

    version: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Library:
    """A shared library, the file that was loaded or else why none was."""

    name: str
    place: str | None
    problem: str = ""


def host() -> dict[str, Any]:
    """Processor, cores this process may use, memory and free disk in bytes, system and Python."""
    memory = dict(_meminfo())
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory": memory.get("MemTotal"),
        "memory_available": memory.get("MemAvailable"),
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def declared() -> dict[str, str]:
    """The versions that Fucina takes of each package that it declares, as pip writes a range."""
    try:
        lines = metadata.requires("fucina") or ()
    except metadata.PackageNotFoundError:  # runs from its sources
        lines = ()
    # Of several extras the first counts: what the tests want of a package is declared last.
    found = (re.match(r"([\w.-]+)(?:\[[^]]*])?([^;]*)", line) for line in reversed(lines))
    return {one[1]: one[2].strip() for one in found if one}


def driver(load: Load = ctypes.CDLL) -> Driver:
    """Ask the driver itself, so that nothing has to be installed. Makes no context on any GPU."""
    try:
        cuda = load("libcuda.so.1")
    except OSError as error:
        return Driver(problem=f"no NVIDIA driver: {first_line(error)}")
    number = ctypes.c_int()
    version = None
    try:
        _call(cuda, "cuDriverGetVersion", ctypes.byref(number))
        version = f"{number.value // 1000}.{number.value % 1000 // 10}"
        _call(cuda, "cuInit", 0)
        _call(cuda, "cuDeviceGetCount", ctypes.byref(number))
        gpus = [_gpu(cuda, index) for index in range(number.value)]
    except OSError as error:
        return Driver(cuda=version, problem=f"NVIDIA's driver does not work: {error}")
    if not gpus:
        return Driver(cuda=version, problem="NVIDIA's driver shows no GPU to this process")
    said, free = _management([gpu.uuid for gpu in gpus])
    return Driver(
        said, version, tuple(Gpu(**{**vars(gpu), "free": free.get(gpu.uuid)}) for gpu in gpus)
    )


def gpu() -> dict[str, str]:
    """The GPU that engines run on, the first that CUDA shows to this process; nothing if none.

    Keys are `gpu`, `compute_capability`, and as far as they are known `cuda` and `driver`.
    """
    found = driver()
    return {
        key: value
        for one in found.gpus[:1]
        for key, value in (
            ("gpu", one.name), ("compute_capability", one.compute_capability),
            ("cuda", found.cuda), ("driver", found.version),
        )
        if value
    }  # fmt: skip


def missing_gpu(found: Driver) -> tuple[str, ...]:
    """What lacks before anything runs on a GPU, and how to get it."""
    return (f"{found.problem}; {_GET_DRIVER}",) if found.problem else ()


def cuda_libraries(major: str) -> tuple[str, ...]:
    """Libraries of a CUDA release, and the cuDNN beside it, that ONNX Runtime needs on Linux."""
    fft = "12" if int(major) >= 13 else "11"
    own = ("libcudart", "libcublasLt", "libcublas", "libnvrtc")
    return (*(f"{n}.so.{major}" for n in own), f"libcufft.so.{fft}", "libcurand.so.10",
            "libcudnn.so.9")  # fmt: skip


def onnxruntime_cuda() -> str:
    """The CUDA release that the ONNX Runtime here is built for; else that of the next to come."""
    try:
        built = importlib.import_module("onnxruntime").cuda_version
    except (ImportError, AttributeError):
        built = ""
    return (built or "13").partition(".")[0]


def libraries(names: Iterable[str], load: Load = ctypes.CDLL) -> tuple[Library, ...]:
    """Load shared libraries, in this order, from where pip puts them or where the system does.

    What is loaded stays so, which is how a library finds those it needs that pip put elsewhere.
    """
    return tuple(_library(name, load) for name in names)


def _library(name: str, load: Load) -> Library:
    found = [path for folder in sys.path for path in Path(folder).glob(f"nvidia/*/lib/{name}")]
    problem = ""
    for place in (*map(str, found), name):
        try:
            load(place)
            return Library(name, place)
        except OSError as error:
            problem = first_line(error)
    return Library(name, None, problem)


def _call(cuda: Any, name: str, *arguments: Any) -> None:
    if code := getattr(cuda, name)(*arguments):
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        raise OSError(f"{name} says {(text.value or b'unknown error').decode()} ({code})")


def _gpu(cuda: Any, index: int) -> Gpu:
    device, number, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name, own = ctypes.create_string_buffer(256), (ctypes.c_ubyte * 16)()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, len(name), device)
    _call(cuda, "cuDeviceGetUuid_v2", ctypes.byref(own), device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    return Gpu(
        name.value.decode(), str(uuid.UUID(bytes=bytes(own))), ".".join(capability), size.value
    )


def _management(uuids: list[str]) -> tuple[str | None, dict[str, int]]:
    """The driver's version and free bytes by GPU, as far as anybody tells."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return _smi()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return _smi()
    try:
        free = {}
        for one in uuids:
            for kind in ("GPU", "MIG"):  # a whole one or a slice; CUDA does not say
                try:
                    handle = pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{one}")
                    free[one] = int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
                    break
                except pynvml.NVMLError:
                    continue
        return str(pynvml.nvmlSystemGetDriverVersion()), free
    except pynvml.NVMLError:
        return None, {}
    finally:
        pynvml.nvmlShutdown()


def _smi() -> tuple[str | None, dict[str, int]]:
    ask = ["--query-gpu=driver_version,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            ["nvidia-smi", *ask], capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None, {}
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line]
    free = {
        row[1].removeprefix("GPU-"): int(row[2]) << 20
        for row in rows
        if len(row) == 3 and row[2].isdigit()
    }
    return (rows[0][0] if rows else None), free


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _meminfo() -> Iterator[tuple[str, int]]:
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            yield name, int(rest.split()[0]) << 10
