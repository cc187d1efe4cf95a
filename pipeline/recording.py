"""Recording: what the module answers to the cases, in fp32 and in fp64, before torch is left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from models.codec import Generation
from models.datasets import Split
from models.errors import ExportFailed
from models.recurrence import advance, capacity, start, step_names
from models.signature import BATCH, Arrays, Signature
from pipeline.carrying import PROMPT, carried_inputs, decode_greedily, prompt, run_carried
from pipeline.cases import CARRIED, GREEDY, Case, make_inputs
from pipeline.samples import Samples, choose_samples

# What exporters write as several nodes: its steps before the last.
_PARTS: Mapping[Any, Callable[..., list[torch.Tensor]]] = {
    torch.ops.aten.addmm.default: lambda _, x, weight: [x @ weight],
    torch.ops.aten.silu.default: lambda x: [torch.sigmoid(x)],
    torch.ops.aten.gelu.default: lambda x: [
        (scaled := x / 2**0.5), (erf := torch.erf(scaled)), erf + 1, (erf + 1) * 0.5, x * 0.5,
    ],
}  # fmt: skip
_STATES = 64  # rows whose state is computed for the cases


def record(module: nn.Module, signature: Signature, samples: Arrays) -> list[Case]:
    """Cases with the answers of the module in fp32 and, on the same inputs, in fp64.

    Raises `ExportFailed` when the module's answers are not what the signature declares.
    """
    exact = copy.deepcopy(module).double()
    cases = []
    for case in make_inputs(signature, _with_states(module, signature, samples)):
        eager = answer(module, case.inputs)
        _check_outputs(signature, case, eager)
        cases.append(replace(case, eager=eager, reference=answer(exact, case.inputs, wide=True)))
    return cases


def record_samples(module: nn.Module, signature: Signature, split: Split, most: int) -> Samples:
    """At most so many rows of a split with what the fp64 module answers to them."""
    exact = copy.deepcopy(module).double()
    one = choose_samples(signature, split, rows=1)
    (first,) = one.batches(signature)
    size = sum(array.nbytes for array in answer(exact, first, wide=True).values())
    rows = choose_samples(signature, split, answer_bytes=size, rows=most)
    return replace(rows, reference=rows.ask(lambda some: answer(exact, some, wide=True), signature))


def record_sequences(
    module: nn.Module, signature: Signature, samples: Arrays, generation: Generation | None
) -> list[Case]:
    """Long sequences, asked step by step, and what the module writes greedily after a prompt.

    Both by the fp32 and by the fp64 module, each with the state that it carried itself.
    """
    assert signature.recurrence is not None
    exact = copy.deepcopy(module).double()
    inputs = carried_inputs(signature, samples)
    states = {state.output for state in signature.recurrence.states}

    def run(arrays: Mapping[str, np.ndarray], wide: bool = False) -> Arrays:
        return answer(exact if wide else module, dict(arrays), wide)

    answers = []
    rows, length = inputs[step_names(signature)[0]].shape[:2]
    for wide in (False, True):
        said = run_carried(
            lambda arrays, wide=wide: run(arrays, wide), signature, inputs, range(length), wide=wide
        )
        answers.append({name: array for name, array in said.items() if name not in states})
    sizes = {BATCH: rows, signature.recurrence.axis: length}
    cases = [Case("carried", CARRIED, sizes, inputs, *answers)]
    if generation:
        tokens, logits = generation.tokens.name, generation.logits
        # An answer begins at its mark; a text that is continued has some words already.
        begun, count = prompt(signature, inputs, tokens, PROMPT if generation.source is None else 1)
        answers = []
        for wide in (False, True):
            chosen, margins = decode_greedily(
                lambda arrays, wide=wide: run(arrays, wide),
                signature, begun, tokens, logits, count, wide=wide,
            )  # fmt: skip
            answers.append({tokens: chosen, logits: margins})
        sizes = {BATCH: rows, signature.recurrence.axis: count}
        cases.append(Case("greedy", GREEDY, sizes, begun, *answers))
    return cases


def _with_states(module: nn.Module, signature: Signature, samples: Arrays) -> Arrays:
    """The samples, with state as it is after the row before; every fourth row begins anew.

    A table holds a part of that row, some of them nearly all that fits.
    """
    if signature.recurrence is None:
        return samples
    timed = step_names(signature)
    few = {name: array[:_STATES] for name, array in samples.items()}
    rows = len(few[timed[0]])
    room = capacity(signature)
    before = {name: np.roll(array, 1, axis=0) for name, array in few.items()}
    if room is not None:
        before |= {name: np.resize(before[name], (rows, room)) for name in timed}
    outputs = answer(module, before | start(signature, rows))
    states = advance(signature, start(signature, rows), outputs, before[timed[0]].shape[1])
    longest = signature.axes[signature.recurrence.axis].max
    for state in signature.recurrence.states:
        array = np.array(states[state.input])
        states[state.input] = array
        if state.position is None:
            array[::4] = 0
            continue
        assert room is not None
        held = np.arange(rows) * 7 % min(room - longest + 1, 33)
        held[3::8] = room - longest
        states[state.position] = held
        for row, written in enumerate(held):
            array[row, :, written:] = 0
    return few | states


@torch.inference_mode()
def answer(module: nn.Module, inputs: Arrays, wide: bool = False, single: bool = False) -> Arrays:
    """What a module says to named arrays; `wide` in fp64, which it has to be in already.

    `single` gives answers of any float type as fp32.
    """
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if wide:
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    answers = module(**tensors)
    if single:
        answers = {n: t.float() if t.is_floating_point() else t for n, t in answers.items()}
    return {name: tensor.numpy() for name, tensor in answers.items()}


@torch.no_grad()
def intermediates(module: nn.Module, inputs: Arrays, wide: bool = False) -> Arrays:
    """Every tensor that a module computes on its way to its answer, `00012.aten.relu.default`.

    In the order of their names. `wide` in fp64, of a copy. Attention and encoder layers go step by
    step instead of through their fused kernels, so that each step is there, and a step that
    exporters write as several nodes goes by those. See `pipeline.intermediates`.
    """
    found: Arrays = {}

    class Capture(TorchDispatchMode):
        # An interface of torch's, which has no other way in.
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            parts = _PARTS[func](*args) if func in _PARTS and not kwargs else []
            given = func(*args, **(kwargs or {}))
            several = isinstance(given, tuple | list)
            for value in [*parts, *(given if several else [given])]:
                # Room that is not filled yet holds whatever was there before.
                if isinstance(value, torch.Tensor) and value.numel() and "empty" not in str(func):
                    # Copied, for a later step may write over it.
                    found[f"{len(found):05}.{func}"] = value.detach().numpy().copy()
            return given

    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if wide:
        module = copy.deepcopy(module).double()
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), Capture():
            module(**tensors)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return found


def _check_outputs(signature: Signature, case: Case, answers: Arrays) -> None:
    declared = {spec.name: spec for spec in signature.outputs}
    if answers.keys() != declared.keys():
        raise ExportFailed(
            "the module's outputs are not the signature's",
            got=", ".join(answers),
            expected=", ".join(declared),
        )
    for name, array in answers.items():
        wanted = (declared[name].dtype, declared[name].at(case.sizes))
        if (array.dtype.name, array.shape) != wanted:
            raise ExportFailed(
                f"output {name!r} at {case.name} is not what the signature declares",
                got=f"{array.dtype.name}{list(array.shape)}",
                expected=f"{wanted[0]}{list(wanted[1])}",
            )
