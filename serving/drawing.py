"""Noise that a seed says, row by row, and engines that are asked in blocks of rows."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from models.codec import Codec
from models.errors import BadInput
from models.signature import BATCH, Arrays, Signature, TensorSpec

LARGEST_SEED = 2**64 - 1
# Of a request whose noise the server is to draw.
SEED, ROWS = "seed", "rows"


def new_seed() -> int:
    """A seed of which every reader of JSON gets all digits."""
    return secrets.randbits(53)


def draw(seed: int, rows: int, spec: TensorSpec) -> np.ndarray:
    """Noise for an input [batch, ...], normal with deviation 1: [rows, ...].

    Row i depends on the seed, the input's name and i alone, so that it is the same however many
    are drawn, and no two inputs share numbers. It is what the counting generator Philox 4x64
    (Salmon 2011) gives for the key (seed, name) from the counter i * 2^192 on, made normal by
    NumPy, which may do that otherwise in another version.
    """
    name = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:8], "little")
    size = spec.at({BATCH: 1})[1:]
    noise = np.empty((rows, *size), spec.dtype)
    for row in range(rows):
        key, counter = np.array([seed, name], np.uint64), np.array([0, 0, 0, row], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        noise[row] = generator.standard_normal(math.prod(size)).reshape(size)
    return noise


def noise_inputs(signature: Signature, codec: Codec) -> list[TensorSpec]:
    """The inputs of a graph that the server can draw."""
    return [spec for spec in signature.inputs if spec.name in codec.noise]


def complete(
    signature: Signature, codec: Codec, inputs: Arrays, parameters: Mapping[str, Any]
) -> tuple[Arrays, dict[str, int]]:
    """The inputs with the noise that a request's parameters ask for, and the answer's parameters.

    The parameter `seed` or `rows` asks for what the codec names as noise and the request lacks;
    without a seed one is drawn, and other inputs say how many rows there are. The seed is told
    where anything was drawn. Raises `BadInput`; what is no noise is the signature's to check.
    """
    noise = noise_inputs(signature, codec)
    missing = [spec for spec in noise if spec.name not in inputs]
    asked = [name for name in (SEED, ROWS) if name in parameters]
    if not missing:
        if noise and asked:
            raise BadInput(f"parameter {asked[0]!r} is of no use, for every noise is given")
        return inputs, {}
    if not asked:
        names = [spec.name for spec in signature.inputs]
        raise BadInput(
            f"input {missing[0].name!r} is missing",
            got=", ".join(map(repr, inputs)) or "no inputs",
            expected=", ".join(map(repr, names)),
            fix="give it, or the parameter 'seed' to have it drawn ('rows' says how many rows)",
        )
    seed = parameters[SEED] if SEED in parameters else new_seed()
    check_whole(f"parameter {SEED!r}", seed, 0, LARGEST_SEED)
    rows = _rows(signature, inputs, parameters)
    return inputs | {spec.name: draw(seed, rows, spec) for spec in missing}, {SEED: seed}


def check_whole(what: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number from `low` to `high`."""
    if type(value) is not int:
        raise BadInput(
            f"{what} is of a wrong type", got=type(value).__name__, expected="a whole number"
        )
    if not low <= value <= high:
        raise BadInput(f"{what} is out of range", got=value, expected=f"{low} to {high}")


def _rows(signature: Signature, inputs: Arrays, parameters: Mapping[str, Any]) -> int:
    """How many rows are asked: as many as the given inputs have, else the parameter, else one."""
    most = signature.batch.max if signature.batch else 1
    given = {name: array.shape[0] for name, array in inputs.items() if array.ndim}
    if ROWS in parameters:
        check_whole(f"parameter {ROWS!r}", parameters[ROWS], 1, most)
    for name, found in given.items():
        # Before anything is drawn for them: the signature is asked when the inputs are complete.
        check_whole(f"input {name!r} axis {BATCH!r}", found, 1, most)
        if parameters.get(ROWS, found) != found:
            raise BadInput(
                f"parameter {ROWS!r} disagrees with input {name!r}",
                got=parameters[ROWS],
                expected=found,
            )
    return next(iter(given.values()), parameters.get(ROWS, 1))


def in_blocks(run: Callable[[Any], Arrays], block: int) -> Callable[[Any], Arrays]:
    """`run`, called for exactly `block` rows at a time, the last ones padded by repetition.

    An engine takes other kernels for other numbers of rows, and with them other roundings: asked
    so, not a bit of a row's answer depends on how many rows are asked.
    """

    def ask(inputs: Mapping[str, np.ndarray]) -> Arrays:
        rows = len(next(iter(inputs.values())))
        answers = []
        for start in range(0, rows, block):
            wanted = np.minimum(np.arange(start, start + block), rows - 1)
            answers.append(run({name: array[wanted] for name, array in inputs.items()}))
        return {n: np.concatenate([answer[n] for answer in answers])[:rows] for n in answers[0]}

    return ask
