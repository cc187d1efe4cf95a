"""What a fault is, what it is put into, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from models.codec import Codec
from models.signature import Signature


@dataclass(frozen=True)
class Subject:
    """What is known of the graph that a fault is put into."""

    signature: Signature
    codec: Codec
    other: onnx.ModelProto | None  # the same architecture with other weights (another seed)


@dataclass(frozen=True)
class Mutant:
    """A graph with one fault in it."""

    fault: str  # Fault.name
    where: str  # the node, tensor or axis that was changed
    graph: onnx.ModelProto
    equivalent: str | None = None  # the argument why it can answer nothing else, if there is one


@dataclass(frozen=True)
class Change:
    """Where a graph was changed in place, and why that cannot alter an answer, if it cannot."""

    where: str
    equivalent: str | None = None


# Changes the graph in place; None where the graph has no place for it.
Put = Callable[[onnx.ModelProto, Subject, np.random.Generator], Change | None]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: its name, where it comes from in practice, and how it is made."""

    name: str
    says: str
    put: Put

    def make(
        self, graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
    ) -> Mutant | None:
        """A copy of the graph with this fault; None when the graph has no place for it."""
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        change = self.put(copy, subject, rng)
        del copy.graph.value_info[:]  # shapes may be others now
        return change and Mutant(self.name, change.where, copy, change.equivalent)
