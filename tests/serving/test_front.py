"""What stands before BentoML: bodies are bounded and decompressed, timers do not pile up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from serving.front import front
from serving.gate import Gate
from serving.settings import Settings
from serving.telemetry import Telemetry


class Seen:
    """A middleware that records which paths reach it."""

    def __init__(self, app: Any, paths: list[str]) -> None:
        self.app, self.paths = app, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["path"])
        await self.app(scope, receive, send)


@pytest.fixture
def seen() -> list[str]:
    return []


@pytest.fixture
def client(seen: list[str]) -> TestClient:
    async def size(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async def slow(request: Request) -> PlainTextResponse:
        await asyncio.sleep(60)
        return PlainTextResponse("late")

    mounted = Starlette(routes=[Route("/size", size, methods=["POST"])])
    app = Starlette(
        routes=[
            Route("/own", size, methods=["POST"]),
            Route("/slow", slow),
            Mount("/mounted", mounted),
        ],
        middleware=[Middleware(Seen, paths=seen)],
    )
    settings = Settings(largest_body=100, timeout=0.2)
    runtime: Any = SimpleNamespace(
        settings=settings, telemetry=Telemetry(), gate=Gate(settings), models=None, draining=False
    )
    return TestClient(front(app, lambda: runtime))


def test_only_own_routes_pass_through_the_middlewares(client: TestClient, seen: list[str]) -> None:
    assert client.post("/own", content=b"abc").text == "3"
    assert client.post("/mounted/size", content=b"abc").text == "3"
    assert client.get("/nothing").status_code == 404
    assert seen == ["/own"]


@pytest.mark.parametrize("path", ["/own", "/mounted/size"])
def test_bodies_are_bounded(client: TestClient, path: str) -> None:
    assert client.post(path, content=bytes(100)).text == "100"
    assert client.post(path, content=bytes(101)).status_code == 413
    assert client.post(path, content=iter([bytes(60), bytes(60)])).status_code == 413


def test_a_slow_answer_is_given_up(client: TestClient) -> None:
    response = client.get("/slow")
    assert response.status_code == 504
    assert response.json() == {"error": "no answer within 0.2 seconds"}
