"""A codec that its engine cannot follow is refused, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serving.stepwise import generation_problem
from tests.serving.sequence_bundle import ECHO, MEAN, NETS, RNN, Net


def test_sound_nets_write() -> None:
    for net in NETS:
        assert generation_problem(net.generation, net.signature) is None


@pytest.mark.parametrize(
    ("net", "changes", "said"),
    [
        (RNN, {"logits": "next_hidden"}, "logits that are no output"),
        (RNN, {"logits": "nothing"}, "logits that are no output"),
        (RNN, {"tokens": RNN.generation.tokens.model_copy(update={"name": "x"})}, "no input"),
        (RNN, {"tokens": RNN.generation.tokens.model_copy(update={"alphabet": ("a",)})}, "logits"),
        (RNN, {"opening": "A"}, "an opening that it cannot read"),
        (MEAN, {"opening": "a" * 30}, "an opening that does not fit"),
        (ECHO, {"source": None}, "does not give each input"),
    ],
)
def test_a_codec_that_cannot_write_is_refused(net: Net, changes: Any, said: str) -> None:
    problem = generation_problem(net.generation.model_copy(update=changes), net.signature)
    assert problem is not None
    assert said in problem[0]


def test_an_engine_without_steps_cannot_write() -> None:
    still = replace(RNN.signature, recurrence=None)
    problem = generation_problem(RNN.generation, still)
    assert problem is not None
    assert "does not go step by step" in problem[0]
