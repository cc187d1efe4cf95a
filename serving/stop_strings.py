"""Where a text ends before a stop string, however it is cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets a text through up to the first stop string, which is not let through.

    What may be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """What may be said after one more piece, and whether a stop string is complete.

        The stop string that is complete first counts; of several, the longest.
        """
        if not self._stops:
            return piece, False
        said = ""
        for character in piece:
            self._held += character
            ended = [stop for stop in self._stops if self._held.endswith(stop)]
            if ended:
                said += self._held[: -max(map(len, ended))]
                self._held = ""
                return said, True
            begun = next(n for n in range(len(self._held) + 1) if self._begins(n))
            said += self._held[:begun]
            self._held = self._held[begun:]
        return said, False

    def flush(self) -> str:
        """What is still held back, once nothing more can come."""
        said, self._held = self._held, ""
        return said

    def _begins(self, start: int) -> bool:
        return any(stop.startswith(self._held[start:]) for stop in self._stops)
