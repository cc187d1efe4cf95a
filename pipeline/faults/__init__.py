"""Faults: what goes wrong between a module and an engine, put into a real graph on purpose."""

from __future__ import annotations

import numpy as np
import onnx

from pipeline.faults.axes import AXIS_FAULTS
from pipeline.faults.fault import Fault, Mutant, Subject
from pipeline.faults.precision import PRECISION_FAULTS
from pipeline.faults.sequences import SEQUENCE_FAULTS
from pipeline.faults.structure import STRUCTURE_FAULTS
from pipeline.faults.weights import WEIGHT_FAULTS
from pipeline.faults.windows import WINDOW_FAULTS

__all__ = ["FAULTS", "Fault", "Mutant", "Subject", "mutate"]

FAULTS: tuple[Fault, ...] = (
    *WEIGHT_FAULTS,
    *PRECISION_FAULTS,
    *WINDOW_FAULTS,
    *AXIS_FAULTS,
    *STRUCTURE_FAULTS,
    *SEQUENCE_FAULTS,
)


def mutate(graph: onnx.ModelProto, fault: Fault, subject: Subject, seed: int) -> Mutant | None:
    """A copy of the graph with one fault; None when the graph has no place for it.

    The same graph, fault and seed give the same mutant.
    """
    return fault.make(graph, subject, np.random.default_rng([seed, *fault.name.encode()]))
