"""TensorRT in whichever package is installed: `tensorrt` 10 or 11, or `tensorrt_rtx`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from models.errors import TargetUnavailable
from pipeline.machine import driver, missing_gpu

# The first that is installed is taken. The full one is tuned on the GPU it builds for; the other
# compiles for any GPU, also where there is none.
PACKAGES = ("tensorrt", "tensorrt_rtx")

_MAJORS = {"tensorrt": (10, 11), "tensorrt_rtx": (1,)}
_INSTALL = "pip install 'fucina[gpu]', or to build without a GPU pip install tensorrt-rtx"


@cache
def library() -> ModuleType:
    """The package. Raises `TargetUnavailable` with why none can be used, and what to install."""
    why = "not installed"
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            found = importlib.import_module(name)
        except Exception as error:  # of a package without its libraries, what the loader says
            why = f"{name}: {error}"
            continue
        major = int(found.__version__.partition(".")[0])
        if major in _MAJORS[name]:
            return found
        why = f"{name} {found.__version__}"
    raise TargetUnavailable(
        "TensorRT cannot be used", got=why, expected="tensorrt 10 or 11, or tensorrt_rtx 1",
        fix=_INSTALL,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """The package by its name, and its version."""
    trt = library()
    return {trt.__name__: trt.__version__}


def word(dtype: object) -> str:
    """A DataType in the words of `Target.precision`, else in lower case, such as `int64`."""
    name = str(getattr(dtype, "name", dtype))
    return {"FLOAT": "fp32", "HALF": "fp16"}.get(name, name.lower())


def has(enum: str, member: str) -> bool:
    """Whether this version has a member of an enum, such as `DataType.FP8`."""
    return hasattr(getattr(library(), enum), member)


def flags(enum: Any, *members: str) -> int:
    """Bits of those members that this version has: what it always does, it no longer names."""
    return sum(1 << int(getattr(enum, name)) for name in members if hasattr(enum, name))


def make_log() -> Any:
    """A logger that keeps what goes wrong, in `said`, and prints nothing."""
    trt = library()

    class Log(trt.ILogger):  # the interface is a class of theirs
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: object, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.said.append(msg)

    return Log()


def complaint(log: Any, default: str) -> str:
    """The first thing that a logger heard, in one line."""
    return " ".join(log.said[0].split())[:300] if log.said else default


def context_maker(engine: Any, trt: Any) -> Callable[[], Any]:
    """What makes execution contexts of an engine, None where it cannot; they get their memory.

    TensorRT for RTX compiles kernels for each new shape while it runs, and goes over to them when
    they are done. What is certified is to stay what it is, so here it takes those for all shapes,
    compiled once for all contexts.
    """
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    kernels = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if kernels is None:
        return lambda: engine.create_execution_context(strategy)
    settings = engine.create_runtime_config()
    settings.set_execution_context_allocation_strategy(strategy)
    settings.dynamic_shapes_kernel_specialization_strategy = kernels.NONE
    settings.set_runtime_cache(settings.create_runtime_cache())
    return lambda: engine.create_execution_context(settings)


def missing_to_run() -> tuple[str, ...]:
    """What lacks to run a plan, each with how to get it; to build one takes no GPU."""
    if importlib.util.find_spec("cuda") is None:
        return ("the package 'cuda-bindings' is not installed: pip install 'fucina[gpu]'",
                *missing_gpu(driver()))  # fmt: skip
    return missing_gpu(driver())
