"""The gate: who may ask, how much at a time; the same for both transports."""

from __future__ import annotations

from models.errors import Forbidden, Overloaded, TooMany, Unauthenticated
from serving.calls import Call
from serving.keys import KeyRing
from serving.settings import Settings

# Who watches a server has no key, and is to be answered most of all when it is busy. These say
# nothing but whether it lives and is ready; a model's own readiness needs a key, but over gRPC,
# whose standard health check has no other name for it.
PROBES = frozenset(
    [
        *("/livez", "/readyz", "/healthz", "/startupz"),
        *("/v2/health/live", "/v2/health/ready"),
        *("ServerLive", "ServerReady", "Check", "Watch"),  # over gRPC
    ]
)
# A browser cannot show a key to open a page. These are the same files on every server; what they
# then ask of this one needs the key.
PAGES = frozenset(["/", "/playground/{file}"])


# Of the largest size, as many as may be read or answered at a time.
_BODIES = 8


class Gate:
    """Admits calls, and counts those of each client and the bytes of all that are under way.

    One event loop asks it, so that nothing is locked.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = KeyRing(settings.api_keys) if settings.api_keys else None
        self._open = PROBES | PAGES if settings.playground else PROBES
        self._under_way: dict[str, int] = {}
        self._held = 0

    def admit(self, call: Call, authorization: str = "", *, admin: bool = False) -> None:
        """Let a call in, whose `client` is the peer's address until a key names it.

        `authorization` is the header of that name. Every admitted call is to `leave`. Raises
        `Unauthenticated`, `Forbidden` for an admin call where these are off or the key may not,
        and `TooMany`.
        """
        if self._exempt(call):
            return
        if self._keys is not None:
            scheme, _, given = authorization.partition(" ")
            key = self._keys.find(given.strip()) if scheme.lower() == "bearer" else None
            if key is None:
                # What was given is not said back: it may be a key of another server.
                raise Unauthenticated(
                    "this server needs a key that it knows", expected="Authorization: Bearer KEY"
                )
            call.client, call.models = key.name, key.models
            if admin and self._settings.admin and not key.admin:
                raise Forbidden(f"key {key.name!r} may not load or unload")
        if admin and not self._settings.admin:
            raise Forbidden("this server does not load or unload", fix="serve it with --admin")
        if most := self._settings.per_client:
            now = self._under_way.get(call.client, 0)
            if now >= most:
                raise TooMany("too many calls of one client at a time", expected=f"at most {most}")
            self._under_way[call.client] = now + 1

    def hold(self, call: Call, size: int) -> None:
        """So many more bytes of an admitted call are kept until it ends; raises `Overloaded`."""
        if self._held and self._held + size > _BODIES * self._settings.largest_body:
            raise Overloaded("too many bytes are under way", got=self._held, fix="ask again later")
        call.held += size
        self._held += size

    def leave(self, call: Call) -> None:
        """An admitted call has ended, however it did."""
        self._held -= call.held
        call.held = 0
        if self._settings.per_client and not self._exempt(call):
            left = self._under_way[call.client] - 1
            if left:
                self._under_way[call.client] = left
            else:  # or every address that ever asked would be kept
                del self._under_way[call.client]

    def _exempt(self, call: Call) -> bool:
        # A gRPC route may be a full name, /package.Service/Method.
        route = call.route if call.transport == "http" else call.route.rpartition("/")[2]
        return route in self._open
