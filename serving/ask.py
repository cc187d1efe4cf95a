"""Ask a running server every recorded case, over REST and over gRPC, and compare the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import BadInput, FucinaError
from models.signature import Arrays, Axis, TensorSpec
from pipeline.backends import DEFAULT_TARGET, Session
from pipeline.bundle import Bundle, Finding
from pipeline.cases import GREEDY, HELD_OUT, NONFINITE
from serving.client import Client
from serving.client_grpc import GrpcClient


@dataclass(frozen=True)
class Access:
    """What a server wants of who asks it: fields of `Client`."""

    api_key: str | None = None
    ca: Path | None = None
    certificate: Path | None = None


def ask(
    http: str,
    grpc_address: str,
    bundle: Bundle,
    target: str = DEFAULT_TARGET,
    access: Access = Access(),  # frozen
) -> dict[str, list[Finding]]:
    """Findings for "REST" and "gRPC": each recorded case against the certificate's limits.

    The parts of a model are asked as well. `http` is like http://127.0.0.1:3000, `grpc_address`
    like 127.0.0.1:3001. A call that fails is a failed finding.
    """
    found: dict[str, list[Finding]] = {}
    for one in (bundle, *bundle.parts.values()):
        with sessions(http, grpc_address, one, access) as over:
            for transport, session in over.items():
                findings = one.replay(session, target, sequences=False)
                found.setdefault(transport, []).extend(findings)
    return found


@contextmanager
def sessions(
    http: str,
    grpc_address: str,
    bundle: Bundle,
    access: Access = Access(),  # frozen
) -> Iterator[dict[str, Session]]:
    """A served model as a session over "REST" and one over "gRPC", each asked once."""
    name, how = bundle.manifest.name, vars(access)
    with (
        Client(http, retries=0, **how) as rest,
        GrpcClient(grpc_address, retries=0, **how) as over_grpc,
    ):
        yield {"REST": _Session(rest, name), "gRPC": _Session(over_grpc, name)}


@dataclass(frozen=True)
class _Session:
    client: Client | GrpcClient
    model: str

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        return self.client.infer(self.model, inputs)


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
    except FucinaError as error:
        # Not one of its kinds: a body that is too large is no bad input to the model.
        return None if type(error) is BadInput else f"{type(error).__name__}: {error}"
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
