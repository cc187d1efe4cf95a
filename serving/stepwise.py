"""Whether an engine can write one token after the other, as its codec says."""

from __future__ import annotations

from models.codec import Characters, Generation
from models.errors import BadInput
from models.recurrence import capacity, state_names
from models.signature import Signature, TensorSpec


def generation_problem(
    generation: Generation, signature: Signature
) -> tuple[str, object, object] | None:
    """What is wrong, what was got and expected; None where the signature fits the codec."""
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    recurrence, batch = signature.recurrence, signature.batch
    time = signature.axes.get(recurrence.axis) if recurrence else None
    if time is None or time.min > 1 or batch is None or batch.min > 1:
        return ("writes, but its engine does not go step by step", signature.axes or None,
                "a batch and a recurrence along an axis, both from 1")  # fmt: skip
    tokens = inputs.get(generation.tokens.name)
    if tokens is None or tokens.shape[1:] != (time,) or not _takes(tokens, generation.tokens):
        return ("writes tokens that are no input", tokens,
                f"int64 [batch, {time}], to {generation.tokens.ids - 1}")  # fmt: skip
    logits = outputs.get(generation.logits)
    wanted = (time, generation.tokens.ids)
    if logits is None or not logits.floating or logits.shape[1:] != wanted:
        return "writes by logits that are no output", logits, f"floats [batch, {time}, {wanted[1]}]"
    known = {generation.tokens.name, *state_names(signature)}
    if generation.source is not None:
        known.add(generation.source.name)
        source = inputs.get(generation.source.name)
        if source is None or len(source.shape) != 2 or not _takes(source, generation.source):
            wanted_ids = f"int64 [batch, length], to {generation.source.ids - 1}"
            return "answers a source that is no input", source, wanted_ids
    if left := inputs.keys() - known:
        return "writes, but does not give each input", ", ".join(sorted(left)), "tokens and states"
    return None if generation.source is not None else _opening_problem(generation, signature)


def _opening_problem(
    generation: Generation, signature: Signature
) -> tuple[str, object, object] | None:
    room = capacity(signature)
    try:
        length = len(generation.tokens.encode(generation.opening))
    except BadInput as error:
        return f"continues an opening that it cannot read: {error}", None, None
    if not 1 <= length <= (room or length):
        return "continues an opening that does not fit", length, f"1 to {room or 'any'} characters"
    return None


def _takes(spec: TensorSpec, characters: Characters) -> bool:
    """Whether an input takes every id of the alphabet."""
    wide = spec.high is None or spec.high >= characters.ids - 1
    return spec.dtype == "int64" and wide
