"""The client over gRPC, for who has grpcio and protobuf: the same calls, the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np

from models.errors import (
    BadInput,
    Forbidden,
    FucinaError,
    NotReady,
    Overloaded,
    ServingFailed,
    TimedOut,
    TooLarge,
    Unauthenticated,
    UnknownModel,
    Unsupported,
)
from serving.client import RETRIES, TIMEOUT
from serving.client_messages import Answer, describe, from_bytes, to_bytes
from serving.client_retries import Unanswered, asking
from serving.inference_proto import MESSAGES, SERVICE

_ERRORS: dict[grpc.StatusCode, type[FucinaError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadInput,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: UnknownModel,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.UNAVAILABLE: NotReady,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
}
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Retries are ours, and a server that was away for a moment is soon asked again.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class GrpcClient:
    """A server at an address such as 127.0.0.1:3001; arguments and errors are `Client`'s.

    With `ca` the connection is TLS; `certificate` is then the client's, with its key.
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
        if ca is None:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        else:
            own = certificate.read_bytes() if certificate else None
            credentials = grpc.ssl_channel_credentials(ca.read_bytes(), own, own)
            self._channel = grpc.secure_channel(address, credentials, _OPTIONS)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout, self._retries = timeout, retries
        self._calls = {
            name: self._channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=MESSAGES[f"{name}Request"].SerializeToString,
                response_deserializer=MESSAGES[f"{name}Response"].FromString,
            )
            for name in ("ServerReady", "ModelReady", "ModelInfer")
        }

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, would answer an inference now; asked once."""
        call, fields = "ServerReady", {}
        if model:
            call, fields = "ModelReady", {"name": model, "version": version}
        try:
            return self._asking(call, fields, retries=0).ready
        except (NotReady, ServingFailed, TimedOut):
            return False

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
        response = self._asking(
            "ModelInfer",
            {
                "model_name": model,
                "model_version": version,
                "id": id or "",
                "parameters": {n: _parameter(n, value) for n, value in (parameters or {}).items()},
                "inputs": [describe(name, array) for name, array in inputs.items()],
                "outputs": [{"name": name} for name in outputs],
                "raw_input_contents": [bytes(to_bytes(array)) for array in inputs.values()],
            },
        )
        tensors = zip(response.outputs, response.raw_output_contents, strict=True)
        return Answer(
            response.model_name,
            response.model_version,
            {
                t.name: from_bytes({"datatype": t.datatype, "shape": list(t.shape)}, raw)
                for t, raw in tensors
            },
            response.id,
            {
                name: getattr(one, one.WhichOneof("parameter_choice"))
                for name, one in response.parameters.items()
            },
        )

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _asking(self, name: str, fields: Mapping[str, Any], retries: int | None = None) -> Any:
        request = MESSAGES[f"{name}Request"](**fields)

        def attempt(seconds: float) -> Any:
            try:
                return self._calls[name](request, timeout=seconds, metadata=self._metadata)
            except grpc.RpcError as error:
                raise _error(error) from error

        return asking(attempt, self._timeout, self._retries if retries is None else retries)


def _error(error: Any) -> Exception:
    code, details = error.code(), error.details() or ""
    # What the library itself finds too large is as large when it is asked again.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and " message larger than max" in details:
        return TooLarge(details)
    told = _ERRORS.get(code, ServingFailed)(details or code.name)
    if code not in _AGAIN:
        return told
    trailing = dict(error.trailing_metadata() or ())
    after = str(trailing.get("retry-after", "0"))
    return Unanswered(told, float(after) if after.isdecimal() else 0.0)


def _parameter(name: str, value: Any) -> dict[str, Any]:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    if type(value) not in kinds:
        raise BadInput(f"parameter {name!r} cannot be sent", got=type(value).__name__)
    return {kinds[type(value)]: value}
