"""Continuous batching: the texts that one engine writes at a time share its steps.

A text joins at any step and leaves at any step. Its state, an RNN's hidden state or a key/value
cache, stays in a slot of preallocated arrays until then, and is zeroed after. The slots in use
are the first ones, so that the engine reads them in place.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from models.codec import END, FIRST_CHARACTER, START, Generation
from models.errors import BadInput, NotReady, Overloaded
from models.recurrence import capacity, start
from models.signature import Arrays, Axis, Signature
from serving.batcher import Report
from serving.sampling import choose
from serving.stop_strings import StopStrings
from serving.writing import Finish, Outcome, Piece, Prompt, Writing

QUEUE = 512
LEAD = 8  # steps that the engine may be ahead of the event loop, lest it starve it
LONGEST_PROMPT = 10_000  # characters, of a net whose state has no capacity


@dataclass(eq=False)
class _Row:
    """A text as the engine's thread knows it."""

    writing: Writing
    prompt: Prompt
    pending: list[int]  # ids that the engine has still to read
    context: list[int]  # all that it has read or will, since the context was cut
    source: np.ndarray | None
    random: np.random.Generator
    stops: StopStrings
    position: int = 0
    tokens: int = 0
    cuts: int = 0
    ended: bool = False


@dataclass
class _Slots:
    """The rows that are being written, row i in slot i of each array [slots, ...]."""

    arrays: Arrays
    rows: list[_Row] = field(default_factory=list)

    def add(self, row: _Row) -> None:
        self.rows.append(row)

    def remove(self, place: int) -> None:
        """Free a slot: the last row moves into it, and what the last one held is zeroed."""
        last = len(self.rows) - 1
        if place != last:
            self.rows[place] = self.rows[last]
            for array in self.arrays.values():
                array[place] = array[last]
        self.rows.pop()
        self.clear(last)

    def clear(self, place: int) -> None:
        for array in self.arrays.values():
            array[place] = 0


class ContinuousBatcher:
    """Every text that one model writes, for one event loop; `run` is called from one thread.

    Prompts are read in chunks, those of one length together, between steps of one token each.
    A net with tables of limited capacity goes on from the later half of its context when they are
    full, which is read again; one that answers a source ends there. A text of one seed is the same
    among others as alone, up to the last bits in which an engine's batches of two sizes may differ.
    """

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        signature: Signature,
        generation: Generation,
        queue: int = QUEUE,
        report: Report | None = None,
    ) -> None:
        assert signature.recurrence is not None
        assert signature.batch is not None
        self._run = run
        self._generation = generation
        self._states = signature.recurrence.states
        self._slots = signature.batch.max
        self._longest = signature.axes[signature.recurrence.axis].max
        self._capacity = capacity(signature)
        arrays = start(signature, self._slots)
        self._source: Axis | None = None
        if generation.source is not None:
            axis = signature.input(generation.source.name).shape[1]
            self._source = axis if isinstance(axis, Axis) else Axis("source", axis, axis, axis)
            arrays[generation.source.name] = np.zeros((self._slots, self._source.max), np.int64)
        self._active = _Slots(arrays)
        self._queue = queue
        self._report = report
        self._waiting: deque[_Row] = deque()
        self._lock = threading.Lock()  # over what the loop and the engine's thread both change
        self._working = self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lead = threading.Semaphore(LEAD)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fucina-writer")

    @property
    def active(self) -> bool:
        """Whether any text is being written."""
        return self._working

    def write(self, prompt: Prompt) -> Writing:
        """Begin a text; it is to be read, or cancelled.

        Raises `BadInput` for a prompt that the model cannot take, and `Overloaded` when too many
        are waiting.
        """
        row = self._read(prompt)
        self._loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise NotReady("the server is ending")
            if len(self._waiting) + len(self._active.rows) >= self._slots + self._queue:
                raise Overloaded("too many texts are waiting", got=self._queue, fix="ask again")
            self._waiting.append(row)
            if not self._working:
                self._working = True
                self._thread.submit(self._work)
        return row.writing

    async def close(self) -> None:
        """End every text where it is, then the thread."""
        with self._lock:
            self._closed = True
            left = [*self._waiting, *self._active.rows]
        for row in left:
            row.ended = True
            row.writing.deliver(NotReady("the server is ending"))
        await asyncio.to_thread(self._thread.shutdown)

    def _read(self, prompt: Prompt) -> _Row:
        text = prompt.text if self._source else prompt.text or self._generation.opening
        ids = (self._generation.source or self._generation.tokens).encode(text).tolist()
        limit = self._source.max if self._source else self._capacity or LONGEST_PROMPT
        if not 1 <= len(ids) <= limit:
            raise BadInput(
                "the prompt is too long" if ids else "the prompt is empty",
                got=f"{len(ids)} characters",
                expected=f"1 to {limit}",
            )
        source = np.array(ids, np.int64) if self._source else None
        tokens = [START] if self._source else ids
        seed = prompt.sampling.seed
        return _Row(
            Writing(text, len(ids), seed), prompt, tokens, list(tokens), source,
            np.random.default_rng(seed), StopStrings(prompt.stop),
        )  # fmt: skip

    def _work(self) -> None:
        """Step until nobody waits; runs in the engine's thread."""
        while self._admit():
            said: list[tuple[Writing, Outcome]] = []
            try:
                self._step(said)
            except Exception as error:  # of any library: handed to all who were waiting for it
                said += [(row.writing, error) for row in self._active.rows if not row.ended]
                for row in self._active.rows:
                    row.ended = True
            if said:
                assert self._loop is not None
                self._lead.acquire(timeout=1)  # of a loop that has ended nothing is to be expected
                self._loop.call_soon_threadsafe(self._deliver, said)

    def _admit(self) -> bool:
        """Let rows out that have ended and others in; whether there are any."""
        rows = self._active.rows
        for place in reversed(range(len(rows))):
            if rows[place].ended or rows[place].writing.cancelled:
                self._active.remove(place)
        with self._lock:
            while self._waiting and len(rows) < self._slots:
                row = self._waiting.popleft()
                if row.ended or row.writing.cancelled:
                    continue
                self._active.add(row)
                if row.source is not None and self._generation.source is not None:
                    sources = self._active.arrays[self._generation.source.name]
                    sources[len(rows) - 1, : len(row.source)] = row.source
            self._working = bool(rows)
        return self._working

    def _step(self, said: list[tuple[Writing, Outcome]]) -> None:
        """One token for each row that writes, one chunk for each that still reads its prompt."""
        groups: dict[int, list[int]] = {}
        for place, row in enumerate(self._active.rows):
            if self._capacity and row.position + len(row.pending) > self._capacity:
                self._cut(place, row)
            groups.setdefault(min(len(row.pending), self._longest), []).append(place)
        for length, places in groups.items():
            rows = [self._active.rows[place] for place in places]
            logits = self._advance(rows, places, length)
            ready = [number for number, row in enumerate(rows) if not row.pending]
            if ready:
                self._choose([rows[number] for number in ready], logits[ready, -1], said)

    def _advance(self, rows: list[_Row], places: list[int], length: int) -> np.ndarray:
        """The engine reads the next `length` ids of these rows; logits [rows, length, ids]."""
        first, count = places[0], len(places)
        together = places[-1] - first + 1 == count  # a view where it can be, else a copy
        chosen = slice(first, first + count) if together else places
        arrays = self._active.arrays
        inputs = {name: array[chosen] for name, array in arrays.items()}
        inputs[self._generation.tokens.name] = np.array(
            [row.pending[:length] for row in rows], np.int64
        )
        if self._source is not None and self._generation.source is not None:
            longest = max(len(row.source) for row in rows if row.source is not None)
            name, width = self._generation.source.name, max(longest, self._source.min)
            inputs[name] = np.ascontiguousarray(inputs[name][:, :width])
        begun = time.perf_counter()
        outputs = self._run(inputs)
        if self._report is not None:
            self._report(count, (), time.perf_counter() - begun)
        after = np.array([row.position for row in rows])[:, None] + np.arange(length)
        for state in self._states:
            new = outputs[state.output]
            if state.position is None:
                arrays[state.input][chosen] = new
            else:
                table = arrays[state.input]
                table[np.array(places)[:, None], :, after] = new.transpose(0, 2, 1, 3)
        for name in {state.position for state in self._states if state.position is not None}:
            arrays[name][chosen] += length
        for row in rows:
            del row.pending[:length]
            row.position += length
        return outputs[self._generation.logits]

    def _choose(
        self, rows: list[_Row], logits: np.ndarray, said: list[tuple[Writing, Outcome]]
    ) -> None:
        """The next token of each row, and what may be said of it."""
        logits[:, :END] = -np.inf  # padding and START are never written
        sound = np.isfinite(logits.max(1))
        if not sound.all():
            for row in (row for row, good in zip(rows, sound, strict=True) if not good):
                row.ended = True
                said.append((row.writing, BadInput("the model has no finite answer to this text")))
            rows = [row for row, good in zip(rows, sound, strict=True) if good]
            logits = logits[sound]
        ids = choose(logits, [row.prompt.sampling for row in rows], [row.random for row in rows])
        alphabet = self._generation.tokens.alphabet
        for row, token in zip(rows, ids.tolist(), strict=True):
            row.tokens += 1
            text = ""
            finish: Finish | None = None
            if token == END:
                finish = "end"
            else:
                text, stopped = row.stops.feed(alphabet[token - FIRST_CHARACTER])
                if stopped:
                    finish = "stop"
                elif row.tokens >= row.prompt.most or self._full(row):
                    finish = "length"
                row.pending = [token]
                row.context.append(token)
            if finish in ("end", "length"):
                text += row.stops.flush()
            if text or finish:
                row.ended |= finish is not None
                said.append((row.writing, Piece(text, row.tokens, row.cuts, finish)))

    def _full(self, row: _Row) -> bool:
        """Whether an answer to a source must end: to cut it would lose its beginning."""
        return row.source is not None and row.position == self._capacity

    def _cut(self, place: int, row: _Row) -> None:
        """Begin again with the later half of the context, where tables are full."""
        assert self._capacity is not None
        row.context = row.context[-max(self._capacity // 2, 1) :]
        row.pending = list(row.context)
        row.position = 0
        row.cuts += 1
        self._active.clear(place)

    def _deliver(self, said: list[tuple[Writing, Outcome]]) -> None:
        """Hand the pieces of one step to their readers, in the event loop."""
        self._lead.release()
        for writing, piece in said:
            writing.deliver(piece)
