"""What a serving process is told through its environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import BadSetting
from pipeline.backends import DEFAULT_TARGET
from pipeline.bundle import MANIFEST

LOOPBACK = "127.0.0.1"
LARGEST_BODY = 64 * 2**20


@dataclass(frozen=True)
class Settings:
    """Which bundles, on which target, and where to listen.

    Each worker whose models are ready leaves a file in the folder `ready`, where there is one.
    """

    bundles: tuple[Path, ...]
    target: str = DEFAULT_TARGET
    host: str = LOOPBACK
    grpc_host: str = LOOPBACK
    grpc_port: int = 3001
    largest_body: int = LARGEST_BODY
    queue: int = 512
    workers: int = 1
    ready: Path | None = None


def read_settings(environment: Mapping[str, str], folder: Path) -> Settings:
    """Settings from `FUCINA_*`; `folder` is served when it is a bundle and none is named.

    Raises `BadSetting` for a value that cannot be read.
    """
    # Set in the images that BentoML builds, where loopback would reach nobody.
    host = "0.0.0.0" if "BENTOML_CONTAINERIZED" in environment else LOOPBACK
    listed = environment.get("FUCINA_BUNDLES")
    if listed is None:
        bundles = (folder,) if (folder / MANIFEST).is_file() else ()
    else:
        bundles = _paths(listed)
    return Settings(
        bundles=bundles,
        target=environment.get("FUCINA_TARGET", DEFAULT_TARGET),
        host=host,
        grpc_host=environment.get("FUCINA_GRPC_HOST", host),
        grpc_port=_number(environment, "FUCINA_GRPC_PORT", 3001),
        largest_body=_number(environment, "FUCINA_LARGEST_BODY", LARGEST_BODY),
        queue=_number(environment, "FUCINA_QUEUE", 512),
        workers=_number(environment, "FUCINA_WORKERS", 1),
        ready=Path(environment["FUCINA_READY"]) if environment.get("FUCINA_READY") else None,
    )


def _paths(listed: str) -> tuple[Path, ...]:
    try:
        paths = json.loads(listed)
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError(listed)
    except ValueError as error:
        raise BadSetting(
            "FUCINA_BUNDLES cannot be read", got=repr(listed), expected='a JSON list, ["/a", "/b"]'
        ) from error
    return tuple(Path(path) for path in paths)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise BadSetting(f"{name} is not a number", got=repr(text), expected="a whole number")
    return int(text)
