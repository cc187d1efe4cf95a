"""`fucina serve`: a server over bundles until interrupted, or until it has proved itself."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

from flows.output import print_json, program, rounded
from models.errors import BadSetting, ServingFailed
from pipeline.bundle import Bundle
from pipeline.compare import worst_ratio
from serving.ask import Access, ask, example
from serving.client import Client
from serving.keys import add_key
from serving.launch import Server
from serving.launch import serve as launch
from serving.opening import open_bundles

_LONG = ("map", "images", "latent")  # parts of an answer that are too long to print
_SHOWN = ("class", "probability", "score", "value", "unit")  # of a prediction


def serve(
    folders: Sequence[Path],
    *,
    host: str,
    port: int,
    grpc_port: int,
    target: str,
    check: bool,
    as_json: bool,
    check_certificate: Path | None = None,
    **more: Any,
) -> None:
    """Serve bundles; with `check` ask every recorded case over both transports, and end.

    Of a run's folder the blessed bundle is served, and followed: on SIGHUP at once.
    `check_certificate` is what the check shows a server that wants one.

    Raises what `serving.launch.serve` raises, and `ServingFailed` when an answer is not the
    recorded one or the server ends by itself.
    """
    bundles = open_bundles(folders)
    names = ", ".join(bundle.manifest.name for bundle in bundles)
    print(f"starting a server for {names}", file=sys.stderr, flush=True)
    checking = _checkable(more, check_certificate) if check else nullcontext((more, Access()))
    with (
        checking as (settings, access),
        launch(
            folders, host=host, port=port, grpc_port=grpc_port, target=target, **settings
        ) as server,
    ):
        if check:
            rows = [_check(server, bundle, target, access) for bundle in bundles]
            where = {"rest": server.http, "grpc": server.grpc}
            if as_json:
                print_json({**where, "models": rows})
            else:
                _print_checked(server, rows)
                again = " ".join(str(folder) for folder in folders)
                print(f"\nthe server has ended; to keep it: {program()} serve {again}")
            return
        if as_json:
            print_json({"rest": server.http, "grpc": server.grpc, "models": names.split(", ")})
        else:
            print(f"serving {names}: REST at {server.http}, gRPC at {server.grpc}; Ctrl-C ends it")
        sys.stdout.flush()
        # From a terminal it says that the terminal is gone, and with it who wanted the server.
        if not (sys.stdin and sys.stdin.isatty()):
            signal.signal(signal.SIGHUP, lambda *_: server.look())
        try:
            code = server.wait()
        except KeyboardInterrupt:
            print("\nending the server", file=sys.stderr)
            return
        raise ServingFailed("the server ended by itself", got=f"exit code {code}")


@contextmanager
def _checkable(
    more: dict[str, Any], certificate: Path | None
) -> Iterator[tuple[dict[str, Any], Access]]:
    """The settings of a server that is checked and ended, and how it is to be asked."""
    if more.get("client_ca") and certificate is None:
        raise BadSetting(
            "the server would want a certificate of the check",
            fix="give --check-certificate, a PEM file of a certificate and its key",
        )
    access = Access(ca=more.get("tls_certificate"), certificate=certificate)
    if not more.get("api_keys"):
        yield more, access
        return
    # Nobody knows the keys any more. This one serves for this server, and goes with its file.
    with TemporaryDirectory(prefix="fucina-") as scratch:
        keys = Path(scratch) / "keys.json"
        keys.write_bytes(more["api_keys"].read_bytes())
        key = add_key(keys, f"check-{token_hex(8)}")
        yield more | {"api_keys": keys}, replace(access, api_key=key)


def _check(server: Server, bundle: Bundle, target: str, access: Access) -> dict[str, Any]:
    name = bundle.manifest.name
    row: dict[str, Any] = {"name": name, "version": bundle.manifest.version}
    for transport, findings in ask(server.http, server.grpc, bundle, target, access).items():
        failed = [finding for finding in findings if not finding.passed]
        if failed or not findings:
            first = failed[0] if failed else None
            raise ServingFailed(
                f"{name} over {transport} does not answer as recorded"
                + (f": output {first.output!r} at {first.case}" if first else ""),
                got=(first.note or first.error) if first else "no comparison",
            )
        row[transport.lower()] = {
            "answers": len(findings),
            "worst_error_over_limit": rounded(worst_ratio(findings)),
        }
    route, request = example(bundle)
    row["request"] = f"POST {server.http}{route}"
    with Client(server.http, **vars(access)) as client:
        answer = client.post(route, request)
    for name in _LONG:
        answer.pop(name, None)
    row["answer"] = answer
    return row


def _print_checked(server: Server, rows: list[dict[str, Any]]) -> None:
    print(f"served at {server.http} (REST) and {server.grpc} (gRPC)")
    for row in rows:
        print(
            f"{row['name']}: {row['rest']['answers']} recorded answers reproduced over REST, "
            f"{row['grpc']['answers']} over gRPC, worst error "
            f"{max(row[t]['worst_error_over_limit'] for t in ('rest', 'grpc')):.2f} of its limit"
        )
        print(f"  {row['request']}: {said(row['answer'])}")


def said(answer: dict[str, Any]) -> str:
    """An answer of any service in a few words."""
    if "text" in answer:
        return f"{answer['prompt']!r} goes on with {answer['text']!r}"
    if "pictures" in answer:
        errors = ", ".join(f"{one['error']:.4f}" for one in answer["pictures"])
        return f"an error of {errors}; above {answer['threshold']:.4f} is an anomaly"
    if "errors" in answer:
        return f"reconstructed with a mean squared error of {answer['errors'][0]:.4f}"
    if "seed" in answer:
        return f"pictures of seed {answer['seed']}"
    if "actions" in answer:
        first = answer["actions"][0]
        values = ", ".join(f"{name} {value:.2f}" for name, value in first["q_values"].items())
        return f"{first['name']} ({values})"
    if "classes" in answer:
        shares = ", ".join(f"{c['name']} {c['share']:.1%}" for c in answer["classes"])
        return f"{shares} of {answer['width']} x {answer['height']} pixels"
    if answer["predictions"]:
        return ", ".join(f"{k} {v}" for k, v in answer["predictions"][0].items() if k in _SHOWN)
    return json.dumps(answer["outputs"])[:200]
