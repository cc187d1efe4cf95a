"""Foreign: a model that was trained elsewhere, its ONNX file held against its torch module."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import torch
from torch import nn

from flows.inferred import (
    Ranges,
    drawn,
    fitting,
    infer_inputs,
    infer_signature,
    read_as,
    read_rows,
    read_tensors,
)
from models.codec import Codec
from models.errors import BadSetting, ExportFailed, FucinaError, first_line
from models.signature import Signature
from pipeline.artifacts import digest_file, digest_files, write_json
from pipeline.backends import DEFAULT_TARGET, ort
from pipeline.cases import CASES_FILE, EDGE, HELD_OUT, write_cases
from pipeline.intermediates import INTERMEDIATES, declared, write_intermediates
from pipeline.parts import save_value
from pipeline.recording import answer, intermediates, record
from pipeline.values import CODEC, ENGINE_VALUE, MODEL, MODEL_VALUE, Certificate, Engine, OnnxModel
from pipeline.verify import NOT_SERVED, verify
from pipeline.versions import libraries

_DRAWN = "real samples: inputs were drawn at random; give --samples ROWS.npz"


def certify(
    path: Path, against: str, samples: Path | None, max_batch: int, ranges: Ranges, out: Path,
    show: Callable[[Signature], None],
) -> tuple[Certificate, Signature]:  # fmt: skip
    """Certify an ONNX file, as it is, against its module; see `take`.

    Into `out` go the certificate, the values whose digests it holds, and the recorded cases.
    """
    with tempfile.TemporaryDirectory(prefix="fucina-") as scratch:
        model, engine = take(path, against, samples, max_batch, ranges, Path(scratch), show)
        value = verify(engine, model, out)
        for name in (MODEL_VALUE, ENGINE_VALUE, CASES_FILE, CODEC):
            shutil.copyfile(model.folder / name, out / name)
    origin = f"sha256 {digest_file(samples)}" if samples else "drawn at random, not real"
    left = [text for text in value.not_run if text != NOT_SERVED]
    value = value.model_copy(
        update={
            "samples": value.samples | {"origin": origin, "against": against},
            "not_run": tuple(left if samples else [_DRAWN, *left]),
        }
    )
    save_value(value)
    return value, model.signature


def take(
    path: Path, against: str, samples: Path | None, max_batch: int, ranges: Ranges, out: Path,
    show: Callable[[Signature], None],
) -> tuple[OnnxModel, Engine]:  # fmt: skip
    """An ONNX file as a graph with recorded cases and, just as it is, as an engine; in `out`.

    The signature is inferred from the file: open dimensions are axes, the first of all inputs is
    the batch; `show` is given it before anything long begins. `ranges` are the axes' smallest,
    usual and largest sizes by name. `samples` is an .npz with an array for each input, the row axis
    first; without it inputs are drawn at random. Recorded is what the module MODULE:CALLABLE says.

    Raises `BadSetting` for what does not fit the file, `ExportFailed` when the module cannot be
    asked what the file is asked.
    """
    inputs, outputs = read_tensors(path)
    rows = read_rows(samples, list(inputs)) if samples else None
    specs, symbols = infer_inputs(inputs, rows, max_batch, ranges)
    module = Named(find_module(against), list(inputs), list(outputs)).eval()
    signature = infer_signature(specs, lambda arrays: answer(module, arrays))
    show(signature)
    rows = fitting(signature, rows) if rows else drawn(signature)
    cases = record(module, signature, rows)
    write_cases(cases, out)
    # There is no other graph to find a fault by than what the module does step by step.
    told = [case for case in cases if case.origin in (HELD_OUT, EDGE)]
    told.sort(key=lambda case: sum(array.size for array in case.inputs.values()))
    write_intermediates(out, ((case.name, intermediates(module, case.inputs)) for case in told))
    write_json(out / CODEC, Codec().model_dump(mode="json"))
    graph = onnx.load_model(path, load_external_data=False)
    weights = sorted(set(_external(path, graph.graph)))
    built = ort.adopt(path, weights, out)
    shutil.copyfile(path, out / MODEL)
    written = {value.name: declared(value) for value in (*graph.graph.input, *graph.graph.output)}
    spelled = {
        spec.name: {
            text: read_as(text, spec, symbols)
            for text in (written[spec.name], (inputs | outputs)[spec.name])
        }
        for spec in (*signature.inputs, *signature.outputs)
    }
    model = OnnxModel(
        folder=out,
        recipe=path.stem,
        parent=_digest(module),
        signature=signature,
        opset=next((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), 0),
        exporter=graph.producer_name or "unknown",
        libraries=libraries("torch", "onnx"),
        files=digest_files(out, [MODEL, CASES_FILE, CODEC, *weights]),
        declared={name: texts[written[name]] for name, texts in spelled.items()},
        spelled=spelled,
        apart=digest_files(out, [INTERMEDIATES]),
    )
    save_value(model)
    engine = Engine(
        folder=out,
        target=DEFAULT_TARGET,
        parent=model.digest,
        signature=signature,
        options=built.options,
        built_on=built.built_on,
        files=digest_files(out, list(built.files)),
    )
    save_value(engine)
    return model, engine


class Named(nn.Module):
    """A module of any calling convention behind named tensors in, named tensors out.

    Inputs are given by name where `forward` knows all the names, else by position. Outputs, nested
    or not, are named in their order; of a mapping by its keys where these are the names.
    """

    def __init__(self, module: nn.Module, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.module = module
        self.inputs = inputs
        self.outputs = outputs
        self.by_name: bool = set(inputs) <= inspect.signature(module.forward).parameters.keys()

    def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        try:
            ordered = [] if self.by_name else [given[name] for name in self.inputs]
            said = self.module(*ordered, **(given if self.by_name else {}))
        except Exception as error:  # whatever the user's code raises
            asked = (f"{n} {str(t.dtype)[6:]}{list(t.shape)}" for n, t in given.items())
            raise ExportFailed(
                f"the module does not answer {', '.join(asked)}: {first_line(error)}",
                fix="narrow an axis by --axis NAME=MIN:OPT:MAX, or give real rows by --samples",
            ) from error
        if isinstance(said, Mapping) and said.keys() >= set(self.outputs):
            return {name: said[name] for name in self.outputs}
        tensors = list(_tensors(said))
        if len(tensors) != len(self.outputs):
            raise ExportFailed(
                "the module has other outputs than the graph",
                got=f"{len(tensors)} tensors",
                expected=", ".join(self.outputs),
            )
        return dict(zip(self.outputs, tensors, strict=True))


def _tensors(said: Any) -> Iterator[torch.Tensor]:
    if isinstance(said, torch.Tensor):
        yield said
    elif isinstance(said, Mapping | list | tuple):
        for one in said.values() if isinstance(said, Mapping) else said:
            yield from _tensors(one)


def find_module(reference: str) -> nn.Module:
    """The module that MODULE:CALLABLE, importable from here, is or returns. Raises `BadSetting`."""
    name, _, attribute = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` would have it
        sys.path.insert(0, here)
    try:
        found: Any = getattr(importlib.import_module(name), attribute)
        found = found if isinstance(found, nn.Module) else found()
    except FucinaError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise BadSetting(
            f"{reference!r} gives no module: {type(error).__name__}: {first_line(error)}",
            expected="MODULE:CALLABLE",
            fix="run where the module lies, or put its folder on PYTHONPATH",
        ) from error
    if not isinstance(found, nn.Module):
        raise BadSetting(
            f"{reference!r} gives no module",
            got=type(found).__name__,
            expected="a torch.nn.Module, or a callable without arguments that returns one",
        )
    return found


def _external(path: Path, graph: onnx.GraphProto) -> Iterator[str]:
    """The files beside a graph that hold its tensors."""
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                yield from _external(path, inner) if inner.node else ()
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            name = next(e.value for e in tensor.external_data if e.key == "location")
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts or not (path.parent / name).is_file():
                raise BadSetting(f"{path} keeps weights in {name!r}, which is not beside it")
            yield name


def _digest(module: nn.Module) -> str:
    """sha256 of the module's parameters and buffers, in the order of their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
