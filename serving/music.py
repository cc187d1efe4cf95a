"""A tune in ABC notation, by anybody and of any content, as a Standard MIDI File.

The library that reads it takes time that grows with the square of the text, and holds the whole
process meanwhile: a service reads tunes in a child process that has a time limit.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading

from models.errors import BadInput, NotReady

LONGEST_TUNE = 4_000  # characters; of a thousand Irish tunes the longest has a third
PATIENCE = 20.0
# Where a line begins another tune.
_NEXT_TUNE = re.compile(r"\n\s*(?=X:)")


def check_music() -> None:
    """Raise `NotReady` unless what reads ABC notation is installed."""
    if importlib.util.find_spec("music21") is None:
        raise NotReady(
            "a MIDI file needs the package 'music21'", got="not installed",
            fix="pip install 'fucina[music]'",
        )  # fmt: skip


def first_tune(text: str) -> str:
    """The text up to where a second tune begins. Raises `BadInput` where that is too long."""
    tune = _NEXT_TUNE.split(text.strip(), maxsplit=1)[0].strip() + "\n"
    if len(tune) > LONGEST_TUNE:
        raise BadInput(
            "the tune is too long",
            got=f"{len(tune)} characters",
            expected=f"at most {LONGEST_TUNE}",
        )
    return tune


def to_midi(text: str) -> bytes:
    """The first tune of a text as a MIDI file. Raises `BadInput` for what is no tune."""
    from music21 import converter  # heavy: a service that writes no music does not wait for it
    from music21.midi.translate import streamToMidiFile

    tune = first_tune(text)
    try:
        score = converter.parse(tune, format="abc")
        midi = streamToMidiFile(score).writestr() if score.recurse().notes else b""
    except Exception as error:  # a parser of free text raises many kinds
        raise BadInput(
            "the text cannot be read as ABC notation",
            got=(str(error) or type(error).__name__)[:200],
        ) from error
    if not midi:
        raise BadInput("the tune holds no note", got=repr(tune[:60]), expected="ABC notation")
    return midi


def read_tune(text: str) -> bytes:
    """`to_midi` in a child process, one at a time; `BadInput` also where it takes too long."""
    with _ONE_AT_A_TIME:
        try:
            child = subprocess.run(
                [sys.executable, "-m", __name__], input=first_tune(text).encode(), timeout=PATIENCE,
                capture_output=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BadInput("the tune takes too long to read", expected="a simpler one") from error
    said = child.stderr.decode(errors="replace").strip().splitlines()
    if child.returncode == _REFUSED:
        raise BadInput(said[-1])
    if child.returncode:
        raise RuntimeError("\n".join(said))
    return child.stdout


_REFUSED = 3
_ONE_AT_A_TIME = threading.Lock()


def main() -> None:
    """Read a tune from standard input and write the MIDI file to standard output."""
    try:
        sys.stdout.buffer.write(to_midi(sys.stdin.buffer.read().decode()))
    except BadInput as error:
        print(error, file=sys.stderr)
        sys.exit(_REFUSED)


if __name__ == "__main__":
    main()
