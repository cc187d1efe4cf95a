"""Texts that share their steps are the texts that each would be alone, and leave nothing behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput, NotReady, Overloaded
from models.recurrence import state_names
from models.signature import Arrays
from serving.generation import ContinuousBatcher
from serving.sampling import Sampling, choose
from serving.writing import Piece, Prompt
from tests.serving.sequence_bundle import (
    ALPHABET,
    BATCH,
    CAPACITY,
    ECHO,
    LENGTH,
    MEAN,
    NETS,
    RNN,
    Net,
    endless,
    write_alone,
)

ENDLESS = {net.name: endless(net) for net in (RNN, MEAN)}
WORDS = ("the", "a cat", "", "so long a prompt that", "xyz", "one two three four five", "q")


def greedy(text: str, most: int = 30, *stop: str) -> Prompt:
    return Prompt(text, most, Sampling(0.0), stop)


@dataclass
class Engine:
    """A net that counts its calls and may be held until it is let go."""

    net: Net
    calls: list[tuple[int, int]] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    seen: list[Arrays] = field(default_factory=list)
    pace: float = 0  # seconds a step

    def __post_init__(self) -> None:
        self.free.set()

    def run(self, inputs: Arrays) -> Arrays:
        assert self.free.wait(10)
        time.sleep(self.pace)
        self.calls.append(inputs["tokens"].shape)
        self.seen.append({name: array.copy() for name, array in inputs.items()})
        return self.net.run(inputs)


def using(
    net: Net, work: Callable[[ContinuousBatcher, Engine], Coroutine[Any, Any, Any]], queue: int = 99
) -> Any:
    """What `work` returns of a batcher over the net in numpy, which is closed after it."""

    async def main() -> Any:
        engine = Engine(net)
        batcher = ContinuousBatcher(engine.run, net.signature, net.generation, queue)
        try:
            return await asyncio.wait_for(work(batcher, engine), 20)
        finally:
            engine.free.set()
            await batcher.close()

    return asyncio.run(main())


async def read(batcher: ContinuousBatcher, prompt: Prompt) -> tuple[str, Piece]:
    pieces = [piece async for piece in batcher.write(prompt)]
    return "".join(piece.text for piece in pieces), pieces[-1]


async def read_all(batcher: ContinuousBatcher, prompts: list[Prompt]) -> list[str]:
    return [text for text, _ in await asyncio.gather(*(read(batcher, p) for p in prompts))]


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_forty_texts_together_are_the_forty_texts_alone(net: Net) -> None:
    words = [*(w[:12] for w in WORDS if w), "abc", "dog", "fox jumped", "y"] * 4
    prompts = [greedy(word, 10 + i) for i, word in enumerate(words)]
    texts, calls = using(net, lambda b, e: _with_calls(read_all(b, prompts), e))
    assert texts == [write_alone(net, p.text, p.most) for p in prompts]
    assert max(rows for rows, _ in calls) == BATCH.max
    assert sum(rows for rows, _ in calls) > 2 * len(calls)  # steps were shared


async def _with_calls(work: Coroutine[Any, Any, Any], engine: Engine) -> Any:
    return await work, engine.calls


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_texts_that_come_and_go_at_any_step_are_those_alone(data: st.DataObject) -> None:
    net = data.draw(st.sampled_from([*NETS, *ENDLESS.values()]))
    texts = st.text(ALPHABET, min_size=1, max_size=12)
    prompts = data.draw(
        st.lists(st.builds(greedy, texts, st.integers(1, 40)), min_size=1, max_size=12)
    )
    delays = [data.draw(st.integers(0, 10)) for _ in prompts]

    async def work(batcher: ContinuousBatcher, engine: Engine) -> list[str]:
        async def late(prompt: Prompt, delay: int) -> str:
            await asyncio.sleep(delay / 4000)  # a step of some rows takes about so long
            return (await read(batcher, prompt))[0]

        return await asyncio.gather(*map(late, prompts, delays))

    assert using(net, work) == [write_alone(net, p.text, p.most) for p in prompts]


def test_a_seed_writes_the_same_alone_and_among_others() -> None:
    sampling = Sampling(0.8, top_k=20, top_p=0.95, seed=2**63 + 5)
    prompt = Prompt("once", 60, sampling)
    net = ENDLESS["mean"]
    others = [Prompt(word, 25 + i, Sampling(1.2, seed=i)) for i, word in enumerate(WORDS * 3)]
    (alone,) = using(net, lambda b, e: read_all(b, [prompt]))
    among = using(net, lambda b, e: read_all(b, [*others, prompt, *others]))
    assert among[len(others)] == alone
    random = np.random.default_rng(sampling.seed)
    plain = write_alone(
        net, "once", 60, lambda row: int(choose(row[None], [sampling], [random])[0])
    )
    assert plain == alone
    assert among[: len(others)] == among[len(others) + 1 :]
    other = using(net, lambda b, e: read_all(b, [Prompt("once", 60, replace(sampling, seed=1))]))
    assert other != [alone]


def test_prompts_are_read_in_chunks_together_and_then_a_token_a_step() -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> list[tuple[int, int]]:
        engine.free.clear()
        before = asyncio.create_task(read(batcher, greedy("a", 2)))
        while not batcher.active:
            await asyncio.sleep(0.01)
        texts = [greedy("abcdefghijkl", 3) for _ in range(3)]
        reading = asyncio.gather(*(read(batcher, text) for text in texts))
        await asyncio.sleep(0.05)
        engine.free.set()
        await before
        await reading
        return engine.calls

    long, short = LENGTH.max, 12 - LENGTH.max
    assert using(ENDLESS["rnn"], work) == [(1, 1), (1, 1), (3, long), (3, short), (3, 1), (3, 1)]


def test_a_full_table_goes_on_from_its_later_half() -> None:
    net = ENDLESS["mean"]
    most = 3 * CAPACITY

    async def work(batcher: ContinuousBatcher, engine: Engine) -> tuple[str, Piece]:
        return await read(batcher, greedy("begin here", most))

    text, last = using(net, work)
    assert text == write_alone(net, "begin here", most)
    assert last == Piece(last.text, most, last.cuts, "length")
    # 24 fit; each cut leaves 12 and makes room for as many.
    assert last.cuts == -(-(len("begin here") + most - 1 - CAPACITY) // (CAPACITY // 2))


def test_a_slot_keeps_nothing_of_the_text_before() -> None:
    net = ENDLESS["mean"]

    async def work(batcher: ContinuousBatcher, engine: Engine) -> tuple[str, str]:
        first = (await read(batcher, greedy("zebra", 20)))[0]
        for word in ("quite another", "and yet more", "mmmm"):
            await read(batcher, greedy(word, 23))
        count = len(engine.seen)
        again = (await read(batcher, greedy("zebra", 20)))[0]
        states = [engine.seen[count][name] for name in state_names(net.signature)]
        assert states
        assert not any(state.any() for state in states)
        return first, again

    first, again = using(net, work)
    assert first == again


def test_freed_slots_are_zero() -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> None:
        await read_all(batcher, [greedy(word, 5 + i) for i, word in enumerate(WORDS)])
        while batcher.active:
            await asyncio.sleep(0.01)
        assert not any(array.any() for array in batcher._active.arrays.values())

    using(ENDLESS["mean"], work)


@pytest.mark.parametrize("net", ENDLESS.values(), ids=lambda net: net.name)
def test_who_goes_away_takes_no_further_step(net: Net) -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> tuple[int, int]:
        engine.pace = 0.002
        leaving = batcher.write(greedy("going", 100_000))
        staying = batcher.write(greedy("staying", 50))
        async for piece in leaving:
            if piece.tokens >= 3:
                break
        leaving.cancel()
        counted = len(engine.calls)
        text = "".join([piece.text async for piece in staying])
        assert text == write_alone(net, "staying", 50)
        while batcher.active:
            await asyncio.sleep(0.01)
        total = len(engine.calls)
        await asyncio.sleep(0.05)
        assert len(engine.calls) == total
        assert [piece async for piece in leaving] == []
        alone = next(i for i, (rows, _) in enumerate(engine.calls[counted:]) if rows == 1)
        return alone, total

    after, total = using(net, work)
    assert after <= 2  # the steps that were taken while the news went round
    assert total < 80


def test_who_leaves_before_his_turn_is_never_begun() -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> list[tuple[int, int]]:
        engine.free.clear()
        first = [batcher.write(greedy("a", 2)) for _ in range(BATCH.max)]
        waiting = batcher.write(greedy("bcde", 50))
        waiting.cancel()
        engine.free.set()
        for writing in first:
            assert [piece async for piece in writing][-1].finish == "length"
        return engine.calls

    assert all(length == 1 for _, length in using(ENDLESS["rnn"], work))


def test_too_many_are_refused_and_the_others_written() -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> list[str]:
        engine.free.clear()
        texts = [asyncio.create_task(read(batcher, greedy(w, 9))) for w in ["ab"] * (BATCH.max + 2)]
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded, match="too many texts are waiting"):
            batcher.write(greedy("one more"))
        engine.free.set()
        return [(await text)[0] for text in texts]

    net = ENDLESS["rnn"]
    assert using(net, work, queue=2) == [write_alone(net, "ab", 9)] * (BATCH.max + 2)


def test_an_engine_that_fails_fails_its_texts_and_then_writes_again() -> None:
    net = ENDLESS["rnn"]

    async def work(batcher: ContinuousBatcher, engine: Engine) -> str:
        broken = True

        def run(inputs: Arrays) -> Arrays:
            if broken:
                raise ValueError("the engine is broken")
            return net.run(inputs)

        batcher._run = run
        with pytest.raises(ValueError, match="broken"):
            await read(batcher, greedy("abc"))
        broken = False
        return (await read(batcher, greedy("abc", 9)))[0]

    assert using(net, work) == write_alone(net, "abc", 9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_fail_their_own_text_only(bad: float) -> None:
    net = ENDLESS["rnn"]
    expected = write_alone(net, "ab", 3)
    bane = next(c for c in "klmnopq" if c not in expected)
    poison = net.generation.tokens.encode(bane)[0]

    def answer(inputs: Arrays, dtype: Any) -> Arrays:
        outputs = net.answer(inputs, dtype)
        outputs["logits"][(inputs["tokens"] == poison).any(1)] = bad
        return outputs

    async def work(batcher: ContinuousBatcher, engine: Engine) -> str:
        good = asyncio.create_task(read(batcher, greedy("ab", 3)))
        with pytest.raises(BadInput, match="no finite answer"):
            await read(batcher, greedy(bane))
        return (await good)[0]

    assert using(replace(net, answer=answer), work) == expected


def test_closing_ends_what_is_written() -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> None:
        writing = batcher.write(greedy("abc", 100_000))
        await anext(writing)
        await batcher.close()
        with pytest.raises(NotReady, match="ending"):
            _ = [piece async for piece in writing]
        with pytest.raises(NotReady, match="ending"):
            batcher.write(greedy("abc"))

    using(ENDLESS["rnn"], work)


def test_a_reader_that_is_late_gets_what_there_is_as_one_piece() -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> list[Piece]:
        writing = batcher.write(greedy("abc", 20))
        while batcher.active or not engine.calls:
            await asyncio.sleep(0.01)
        return [piece async for piece in writing]

    net = ENDLESS["rnn"]
    assert using(net, work) == [Piece(write_alone(net, "abc", 20), 20, 0, "length")]


FULL = "abcdefgh" * 3


def test_an_answer_ends_at_its_end_mark_and_a_source_may_fill_its_axis() -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> list[Any]:
        return [await read(batcher, greedy(text)) for text in ("abc", FULL)]

    for said, text in zip(using(ECHO, work), ("abc", FULL), strict=True):
        assert said[0] == text
        assert said[1] == Piece(said[1].text, len(text) + 1, 0, "end")


@pytest.mark.parametrize(
    ("net", "text", "said"),
    [
        (RNN, "a1", "a character that the model does not know: got '1' at place 1"),
        (RNN, "a" * 10_001, "too long: got 10001 characters, expected 1 to 10000"),
        (MEAN, "a" * (CAPACITY + 1), f"got {CAPACITY + 1} characters, expected 1 to {CAPACITY}"),
        (ECHO, "", "the prompt is empty: got 0 characters, expected 1 to 24"),
        (ECHO, "a" * 25, "too long: got 25 characters"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(net: Net, text: str, said: str) -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> None:
        with pytest.raises(BadInput, match=said):
            batcher.write(greedy(text))

    using(net, work)


def test_no_prompt_continues_the_opening() -> None:
    async def work(batcher: ContinuousBatcher, engine: Engine) -> str:
        assert batcher.write(greedy("", 1)).prompt == "\n"
        return (await read(batcher, greedy("", 12)))[0]

    assert using(RNN, work) == write_alone(RNN, "\n", 12)


def test_a_text_ends_before_its_stop_string() -> None:
    net = ENDLESS["mean"]
    whole = write_alone(net, "abc", 40)
    stop = whole[10:13]
    at = whole.index(stop)

    async def work(batcher: ContinuousBatcher, engine: Engine) -> list[Piece]:
        return [piece async for piece in batcher.write(greedy("abc", 40, stop, "\n\n\n"))]

    pieces = using(net, work)
    assert "".join(piece.text for piece in pieces) == whole[:at]
    assert pieces[-1].finish == "stop"
    assert pieces[-1].tokens == at + len(stop)


def test_every_step_is_reported() -> None:
    told: list[tuple[int, int]] = []

    async def main() -> list[tuple[int, int]]:
        engine = Engine(RNN)
        batcher = ContinuousBatcher(
            engine.run, RNN.signature, RNN.generation,
            report=lambda rows, waited, seconds: told.append((rows, len(waited))),
        )  # fmt: skip
        try:
            await asyncio.wait_for(read_all(batcher, [greedy("a", 5), greedy("b", 9)]), 20)
        finally:
            await batcher.close()
        return engine.calls

    assert told == [(rows, 0) for rows, _ in asyncio.run(main())]
