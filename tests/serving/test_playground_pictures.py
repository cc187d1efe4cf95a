"""The playground's panels of models that segment and draw, in a real browser."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from serving.launch import Server
from tests.serving import (
    generative_bundle,
    segmentation_bundle,
)
from tests.serving.playground_page import PHONE, chromium, drag, opened, serve_all, tab_to, upload
from tests.serving.segmentation_bundle import CLASSES, encoded, picture

browser = pytest.fixture(chromium, scope="module")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    folder = tmp_path_factory.mktemp("played")
    groups = {
        "segmentation": [segmentation_bundle.make_bundle(folder, "cells", 3)],
        "generative": [
            generative_bundle.make_bundle(folder, "finder", generative_bundle.FINDER),
            generative_bundle.make_bundle(folder, "drawer", generative_bundle.DRAWER),
        ],
    }
    with serve_all(list(groups.values())) as running:
        yield dict(zip(groups, running, strict=True))


def _pixels(page: Page, selector: str) -> np.ndarray:
    """What a canvas or a picture shows, as RGBA."""
    page.wait_for_function("s => document.querySelector(s).naturalWidth !== 0", arg=selector)
    found: dict[str, Any] = page.evaluate(
        """async (selector) => {
            const node = document.querySelector(selector);
            if (node.decode) await node.decode();
            const width = node.naturalWidth ?? node.width;
            const height = node.naturalHeight ?? node.height;
            const canvas = new OffscreenCanvas(width, height).getContext("2d");
            canvas.drawImage(node, 0, 0);
            return { width, height, data: [...canvas.getImageData(0, 0, width, height).data] };
        }""",
        selector,
    )
    return np.array(found["data"], np.uint8).reshape(found["height"], found["width"], 4)


def test_a_picture_gets_its_mask(browser: Browser, servers: dict[str, Server]) -> None:
    server, file = servers["segmentation"], encoded(picture(70, 90))
    asked = {"files": {"image": file}, "data": {"answer": "json"}}
    said = httpx.post(f"{server.http}/segment_image", **asked).json()
    colours = np.array([list(bytes.fromhex(one["colour"][1:])) for one in said["classes"]])
    with opened(browser, server, viewport=PHONE) as page:
        upload(page, file)
        page.locator(".overlay").wait_for()
        shown = _pixels(page, ".overlay canvas:last-child")
        assert np.array_equal(shown[..., :3], colours[said["map"]])
        under = _pixels(page, ".overlay canvas:first-child")[..., :3]
        assert np.array_equal(under, np.asarray(Image.open(io.BytesIO(file))))
        for one in said["classes"]:
            value = one["share"] * 100
            words = f"{value:.1f} %" if value < 10 else f"{value:.0f} %"
            expect(page.locator("li", has_text=one["name"]).locator(".said")).to_have_text(words)
        tab_to(page, "input[type=range]")
        page.keyboard.press("Home")
        assert page.locator(".overlay canvas").last.evaluate("node => node.style.opacity") == "0"
        page.get_by_label(CLASSES[0]).uncheck()
        hidden = _pixels(page, ".overlay canvas:last-child")[..., 3] == 0
        assert np.array_equal(hidden, np.array(said["map"]) == 0)
        page.locator(".thumb").first.click()
        size = re.compile(r"of \d+ x \d+ pixels$")
        expect(page.locator("#status")).to_have_text(size)


def test_latents_move_the_picture(browser: Browser, servers: dict[str, Server]) -> None:
    server = servers["generative"]
    with opened(browser, server, "finder", viewport=PHONE) as page:
        first = _pixels(page, "img.drawn")
        page.get_by_label("latent 2").last.focus()
        second = _new(page, "img.drawn", lambda: page.keyboard.press("End"))
        asked = {"model": "finder", "latent": [0, 3, 0, 0], "format": "png", "scale": 4}
        wanted = httpx.post(f"{server.http}/decode", json=asked).content
        assert np.array_equal(second[..., 0], np.asarray(Image.open(io.BytesIO(wanted))))
        assert not np.array_equal(first, second)
        tab_to(page, ".plane")
        page.keyboard.press("ArrowRight")
        expect(page.locator(".sliders output").first).to_have_text("0.15")
        drag(page, ".plane", [(0.5, 0.5), (1.0, 0.0)])
        expect(page.locator(".sliders output").first).to_have_text("3.00")
        page.get_by_role("button", name="Traverse this code").click()
        expect(page.locator("#status")).to_have_text("Traversed")


def test_a_seed_draws_the_same_again(browser: Browser, servers: dict[str, Server]) -> None:
    with opened(browser, servers["generative"], "drawer") as page:
        page.get_by_label("Seed").fill("7")
        many = page.get_by_role("button", name="16 samples")
        seen = []
        for label in ("ring", "ring", "bar"):
            page.get_by_label("Class").select_option(label)
            seen.append(_new(page, ".card:nth-child(3) img", many.click))
        assert np.array_equal(seen[0], seen[1])
        assert not np.array_equal(seen[0], seen[2])


def _new(page: Page, selector: str, act: Callable[[], None]) -> np.ndarray:
    """What a picture shows once an act has changed it."""
    node = page.locator(selector).first
    old = node.get_attribute("src") or ""
    act()
    expect(node).to_have_attribute("src", re.compile(f"^blob:(?!{re.escape(old[5:])}$)"))
    return _pixels(page, selector)


def test_a_picture_is_reconstructed_and_judged(
    browser: Browser, servers: dict[str, Server]
) -> None:
    server = servers["generative"]
    image = generative_bundle.encoded(generative_bundle.pictures(1)[0])
    judged = httpx.post(
        f"{server.http}/anomaly_image", files={"image": image}, data={"model": "finder"}
    ).json()
    code = httpx.post(
        f"{server.http}/encode_image", files={"image": image}, data={"model": "finder"}
    ).json()
    with opened(browser, server, "finder") as page:
        upload(page, image)
        verdict = "An anomaly" if judged["pictures"][0]["anomalous"] else "Nothing unusual"
        expect(page.locator(".headline")).to_contain_text(verdict)
        expect(page.locator("img.pair")).to_be_visible()
        assert _pixels(page, "img.pair").shape[:2] == (224, 112)
        shown = [f"{value:.2f}" for value in code["latent"][0]]
        expect(page.locator(".sliders output")).to_have_text(shown)  # however far out they lie
