"""The typed routes of a BentoML service as plain coroutines, without BentoML's way to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from bentoml import Service, get_current_service
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]


def typed_routes(service: Service[Any]) -> Mapping[str, Endpoint]:
    """What answers a POST to each typed route, by path.

    The request is read and answered by the same functions that BentoML would call.
    """
    return {
        api.route: partial(_ask, api.input_spec, api.func, tuple(api.input_spec.model_fields))
        for api in service.apis.values()
    }


async def _ask(
    spec: Any, answer: Callable[..., Awaitable[Response]], fields: tuple[str, ...], request: Request
) -> Response:
    # The reader of a route knows its own format: it needs none of BentoML's serializers.
    asked = await spec.from_http_request(request, None)
    return await answer(get_current_service(), **{name: getattr(asked, name) for name in fields})
