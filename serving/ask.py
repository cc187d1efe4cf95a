"""Ask a running server every recorded case, over REST and over gRPC, and compare the answers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import grpc
import numpy as np

from models.errors import ServingFailed
from models.signature import Arrays, Axis, TensorSpec
from pipeline.backends import DEFAULT_TARGET, Session
from pipeline.bundle import Bundle, Finding
from pipeline.cases import GREEDY, HELD_OUT, NONFINITE
from serving.inference_messages import HEADER_LENGTH
from serving.inference_proto import MESSAGES, SERVICE
from serving.tensors import DATATYPES, datatype, to_bytes

_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_TIMEOUT = 60.0


def ask(
    http: str, grpc_address: str, bundle: Bundle, target: str = DEFAULT_TARGET
) -> dict[str, list[Finding]]:
    """Findings for "REST" and "gRPC": each recorded case against the certificate's limits.

    The parts of a model are asked as well. `http` is like http://127.0.0.1:3000, `grpc_address`
    like 127.0.0.1:3001. A call that fails is a failed finding.
    """
    found: dict[str, list[Finding]] = {}
    for one in (bundle, *bundle.parts.values()):
        with sessions(http, grpc_address, one) as over:
            for transport, session in over.items():
                findings = one.replay(session, target, sequences=False)
                found.setdefault(transport, []).extend(findings)
    return found


@contextmanager
def sessions(http: str, grpc_address: str, bundle: Bundle) -> Iterator[dict[str, Session]]:
    """A served model as a session over "REST" and one over "gRPC"."""
    name = bundle.manifest.name
    with _grpc_session(grpc_address, name) as over_grpc:
        yield {"REST": _RestSession(http, name), "gRPC": over_grpc}


def ask_too_much(http: str, grpc_address: str, bundle: Bundle) -> list[Finding]:
    """Findings that the service refuses what its signature does not promise.

    That is each axis one longer than its largest, or one shorter than its smallest, and an input
    that is not a number. It has to answer 400 or INVALID_ARGUMENT; error 1 is any other answer.
    """
    signature, cases = bundle.manifest.signature, bundle.cases()
    usual = {name: axis.opt for name, axis in signature.axes.items()}
    case = next(c for c in cases if (c.origin, c.sizes) == (HELD_OUT, usual))
    asked = {c.name: c.inputs for c in cases if c.origin == NONFINITE}
    for axis in signature.axes.values():
        for size in (axis.min - 1, axis.max + 1):
            asked[f"{axis.name}={size}"] = {
                spec.name: _resized(case.inputs[spec.name], spec, axis, size)
                for spec in signature.inputs
            }
    findings = []
    with sessions(http, grpc_address, bundle) as over:
        for transport, session in over.items():
            for name, inputs in asked.items():
                said = _refusal(session, inputs)
                findings.append(
                    Finding(
                        check="refused", case=f"{name} over {transport}", sizes={},
                        output=signature.outputs[0].name, error=float(said is not None), limit=0.0,
                        passed=said is None, note=said or "",
                    )
                )  # fmt: skip
    return findings


def _resized(array: np.ndarray, spec: TensorSpec, axis: Axis, size: int) -> np.ndarray:
    if axis not in spec.shape:
        return array
    return array.take(np.arange(size), spec.shape.index(axis), mode="wrap")


def _refusal(session: Session, inputs: Arrays) -> str | None:
    """None when the service says that the input is bad, else what it says instead."""
    try:
        session.run(inputs)
    except ServingFailed as error:
        cause = error.__cause__
        bad = isinstance(cause, urllib.error.HTTPError) and cause.code == HTTPStatus.BAD_REQUEST
        return None if bad else str(error)
    except grpc.RpcError as error:
        code = error.code()
        return None if code is grpc.StatusCode.INVALID_ARGUMENT else f"gRPC answered {code.name}"
    return "the service answered"


def example(bundle: Bundle) -> tuple[str, dict[str, Any]]:
    """A route that a person would use, and a request of it, made of a recorded case."""
    name, codec, cases = bundle.manifest.name, bundle.codec, bundle.cases()
    first = {key: array.tolist() for key, array in cases[0].inputs.items()}
    if codec.generation:
        greedy = next(case for case in cases if case.origin == GREEDY)
        reader = codec.generation.source or codec.generation.tokens
        prompt = reader.decode(greedy.inputs[reader.name][0].tolist())
        how = {"temperature": 0, "max_tokens": 40, "stream": False}
        return "/generate", {"model": name, "prompt": prompt, **how}
    if codec.anomaly and codec.image:
        return "/anomaly", {"model": name, "image": first[codec.image.name]}
    if codec.pictures and codec.pictures.latent in codec.noise:
        return "/sample", {"model": name, "n": 4, "seed": 0}
    if codec.pictures and codec.image:
        return "/reconstruct", {"model": name, "image": first[codec.image.name]}
    if codec.actions:
        return "/act", {"model": name, "observation": first[codec.actions.observation]}
    if codec.tiled:
        return "/segment", {"model": name, "image": first[codec.tiled.name][0]}
    if codec.text and bundle.manifest.kind == "sequence":
        words = codec.text.decode(first[codec.text.name][0])
        return "/classify", {"model": name, "text": " ".join(words)}
    return "/predict", {"model": name, "inputs": first}


@dataclass(frozen=True)
class _RestSession:
    address: str
    model: str

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        header = json.dumps(
            {
                "inputs": [
                    _describe(n, a) | {"parameters": {"binary_data_size": a.nbytes}}
                    for n, a in inputs.items()
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        body = b"".join([header, *(to_bytes(array) for array in inputs.values())])
        request = urllib.request.Request(
            f"{self.address}/v2/models/{self.model}/infer",
            body,
            {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                raw, length = response.read(), int(response.headers[HEADER_LENGTH])
        except urllib.error.HTTPError as error:
            raise ServingFailed(f"REST answered {error.code}: {error.read()[:300]!r}") from error
        arrays: Arrays = {}
        for output in json.loads(raw[:length])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            arrays[output["name"]] = _array(output, raw[length : length + size])
            length += size
        return arrays


@dataclass(frozen=True)
class _GrpcSession:
    call: Any
    model: str

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        request = MESSAGES["ModelInferRequest"](
            model_name=self.model,
            inputs=[_describe(name, array) for name, array in inputs.items()],
            raw_input_contents=[to_bytes(array) for array in inputs.values()],
        )
        response = self.call(request, timeout=_TIMEOUT)
        outputs = zip(response.outputs, response.raw_output_contents, strict=True)
        return {
            o.name: _array({"datatype": o.datatype, "shape": list(o.shape)}, raw)
            for o, raw in outputs
        }


@contextmanager
def _grpc_session(address: str, model: str) -> Iterator[Session]:
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelInferResponse"].FromString,
        )
        yield _GrpcSession(call, model)


def _describe(name: str, array: np.ndarray) -> dict[str, Any]:
    return {"name": name, "datatype": datatype(array), "shape": list(array.shape)}


def _array(described: Mapping[str, Any], raw: bytes) -> np.ndarray:
    dtype = np.dtype(_DTYPES[described["datatype"]]).newbyteorder("<")
    return np.frombuffer(raw, dtype).reshape(described["shape"])
