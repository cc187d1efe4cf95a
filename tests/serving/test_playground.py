"""The playground's page and routes, and its panels of classifiers, in a real browser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect
from starlette.applications import Starlette
from starlette.testclient import TestClient

from models.errors import Unsupported
from models.signature import Arrays
from pipeline.bundle import open_bundle
from serving.first_layer import feature_maps
from serving.front import front
from serving.gate import Gate
from serving.keys import add_key
from serving.launch import Server
from serving.recorded import frame, recorded
from serving.settings import Settings
from serving.telemetry import Telemetry
from tests.serving.drawn_bundle import STROKES, convolve, drawings, make_bundle
from tests.serving.playground_page import (
    PHONE,
    alert,
    chromium,
    drag,
    opened,
    serve_all,
    tab_to,
    upload,
)

browser = pytest.fixture(chromium, scope="module")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def played(drawn: Path, words: Path, level: Path, pair: Path) -> Iterator[Server]:
    with serve_all([[drawn, words, level, pair]]) as (running,):
        yield running


@pytest.fixture(scope="module")
def client(played: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=played.http) as asking:
        yield asking


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_the_page_may_load_nothing_but_its_own_files(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "<style" not in page.text
    assert "style=" not in page.text
    assert not re.search(r"<script(?![^>]* src=)", page.text)
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
        assert client.get(f"/{name}").status_code == 200
    for file in (resources.files("serving") / "playground").iterdir():
        assert client.get(f"/playground/{file.name}").content == file.read_bytes()
        # The name of a namespace, which nothing is loaded from, is the only address.
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", file.read_text()), file.name


@pytest.mark.parametrize(
    "path",
    [
        "/playground/..%2fsettings.py",
        "/playground/",
        "/playground/x.js",
        "/playground/models/a/b/c",
    ],
)
def test_nothing_else_is_read_from_the_disk(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(("on", "status"), [(True, 200), (False, 404)])
def test_without_the_flag_there_is_no_playground(on: bool, status: int) -> None:
    settings = Settings(playground=on)
    runtime: Any = SimpleNamespace(
        settings=settings,
        telemetry=Telemetry(),
        gate=Gate(settings),
        models=None,
        draining=False,
    )
    client = TestClient(front(Starlette(), lambda: runtime))
    for path in ("/", "/playground/app.js"):
        assert client.get(path).status_code == status


def test_models_are_told_with_kind_codec_and_signature(client: httpx.Client, drawn: Path) -> None:
    told = {
        model["name"]: model for model in client.get("/playground/models.json").json()["models"]
    }
    assert list(told) == ["drawn", "words", "level", "pair"]
    assert told["drawn"]["signature"] == open_bundle(drawn).manifest.signature.to_json()
    assert told["drawn"]["codec"]["classes"] == list(STROKES)
    assert "vocabulary" not in told["words"]["codec"]["text"]


def test_recorded_rows_are_those_of_the_bundle(
    client: httpx.Client, drawn: Path, level: Path
) -> None:
    found = client.get("/playground/models/drawn/samples").json()
    assert found["pictures"] == 6
    assert found["frame"] == {"share": 1.0, "light": False}
    rows = recorded(open_bundle(drawn))
    png = client.get("/playground/models/drawn/samples/2").content
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), rows[2]["image"][0] * 255)
    assert client.get("/playground/models/drawn/samples/6").status_code == 404
    assert client.get("/playground/models/level/samples/0").status_code == 404
    told = client.get("/playground/models/level/samples").json()["rows"]
    assert [row["features"] for row in told] == [
        row["features"].tolist() for row in recorded(open_bundle(level))
    ]


def test_the_frame_of_recorded_pictures_is_found() -> None:
    box = np.zeros((1, 20, 20), np.float32)
    box[0, 4:14, 8:12] = 1
    found = frame([{"image": box}], "image")
    assert found is not None
    assert (found.share, found.light) == (0.5, False)
    inverted = frame([{"image": 1 - box}], "image")
    assert inverted is not None
    assert (inverted.share, inverted.light) == (0.5, True)
    assert frame([{"image": box * 0}], "image") is None


def test_feature_maps_are_the_first_convolutions_of_the_portable_graph(
    drawn: Path, words: Path
) -> None:
    images, _ = drawings(3)
    for image in images:
        found = feature_maps(open_bundle(drawn), {"image": image[None]})
        assert found.layer == "edges"
        np.testing.assert_allclose(found.maps, convolve(image[None], np.float64)[0], atol=1e-5)
    rows: Arrays = {"tokens": np.array([[2, 3]])}
    with pytest.raises(Unsupported, match="no convolution"):
        feature_maps(open_bundle(words), rows)


def test_feature_maps_are_drawn_blue_below_zero_and_red_above(client: httpx.Client) -> None:
    image = drawings(1)[0][0]
    route = "/playground/models/drawn/first_layer"
    answer = client.post(route, content=_png(image), headers={"content-type": "image/png"})
    assert answer.headers["fucina-layer"] == "edges: 4 of 4 maps of 28 x 28"
    colours = np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
    tiles = colours.reshape(2, 30, 2, 30, 3).transpose(0, 2, 1, 3, 4).reshape(4, 30, 30, 3)
    red, _, blue = np.moveaxis(tiles[:, 1:-1, 1:-1], -1, 0)
    maps = convolve(image[None], np.float64)[0]
    maps[abs(maps) < 0.1] = 0
    assert (np.sign(red - blue) == np.sign(maps))[maps != 0].all()
    for kind, status in (("text/plain", 415), ("image/png", 400)):
        bad = client.post(route, content=b"no picture", headers={"content-type": kind})
        assert bad.status_code == status
        assert bad.json()["error"]


def test_a_digit_that_is_drawn_with_the_mouse_is_recognised(
    browser: Browser, played: Server
) -> None:
    with opened(browser, played, "drawn") as page:
        for name, points in STROKES.items():
            drag(page, ".sketch", points)
            expect(page.locator(".headline")).to_contain_text(re.compile(f"^{name} · "))
            expect(page.locator(".bars .best .name")).to_have_text(name)
            expect(page.locator("#latency")).to_have_text(re.compile(r"^[\d.]+ ms$"))
            expect(page.locator(".maps")).to_be_visible()
            page.get_by_role("button", name="Clear").click()
            expect(page.locator(".headline")).to_have_text("–")
        assert page.locator(".note", has_text="edges: 4 of 4 maps").count() == 1


def test_a_digit_is_drawn_and_recognised_by_the_keyboard_alone(
    browser: Browser, played: Server
) -> None:
    with opened(browser, played) as page:
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to the model"
        tab_to(page, ".sketch")
        assert (
            page.locator(".sketch").evaluate("node => getComputedStyle(node).outlineStyle")
            == "solid"
        )
        for _ in range(12):
            page.keyboard.press("ArrowUp")
        page.keyboard.press("Space")
        for _ in range(24):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("Space")
        expect(page.locator(".headline")).to_contain_text(re.compile("^1 · "))
        page.keyboard.press("Delete")
        expect(page.locator(".headline")).to_have_text("–")
        tab_to(page, ".thumb[data-number='2']")  # a recorded 7
        page.keyboard.press("Enter")
        expect(page.locator(".headline")).to_contain_text(re.compile("^7 · "))


def test_uploads_are_read_and_refused_in_words(browser: Browser, played: Server) -> None:
    image = drawings(3)[0][2]
    with opened(browser, played) as page:
        upload(page, _png(image))
        expect(page.locator(".headline")).to_contain_text(re.compile("^7 · "))
    with opened(browser, played, refused=400) as page:
        upload(page, b"no picture")
        assert alert(page).startswith("the image cannot be read")


def test_text_is_read_while_it_is_typed(browser: Browser, played: Server) -> None:
    with opened(browser, played, "words", viewport=PHONE) as page:
        page.get_by_label("It is read while you type").press_sequentially("call win")
        expect(page.locator(".headline")).to_contain_text("offer")
        page.get_by_label("It is read while you type").fill("see you")
        expect(page.locator(".headline")).to_contain_text("chat")


def test_numbers_are_moved_by_sliders(browser: Browser, played: Server, level: Path) -> None:
    rows = recorded(open_bundle(level))
    slope = np.array([2, 1, -3])
    with opened(browser, played, "level", viewport=PHONE) as page:
        first = float(rows[0]["features"] @ slope)
        expect(page.locator(".headline")).to_have_text(f"{first:#.4g} mg/dl")
        page.get_by_role("button", name="Next recorded row").click()
        second = float(rows[1]["features"] @ slope)
        expect(page.locator(".headline")).to_have_text(f"{second:#.4g} mg/dl")
        page.get_by_label("features 1").focus()
        page.keyboard.press("End")
        expect(page.locator(".headline")).not_to_have_text(f"{second:#.4g} mg/dl")
        page.select_option("#model", "pair")  # arrays in, arrays out
        expect(page.locator(".headline")).to_have_text("Arrays")
        expect(page.locator("dt")).to_have_text(["total", "count"])


def test_a_key_is_asked_for_and_kept_in_the_page_only(
    browser: Browser, tmp_path: Path, level: Path, words: Path
) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "visitor", models=("level",))
    with serve_all([[level, words]], api_keys=keys) as (server,):
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.http)
        assert "needs a key" in alert(page)
        assert page.evaluate("document.activeElement.id") == "secret"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        assert "needs a key" in alert(page)
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        expect(page.locator(".headline")).to_contain_text("mg/dl")
        expect(page.locator("#key")).to_be_hidden()
        assert page.locator("#model").inner_text() == "level"  # of which the key may ask
        kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert kept == [0, 0, ""]
        assert key not in page.content()
        context.close()


def test_colours_are_told_apart_on_both_grounds() -> None:
    """Contrast by WCAG 2.2: 4.5 for text, 3 for what is only seen."""
    style = (resources.files("serving") / "playground" / "style.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w+);", scheme))
        for ground in ("ground", "card"):
            for text in ("ink", "soft"):
                assert _contrast(colours[text], colours[ground]) >= 4.5
            for mark in ("accent", "second"):
                assert _contrast(colours[mark], colours[ground]) >= 3
        assert _contrast(colours["on-accent"], colours["accent"]) >= 4.5
        assert _contrast(colours["bad"], colours["bad-ground"]) >= 4.5


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        values = np.frombuffer(bytes.fromhex(digits), np.uint8) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
