"""The workers of one server: each is known to the others by a file, once it is ready."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# BentoML's supervisor makes this folder anew at each start, and gives it to every worker.
SHARED = "PROMETHEUS_MULTIPROC_DIR"
# Names a folder of this user's alone, which is gone after the server.
SCRATCH = "FUCINA_SCRATCH"
_ALL = "all"


@dataclass(frozen=True)
class Workers:
    """`count` workers that share a folder; without one, this process is alone."""

    folder: Path | None
    count: int

    def join(self) -> None:
        """This worker is ready; the last one to be says that all were."""
        if self.folder is not None:
            self.folder.mkdir(exist_ok=True)
            (self.folder / str(os.getpid())).touch()
            if len(self.living()) >= self.count:
                (self.folder / _ALL).touch()

    def leave(self) -> None:
        """This worker is ready no more."""
        if self.folder is not None:
            (self.folder / str(os.getpid())).unlink(missing_ok=True)

    def any(self) -> bool:
        """Whether a living worker is ready."""
        return bool(self.living())

    def were_all(self) -> bool:
        """Whether all were ready at one time; which of them are now is theirs to say."""
        return self.folder is None or (self.folder / _ALL).exists()

    def living(self) -> list[int]:
        """The processes of the workers that are ready."""
        if self.folder is None or not self.folder.is_dir():
            return []
        pids = [int(file.name) for file in self.folder.iterdir() if file.name != _ALL]
        return [pid for pid in pids if lives(pid)]


def workers(count: int, environment: Mapping[str, str]) -> Workers:
    """The workers of the server that this process belongs to."""
    shared = environment.get(SHARED)
    return Workers(Path(shared) / "ready" if shared else None, count)


def lives(pid: int) -> bool:
    """Whether there is a process of that number."""
    with suppress(PermissionError):  # it lives, as somebody else
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
