"""A text ends before its stop string, however it is cut, and no more than needed is held back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.stop_strings import StopStrings

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(st.lists(st.text("ab", max_size=5)), STOPS)
def test_a_text_is_stopped_alike_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    def stopped(cut: list[str]) -> tuple[str, bool]:
        strings, said = StopStrings(stops), ""
        for piece in cut:
            more, ended = strings.feed(piece)
            said += more
            assert not any(stop in said for stop in stops)
            if ended:
                return said, True
        return said + strings.flush(), False

    text = "".join(pieces)
    ends = {text.find(stop) + len(stop): stop for stop in stops if stop in text}
    if ends:
        end = min(ends)
        longest = max(len(stop) for stop in stops if text[:end].endswith(stop))
        expected = text[: end - longest], True
    else:
        expected = text, False
    assert stopped(pieces) == stopped([text]) == stopped(list(text)) == expected


@given(st.text("ab", max_size=12), STOPS)
def test_no_more_is_held_back_than_might_begin_a_stop_string(text: str, stops: list[str]) -> None:
    strings = StopStrings(stops)
    said, ended = strings.feed(text)
    held = text[len(said) :]
    if not ended:
        assert said + held == text
        assert not held or any(stop.startswith(held) for stop in stops)
