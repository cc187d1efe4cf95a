"""Replaying: a bundle's certificates, made again on this machine, up to the served answers."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.errors import BadSetting, ServingFailed
from models.signature import Axis
from pipeline.artifacts import load, new_folder
from pipeline.backends import backend, target
from pipeline.budget import steps
from pipeline.bundle import SERVICES, Bundle
from pipeline.parts import part, save_value
from pipeline.values import CERTIFICATE_VALUE, Certificate, Engine, Finding
from pipeline.verify import NOT_SERVED, said, verify

_SERVED_BY = ("bentoml", "grpc")


@dataclass(frozen=True)
class Replayed:
    """One engine's certificate as it was packaged, and as this machine made it."""

    packaged: Certificate
    here: Certificate


def replay(bundle: Bundle, out: Path, *, serve: bool) -> list[Replayed]:
    """Certify every engine of a bundle, and its parts, on this machine, each into `out`/TARGET.

    With `serve` the packaged service is started and asked every recorded case over REST and gRPC,
    and what its signature does not promise: the certificate of the whole then holds what serving
    adds to the error. Raises `CertificateFailed` for an engine that was packaged without its own
    certificate.
    """
    packaged = {name: bundle.certificate(name) for name in bundle.manifest.engines}
    with fresh(out) as folder:
        for name in packaged:
            with tempfile.TemporaryDirectory(prefix="fucina-") as scratch:
                model, engine = bundle.unpack(name, Path(scratch))
                (folder / name).mkdir()
                save_value(_served(bundle, engine, verify(engine, model, folder / name), serve))
    done = []
    for name, before in packaged.items():
        here = load(Certificate, out / name, CERTIFICATE_VALUE)
        done.append(Replayed(before, here))
        for inner, one in bundle.parts.items():
            done.append(Replayed(one.certificate(name), part(here, inner)))
    return done


@contextmanager
def fresh(out: Path) -> Iterator[Path]:
    """A folder that becomes `out`, in the place of the certificates that were there.

    Raises `BadSetting` when something else is there.
    """
    if out.exists() and not (out.is_dir() and any(out.rglob(CERTIFICATE_VALUE))):
        raise BadSetting(f"{out} is there and holds no certificate", fix="give another --out")
    with new_folder(out) as folder:
        yield folder
        shutil.rmtree(out, ignore_errors=True)


def _served(bundle: Bundle, engine: Engine, value: Certificate, serve: bool) -> Certificate:
    """The certificate with what the packaged service answers, or why nobody knows."""
    missing = [name for name in _SERVED_BY if importlib.util.find_spec(name) is None]
    kind = bundle.manifest.kind
    why = (
        "--no-serve was given" if not serve
        else f"{' and '.join(missing)} is not installed" if missing
        else f"no service serves the kind {kind!r}" if kind not in SERVICES
        else "the engine failed" if not value
        else ""
    )  # fmt: skip
    skipped = [text for text in value.not_run if text != NOT_SERVED]
    if why:
        left = f"error budget: the HTTP and gRPC answer of the service: {why}"
        return value.model_copy(update={"not_run": (*skipped, left)})
    from serving.ask import ask, ask_too_much, sessions
    from serving.launch import serve as launch

    name = engine.target
    own = backend(target(name)).open(engine.folder, engine.files, engine.options)
    try:
        with launch([bundle.folder], port=0, grpc_port=0, target=name) as server:
            findings = [
                finding.model_copy(update={"check": transport})
                for transport, some in ask(server.http, server.grpc, bundle, name).items()
                for finding in some
            ]
            refused = ask_too_much(server.http, server.grpc, bundle)
            with sessions(server.http, server.grpc, bundle) as over:
                edges = [
                    edge
                    for transport, session in over.items()
                    for edge in steps(
                        {
                            "engine": lambda case: own.run(case.inputs),
                            f"{transport} answer": lambda case, to=session: to.run(case.inputs),
                        },
                        bundle.manifest.signature, bundle.cases(), value.limits,
                    )
                ]  # fmt: skip
    except ServingFailed as error:
        failed = (*value.failures, f"served: {error}")
        return value.model_copy(update={"passed": False, "failures": failed})
    lines = [text for finding in (*findings, *refused) for text in said(finding)]
    return value.model_copy(
        update={
            "passed": value.passed and not lines,
            "findings": (*value.findings, *findings, *refused),
            "budget": (*value.budget, *edges),
            "contract": tuple(
                row.model_copy(update={"service": _taken(axis, refused)})
                if (axis := axes.get(row.what)) else row
                for axes in [{f"axis {n}": a for n, a in bundle.manifest.signature.axes.items()}]
                for row in value.contract
            ),
            "failures": (*value.failures, *lines),
            "not_run": tuple(skipped),
        }
    )  # fmt: skip


def _taken(axis: Axis, refused: list[Finding]) -> str:
    """The sizes that the running service takes: what it was asked on either side it refused."""
    low, high = (
        all(f.passed for f in refused if f.case.startswith(f"{axis.name}={size} over"))
        for size in (axis.min - 1, axis.max + 1)
    )
    return f"{axis.min if low else 'less'} to {axis.max if high else 'more'}"
