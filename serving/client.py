"""A client of the Open Inference Protocol over HTTP, which needs numpy and nothing else.

```python
import numpy as np
from serving.client import Client

with Client("http://127.0.0.1:3000") as client:
    picture = np.zeros((1, 1, 28, 28), np.float32)
    outputs = client.infer("digits", {"image": picture})
    print({name: array.shape for name, array in outputs.items()})
```

A client may be shared by threads; a coroutine calls it with `asyncio.to_thread(client.infer, ...)`.
Tensors travel as bytes, so that answers are the engine's own numbers. What had no answer is asked
again: a connection that broke, and 503 or 429, after the pause that the server asked for.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import numpy as np

from models.errors import BadSetting, NotReady, ServingFailed, TimedOut
from serving.client_connections import Connections, Request
from serving.client_messages import HEADER_LENGTH, Answer, read_answer, write_question

TIMEOUT = 60.0  # seconds, with all retries
RETRIES = 10
_JSON = {"Content-Type": "application/json"}


class Client:
    """A server at an address such as http://127.0.0.1:3000, asked over kept connections.

    `ca` is a PEM file of who signed the server's certificate, `certificate` one of the client's
    certificate and key. `timeout` is in seconds, for a call with its `retries`.

    Every call raises the error that the server named, as one of `models.errors`: `BadInput`,
    `UnknownModel`, `Unauthenticated`, `Forbidden`, `TooMany`, `NotReady` (also for overload),
    `TimedOut`; and `ServingFailed` where there is no such answer.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        ca: Path | None = None,
        certificate: Path | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise BadSetting(
                "the address is malformed", got=repr(address), expected="http://HOST:PORT"
            )
        tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        if tls is not None and ca is not None:
            # Whom the file names is trusted, also where that is the server itself: as over gRPC.
            tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if tls is not None and certificate is not None:
            tls.load_cert_chain(certificate)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._connections = Connections(parts.hostname, parts.port, tls, headers, timeout, retries)

    def live(self) -> bool:
        """Whether the server answers; asked once."""
        return self._says_yes("/v2/health/live")

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, would answer an inference now; asked once."""
        return self._says_yes(f"{_path(model, version)}/ready" if model else "/v2/health/ready")

    def metadata(self, model: str = "", version: str = "") -> dict[str, Any]:
        """What the server says of itself, or of a model: versions, inputs and outputs."""
        return self._json("GET", _path(model, version) if model else "/v2")

    def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """Every model and version with its `state`, and the `reason` of one that is not ready."""
        return self._json("POST", "/v2/repository/index", {"ready": ready})

    def models(self) -> list[str]:
        """The names of the models that are ready."""
        return sorted({entry["name"] for entry in self.index(ready=True)})

    def load(self, model: str) -> None:
        """Serve what the model's folders hold now; for those who may administer."""
        self._json("POST", f"/v2/repository/models/{quote(model, safe='')}/load", {})

    def unload(self, model: str) -> None:
        """Serve a model no more; for those who may administer."""
        self._json("POST", f"/v2/repository/models/{quote(model, safe='')}/unload", {})

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] = (),
        version: str = "",
        id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """Named outputs for named inputs, read-only; all outputs unless some are named."""
        return self.ask(model, inputs, outputs, version, id, parameters).outputs

    def ask(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] = (),
        version: str = "",
        id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Answer:
        """As `infer`, with the model and version that answered."""
        header, pieces = write_question(inputs, outputs, id, parameters)
        headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        request = Request("POST", f"{_path(model, version)}/infer", [header, *pieces], headers)
        response, body = self._connections.ask(request)
        try:
            return read_answer(body, int(response.headers.get(HEADER_LENGTH, len(body))))
        except (KeyError, TypeError, ValueError) as error:
            raise ServingFailed("the server gave no answer that can be read") from error

    def post(self, route: str, document: object) -> Any:
        """What a typed route such as /predict answers to a JSON document."""
        return self._json("POST", route, document)

    def generate(
        self, prompt: str, model: str | None = None, **how: Any
    ) -> Iterator[dict[str, Any]]:
        """A text while it is written: events with `text`, the last one with how it ended.

        `how` are fields of the server's /generate, such as `max_tokens`, `temperature`, `seed`.
        Leaving the loop ends the writing. Raises `ServingFailed` for a text that breaks off.
        """
        document = {"prompt": prompt, "model": model, **how, "stream": True}
        body = json.dumps({k: v for k, v in document.items() if v is not None}).encode()
        with self._connections.stream(Request("POST", "/generate", [body], _JSON)) as response:
            try:
                for line in response:
                    if line.startswith(b"data:"):
                        event = json.loads(line[5:])
                        if "error" in event:
                            raise ServingFailed(event["error"])
                        yield event
                        if "finish" in event:
                            return
            except (OSError, http.client.HTTPException) as error:
                raise ServingFailed("the text breaks off", got=type(error).__name__) from error
            raise ServingFailed("the text breaks off", got="the end of the answer")

    def close(self) -> None:
        """Close the connections that nobody uses now."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _says_yes(self, path: str) -> bool:
        try:
            self._connections.ask(Request("GET", path), retries=0)
        except (NotReady, ServingFailed, TimedOut):
            return False
        return True

    def _json(self, method: str, path: str, document: object = None) -> Any:
        body = [] if document is None else [json.dumps(document).encode()]
        _, said = self._connections.ask(Request(method, path, body, _JSON if body else {}))
        return json.loads(said)


def _path(model: str, version: str) -> str:
    named = f"/v2/models/{quote(model, safe='')}"
    return f"{named}/versions/{quote(version, safe='')}" if version else named
