"""What an agent sees, checked, and which action it takes; what a model of control must answer."""

from __future__ import annotations

from typing import Any

from models.codec import Actions
from models.errors import BadInput
from models.signature import Arrays, Signature
from serving.tensors import check_finite, from_json


def acting_problem(actions: Actions, signature: Signature) -> tuple[str, object, object] | None:
    """Why `/act` could not answer for such a model: what, got and expected; None where it can."""
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    seen, values = inputs.get(actions.observation), outputs.get(actions.values)
    if seen is None or len(inputs) != 1 or signature.batch is None:
        wanted = f"one input {actions.observation!r} [batch, ...]"
        return "acts on an observation", ", ".join(map(str, signature.inputs)), wanted
    size = len(actions.names)
    if values is None or not values.floating or values.shape != (signature.batch, size):
        return f"names {size} actions", values, f"a floating output {actions.values!r} of as many"
    if not size or len(set(actions.names)) != size:
        return "names its actions", ", ".join(actions.names) or "none", "different names"
    return None


def read_observation(actions: Actions, signature: Signature, value: object) -> Arrays:
    """One observation or a list of them, told apart by their rank, as the model's input.

    Sizes are the signature's to check. Raises `BadInput`.
    """
    spec = signature.input(actions.observation)
    array = from_json(spec, value)
    rank = len(spec.shape)
    if array.ndim not in (rank - 1, rank):
        raise BadInput(
            f"input {spec.name!r} has a wrong shape",
            got=list(array.shape),
            expected=f"one observation {list(spec.shape[1:])}, or a list of them",
        )
    return {spec.name: array if array.ndim == rank else array[None]}


def choose(actions: Actions, arrays: Arrays) -> list[dict[str, Any]]:
    """The greedy action of every row: the one of the highest value, of equal ones the first.

    Raises `BadInput` when the model has no finite answer.
    """
    values = arrays[actions.values]
    check_finite(actions.values, values)
    return [
        {
            "action": int(best),
            "name": actions.names[best],
            "q_values": dict(zip(actions.names, row, strict=True)),
        }
        for row, best in zip(values, values.argmax(1), strict=True)
    ]
