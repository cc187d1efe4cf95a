"""The gate: who may ask, how much at a time; the same for both transports."""

from __future__ import annotations

from models.errors import Forbidden
from serving.calls import Call
from serving.settings import Settings


class Gate:
    """Admits calls, and counts those of each client that are under way."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def admit(self, call: Call, authorization: str = "", *, admin: bool = False) -> None:
        """Let a call in, whose `client` is the peer's address until a key names it.

        `authorization` is the header of that name. Every admitted call is to `leave`. Raises
        `Unauthenticated`, `Forbidden` for an admin call where these are off, and `TooMany`.
        """
        if admin and not self._settings.admin:
            raise Forbidden("this server does not load or unload", fix="serve it with --admin")

    def leave(self, call: Call) -> None:
        """An admitted call has ended, however it did."""
