"""The playground in a real Chromium: what every test of a page asks of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from serving.launch import Server, serve

PHONE = {"width": 360, "height": 740}
# What has no name that a screen reader could say.
_NAMELESS = """() => [...document.querySelectorAll("input, select, textarea, button, canvas, img")]
    .filter((node) => node.checkVisibility())
    .filter((node) => !(node.labels?.length || node.getAttribute("aria-label")
        || node.textContent.trim() || node.alt || node.title || node.closest("[aria-label]")))
    .filter((node) => node.getAttribute("alt") !== "").map((node) => node.outerHTML)"""


def chromium() -> Iterator[Browser]:
    """A browser of this machine; skips where there is none."""
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("no Chromium is installed here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextmanager
def serve_all(groups: Sequence[Sequence[Path]], **settings: Any) -> Iterator[list[Server]]:
    """A server with the playground for each group of bundles, started at the same time."""
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        made = [serve(g, port=0, grpc_port=0, playground=True, **settings) for g in groups]
        yield list(threads.map(stack.enter_context, made))


@contextmanager
def opened(
    browser: Browser, server: Server, model: str = "", refused: int = 0, **how: Any
) -> Iterator[Page]:
    """The page of a server at a model, which asks nobody else and has no error to the end.

    Chromium itself notes a request that is `refused` with this status, which is no error of ours.
    """
    problems: list[str] = []
    context = browser.new_context(**how)
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.on("console", lambda said: problems.append(said.text) if said.type != "log" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((server.http, f"blob:{server.http}"))
            else problems.append(f"asked {request.url}")
        ),
    )
    page.goto(server.http)
    page.locator(".card").first.wait_for()
    if model:
        # Attached to the page as the last step of a panel's making.
        page.select_option("#model", model)
        page.wait_for_function("() => document.querySelector('.card') !== null")
    yield page
    assert page.evaluate(_NAMELESS) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
    noted = f"Failed to load resource: the server responded with a status of {refused} "
    assert [one for one in problems if not (refused and one.startswith(noted))] == []


def alert(page: Page) -> str:
    """What the page says went wrong, once it does."""
    page.locator("#error").wait_for()
    return page.locator("#error").inner_text()


def upload(page: Page, content: bytes) -> None:
    """Choose a file of this content."""
    page.set_input_files(
        "input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": content}
    )


def drag(page: Page, selector: str, points: Sequence[tuple[float, float]]) -> None:
    """Move the pressed mouse over an element, through points of the unit square."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def tab_to(page: Page, selector: str) -> None:
    """Reach an element by the keyboard alone."""
    for _ in range(60):
        if page.evaluate(f"document.activeElement?.matches({selector!r})"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is not reached by Tab")
