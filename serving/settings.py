"""What a serving process is told through its environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models.errors import BadSetting
from pipeline.backends import DEFAULT_TARGET
from pipeline.blessed import LAST, RECORD
from pipeline.bundle import MANIFEST

LOOPBACK = "127.0.0.1"
LARGEST_BODY = 64 * 2**20


@dataclass(frozen=True)
class Settings:
    """Which bundles, on which target, where to listen, and what is allowed.

    Each field is read from `FUCINA_` and its name in capitals. A bundle is a bundle's folder, or a
    run's, whose blessed bundle is then served and watched.
    """

    bundles: tuple[Path, ...] = ()
    target: str = DEFAULT_TARGET
    host: str = LOOPBACK
    grpc_host: str = LOOPBACK
    grpc_port: int = 3001
    workers: int = 1
    # batching
    queue: int = 512  # requests of a model that may wait
    latency_target: float = 0.0  # milliseconds that a batch may wait for more; 0 never waits
    longest_wait: float = 5000.0  # milliseconds expected until a request's turn; 0: no bound
    largest_batch: int = 0  # rows put together at most; 0 takes the fastest, measured at the start
    threads: int = 0  # of an engine; 0 takes as many as it was certified with
    # engines that were built for another machine
    rebuild: float = 600.0  # seconds that building one here may take; 0 never does
    strict_target: bool = False  # nothing stands in for the target
    cache: Path | None = None  # where engines that were built here are kept
    # limits
    largest_body: int = LARGEST_BODY  # bytes, also once decompressed
    largest_pixels: int = 64_000_000  # of an uploaded picture, before it is decoded
    timeout: float = 60.0  # seconds until the answer begins
    per_client: int = 0  # calls of one client at a time; 0 is without limit
    # protection
    api_keys: Path | None = None  # a file of hashed keys
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None  # who signs the certificates that clients must show
    admin: bool = False  # load and unload over the protocol
    # operation
    watch: float = 1.0  # seconds between looks at blessed records; 0 never looks
    recheck: float = 0.0  # share of requests that the reference engine is asked as well
    access_log: bool = True
    drain: float = 0.0  # seconds between not ready and taking nothing more, once asked to end
    playground: bool = False


def read_settings(environment: Mapping[str, str], folder: Path) -> Settings:
    """Settings from `FUCINA_*`; `folder` is served when it is a bundle and none is named.

    Raises `BadSetting` for a value that cannot be read.
    """
    # Set in the images that BentoML builds, where loopback would reach nobody.
    host = "0.0.0.0" if "BENTOML_CONTAINERIZED" in environment else LOOPBACK
    values: dict[str, Any] = {"host": host, "grpc_host": environment.get("FUCINA_HOST", host)}
    if (folder / MANIFEST).is_file():
        values["bundles"] = (folder,)
    for field in fields(Settings):
        name = _name(field.name)
        if name in environment:
            values[field.name] = _read(name, str(field.type), environment[name])
    return Settings(**values)


def write_settings(settings: Settings) -> dict[str, str]:
    """The environment that `read_settings` reads the same settings from."""
    found = {}
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if isinstance(value, tuple):
            value = json.dumps([str(path) for path in value])
        elif isinstance(value, bool):
            value = int(value)
        if value is not None:
            found[_name(field.name)] = str(value)
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, of which the blessed bundle is served."""
    return not (folder / MANIFEST).is_file() and (
        (folder / RECORD).is_file() or (folder / LAST).exists()
    )


def _name(field: str) -> str:
    return f"FUCINA_{field.upper()}"


def _read(name: str, kind: str, text: str) -> Any:
    if kind == "tuple[Path, ...]":
        return _paths(name, text)
    if kind == "Path | None":
        return Path(text) if text else None
    if kind == "bool":
        flags = {"1": True, "true": True, "0": False, "false": False}
        if text.lower() not in flags:
            raise BadSetting(f"{name} is not a flag", got=repr(text), expected="1 or 0")
        return flags[text.lower()]
    if kind == "int":
        if not text.isdecimal():
            raise BadSetting(f"{name} is not a number", got=repr(text), expected="a whole number")
        return int(text)
    if kind == "float":
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise BadSetting(f"{name} is not a number", got=repr(text), expected="0 or more")
        return number
    return text


def _paths(name: str, text: str) -> tuple[Path, ...]:
    try:
        paths = json.loads(text)
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError(text)
    except ValueError as error:
        raise BadSetting(
            f"{name} cannot be read", got=repr(text), expected='a JSON list, ["/a", "/b"]'
        ) from error
    return tuple(Path(path) for path in paths)
