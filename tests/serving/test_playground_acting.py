"""The playground's panels of models that write and act, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import gymnasium
import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from models.signature import Arrays
from serving.launch import Server
from tests.serving import control_bundle, sequence_bundle
from tests.serving.control_bundle import GRID, Agent
from tests.serving.playground_page import PHONE, alert, chromium, opened, serve_all, tab_to

browser = pytest.fixture(chromium, scope="module")


class Balancer(Agent):
    """An agent that pushes the cart to where the pole falls, and slowly back to the middle."""

    def weights(self) -> Arrays:
        slope = np.array([0.1, 0.2, 1.0, 0.3], np.float32)
        first = np.stack([slope, -slope], 1)
        last = np.array([[-1, 1], [1, -1]], np.float32)
        return {"first": first, "last": last, "bias": np.zeros(2, np.float32)}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    folder = tmp_path_factory.mktemp("played")
    balancer = Balancer("pole", (4,), ("left", "right"), (0.0, 0.0))
    groups = {
        "sequence": [sequence_bundle.make_bundle(net, folder) for net in sequence_bundle.NETS],
        "control": [control_bundle.make_bundle(agent, folder) for agent in (balancer, GRID)],
    }
    with serve_all(list(groups.values())) as running:
        yield dict(zip(groups, running, strict=True))


def test_a_prompt_is_continued_as_it_is_written(
    browser: Browser, servers: dict[str, Server]
) -> None:
    server = servers["sequence"]
    wanted = httpx.post(
        f"{server.http}/generate",
        json={"model": "rnn", "prompt": "abc", "seed": 5, "temperature": 0.8, "stream": False},
    ).json()["text"]
    with opened(browser, server, "rnn", viewport=PHONE) as page:
        page.evaluate(
            """() => {
                window.pieces = 0;
                new MutationObserver((seen) => { window.pieces += seen.length; })
                    .observe(document.querySelector(".text span:last-child"), { childList: true });
            }"""
        )
        page.get_by_label("Prompt").fill("abc")
        page.get_by_label("Seed").fill("5")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text(re.compile(r"^Written: \d+ tokens$"))
        assert page.locator(".text").text_content() == "abc" + wanted
        assert page.evaluate("window.pieces") > 2
        stop = wanted[3:5]
        page.get_by_label("Stop before").fill(stop)
        page.get_by_role("button", name="Write").click()
        expect(page.locator(".note").last).to_contain_text("ended by stop")
        assert page.locator(".text").text_content() == "abc" + wanted[: wanted.index(stop)]


def test_a_text_is_cancelled(browser: Browser, servers: dict[str, Server]) -> None:
    with opened(browser, servers["sequence"], "rnn") as page:
        page.get_by_label("Most tokens").fill("4096")
        page.get_by_label("Temperature").fill("0")  # so it runs in a circle that has no end
        page.evaluate(
            """() => {
                const text = document.querySelector(".text span:last-child");
                new MutationObserver(() => {
                    const cancel = document.querySelector("button.main + button");
                    if (text.textContent.length >= 20) cancel.click();
                }).observe(text, { childList: true });
            }"""
        )
        page.get_by_role("button", name="Write").click()
        expect(page.locator("#status")).to_contain_text("Cancelled")
        written = page.locator(".text").text_content() or ""
        assert 20 <= len(written) < 4096
        page.wait_for_timeout(300)
        assert page.locator(".text").text_content() == written
        expect(page.get_by_role("button", name="Cancel")).to_be_disabled()


def test_a_source_is_answered(browser: Browser, servers: dict[str, Server]) -> None:
    with opened(browser, servers["sequence"], "echo", refused=400) as page:
        page.get_by_role("textbox", name="Source").fill("abc")
        page.get_by_role("button", name="Answer").click()
        expect(page.locator("#status")).to_contain_text("Written")
        assert (page.locator(".text").text_content() or "").startswith("abc")
        page.get_by_role("textbox", name="Source").fill("ABC!")
        page.get_by_role("button", name="Answer").click()
        assert "character that the model does not know" in alert(page)


def test_the_cart_moves_as_gymnasiums(browser: Browser, servers: dict[str, Server]) -> None:
    environment = gymnasium.make("CartPole-v1").unwrapped
    random = np.random.default_rng(1)
    states = random.uniform(-2, 2, (500, 4))
    actions = random.integers(0, 2, 500)
    environment.reset(seed=0)
    wanted, fallen = [], []
    for state, action in zip(states, actions, strict=True):
        environment.state = state.copy()  # pyright: ignore[reportAttributeAccessIssue]
        environment.steps_beyond_terminated = None  # pyright: ignore[reportAttributeAccessIssue]
        fallen.append(environment.step(int(action))[2])
        wanted.append(environment.state)  # pyright: ignore[reportAttributeAccessIssue]
    with opened(browser, servers["control"]) as page:
        found = page.evaluate(
            """async ([states, actions]) => {
                const { step, fallen } = await import("/playground/cartpole.js");
                const after = states.map((state, place) => step(state, actions[place]));
                return { after, fallen: after.map(fallen),
                         pushed: step(states[0], 0, 20), other: step(states[0], 1) };
            }""",
            [states.tolist(), actions.tolist()],
        )
    np.testing.assert_allclose(found["after"], wanted, rtol=0, atol=1e-12)
    assert found["fallen"] == fallen
    assert 0 < sum(fallen) < len(fallen)
    # Twenty newtons to the right of a force of ten to the left are those of the other action.
    assert found["pushed"] == found["other"]


def test_the_pole_is_balanced_and_can_be_pushed_over(
    browser: Browser, servers: dict[str, Server]
) -> None:
    with opened(browser, servers["control"], "pole", viewport=PHONE) as page:
        tab_to(page, "button.main")
        page.keyboard.press("Enter")
        steps = page.locator(".facts output").first
        page.wait_for_function(
            "() => Number(document.querySelector('.facts output').value) >= 200", timeout=60_000
        )
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        page.locator(".stage").focus()
        page.keyboard.down("ArrowRight")
        expect(page.locator("#status")).to_contain_text("The pole fell", timeout=30_000)
        page.keyboard.up("ArrowRight")
        page.get_by_role("button", name="Reset").click()
        expect(steps).to_have_text("0")


def test_an_agent_of_another_world_is_asked_by_hand(
    browser: Browser, servers: dict[str, Server]
) -> None:
    with opened(browser, servers["control"], "grid") as page:
        expect(page.locator("#status")).to_have_text(re.compile("^(up|down|west|east)$"))
        page.locator("textarea").fill("[1,")
        assert alert(page) == "Input 'observation' is not JSON yet."
