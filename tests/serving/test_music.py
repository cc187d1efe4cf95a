"""ABC notation becomes MIDI, and whatever else becomes one clear refusal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.errors import BadInput, NotReady
from serving import music
from serving.launch import Server, serve
from serving.music import LONGEST_TUNE, check_music, first_tune, read_tune, to_midi
from tests.serving.sequence_bundle import ECHO, RNN, TUNE, make_bundle

HEAD = "X:1\nT:Scale\nM:4/4\nL:1/8\nK:C\n"


def notes(midi: bytes) -> list[tuple[int, int]]:
    """(ticks since the last event, pitch) of each note that begins, read from the bytes alone."""
    assert midi[:4] == b"MThd"
    found: list[tuple[int, int]] = []
    place = 8 + int.from_bytes(midi[4:8])
    while place < len(midi):
        assert midi[place : place + 4] == b"MTrk"
        end = place + 8 + int.from_bytes(midi[place + 4 : place + 8])
        place += 8
        status, since = 0, 0
        while place < end:
            delta, place = _variable(midi, place)
            since += delta
            if midi[place] & 0x80:
                status = midi[place]
                place += 1
            if status == 0xFF:
                size, place = _variable(midi, place + 1)
                place += size
            elif status >> 4 in (0xC, 0xD):
                place += 1
            else:
                if status >> 4 == 9 and midi[place + 1]:
                    found.append((since, midi[place]))
                since = 0 if status >> 4 == 9 and midi[place + 1] else since
                place += 2
    return found


def _variable(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    while True:
        byte = data[place]
        value, place = value << 7 | byte & 0x7F, place + 1
        if not byte & 0x80:
            return value, place


def test_a_tune_is_its_notes_in_their_lengths() -> None:
    played = notes(to_midi(HEAD + "CDEF G2A2|B4 c4|\n"))
    assert [pitch for _, pitch in played] == [60, 62, 64, 65, 67, 69, 71, 72]
    gaps = [gap for gap, _ in played[1:]]
    eighth = gaps[0]
    assert gaps == [eighth * n for n in (1, 1, 1, 1, 2, 2, 4)]


def test_a_key_sharpens_its_notes() -> None:
    sharp = notes(to_midi("X:1\nM:4/4\nL:1/4\nK:D\nCDEF|\n"))
    assert [pitch for _, pitch in sharp] == [61, 62, 64, 66]


def test_the_first_tune_is_played() -> None:
    two = f"{HEAD}CDEF|\n\nX:2\nK:C\nGGGG|\n"
    assert first_tune(two) == f"{HEAD}CDEF|\n"
    assert len(notes(to_midi(two))) == 4


def test_a_child_process_reads_the_same() -> None:
    assert read_tune(TUNE) == to_midi(TUNE)
    with pytest.raises(BadInput, match="cannot be read as ABC notation: got no active"):
        read_tune("hello")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as ABC notation"),
        ("X:1\nK:C\nCDE", "cannot be read as ABC notation"),  # neither meter nor length
        (HEAD, "the tune holds no note"),
        (HEAD + "[" * 100, "cannot be read as ABC notation"),
        (HEAD + "C/0 D", "cannot be read as ABC notation"),
        ("X:1\nM:0/0\nL:1/0\nK:C\nCDE", "cannot be read as ABC notation"),
        ("C" * LONGEST_TUNE, "the tune is too long: got 4001 characters, expected at most 4000"),
    ],
)
def test_what_is_no_tune_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        to_midi(text)


def test_a_tune_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(music, "PATIENCE", 0.01)
    start = time.monotonic()
    with pytest.raises(BadInput, match="takes too long"):
        read_tune(TUNE)
    assert time.monotonic() - start < 5


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_music()
    monkeypatch.setitem(sys.modules, "music21", None)
    monkeypatch.setattr(music.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotReady, match=r"'music21': got not installed; pip install 'fucina\[music"):
        check_music()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, forbidden_imports: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("music")
    bundles = [make_bundle(net, folder, media="abc") for net in (ECHO, RNN)]
    with serve(bundles, port=0, grpc_port=0) as running:
        yield running


def test_the_service_answers_a_midi_file(server: Server, forbidden_imports: Path) -> None:
    request = {"model": "echo", "prompt": TUNE, "temperature": 0, "format": "midi", "seed": 3}
    answer = httpx.post(f"{server.http}/generate", json=request, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "audio/midi"
    assert answer.headers["content-disposition"] == 'attachment; filename="tune.mid"'
    assert answer.headers["fucina-seed"] == "3"
    assert answer.content == to_midi(TUNE)
    assert not forbidden_imports.exists(), forbidden_imports.read_text()


def test_the_prompt_is_a_part_of_a_tune_that_continues_it(server: Server) -> None:
    begun = {"model": "rnn", "prompt": TUNE, "temperature": 0, "max_tokens": 1, "format": "midi"}
    answer = httpx.post(f"{server.http}/generate", json=begun, timeout=60)
    assert answer.status_code == 200, answer.text
    assert len(notes(answer.content)) >= 6


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"stream": True}, "a MIDI file is not streamed"),
        ({"prompt": "no tune"}, "cannot be read as ABC notation"),
    ],
)
def test_what_cannot_be_played_is_refused(
    server: Server, request_: dict[str, object], said: str
) -> None:
    request = {"model": "echo", "prompt": TUNE, "temperature": 0, "format": "midi"} | request_
    answer = httpx.post(f"{server.http}/generate", content=json.dumps(request), timeout=60)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
