"""Attention and its blocks: torch's own layers with the same weights, and laws of masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.attention import (
    Attention,
    Block,
    Embedding,
    Past,
    Stack,
    attend,
    causal,
    readable,
    sinusoids,
)
from models.errors import BadSetting

SIZE, HEADS, INNER = 24, 4, 40


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(module: nn.Module) -> nn.Module:
    """In fp64, in evaluation mode, with every weight drawn anew, those that begin at 0 or 1 too."""
    module.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def give_weights(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    parts = (ours.queries, ours.keys, ours.values)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())


def torchs_layer(
    block: Block, norm_first: bool
) -> nn.TransformerEncoderLayer | nn.TransformerDecoderLayer:
    """torch's layer of the same kind, with the block's weights."""
    kind = nn.TransformerEncoderLayer if block.cross is None else nn.TransformerDecoderLayer
    theirs = kind(SIZE, HEADS, INNER, 0.0, batch_first=True, norm_first=norm_first).double().eval()
    give_weights(block.attention, theirs.self_attn)
    if isinstance(theirs, nn.TransformerDecoderLayer):
        assert block.cross is not None
        give_weights(block.cross, theirs.multihead_attn)
    theirs.linear1.load_state_dict(block.dense[0].state_dict())
    theirs.linear2.load_state_dict(block.dense[2].state_dict())
    for number, norm in enumerate(block.norms, 1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
    return theirs


lengths = st.integers(1, 9)


@given(rows=st.integers(1, 3), length=lengths, memory=lengths, seed=st.integers(0, 99))
def test_attention_is_torchs_multi_head_attention(
    rows: int, length: int, memory: int, seed: int
) -> None:
    ours = Attention(SIZE, HEADS)
    shaken(ours)
    theirs = nn.MultiheadAttention(SIZE, HEADS, batch_first=True).double().eval()
    give_weights(ours, theirs)
    x, other = draw(rows, length, SIZE, seed=seed), draw(rows, memory, SIZE, seed=seed + 1)
    read = readable(torch.randint(0, 2, (rows, memory)))
    expected, _ = theirs(x, other, other, key_padding_mask=~read)
    close(ours(x, *ours.project(other), read[:, None, None]), expected)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
@given(rows=st.integers(1, 3), length=lengths, memory=lengths, seed=st.integers(0, 99))
def test_a_block_is_torchs_layer(
    norm_first: bool, crossed: bool, rows: int, length: int, memory: int, seed: int
) -> None:
    block = Block(SIZE, HEADS, INNER, 0.0, norm_first, crossed)
    shaken(block)
    theirs = torchs_layer(block, norm_first)
    x, other = draw(rows, length, SIZE, seed=seed), draw(rows, memory, SIZE, seed=seed + 1)
    if isinstance(theirs, nn.TransformerDecoderLayer):
        read, seen = readable(torch.randint(0, 2, (rows, memory))), causal(length, x.device)
        expected = theirs(
            x, other, tgt_mask=~seen, memory_key_padding_mask=~read, tgt_is_causal=False
        )
        close(block(x, seen, None, other, read[:, None, None])[0], expected)
    else:
        read = readable(torch.randint(0, 2, (rows, length)))
        expected = theirs(x, src_key_padding_mask=~read)
        close(block(x, read[:, None, None])[0][read], expected[read])


@given(cut=st.integers(0, 8), room=st.integers(0, 5), seed=st.integers(0, 99))
def test_a_past_in_a_table_is_as_if_it_were_given_whole(cut: int, room: int, seed: int) -> None:
    """Whatever stands in the table's other rows."""
    queries, keys, values = (draw(2, HEADS, 9, 6, seed=seed + n) for n in range(3))
    whole = attend(queries, keys, values, causal(9, queries.device))
    garbage = draw(2, HEADS, room, 6, seed=seed + 3) * 1e6
    table, other = (torch.cat([t[:, :, :cut], garbage], 2) for t in (keys, values))
    written = (torch.arange(cut + room) < cut).expand(2, -1)[:, None, None]
    queries, keys, values = (t[:, :, cut:] for t in (queries, keys, values))
    seen = causal(9 - cut, queries.device)
    part = attend(queries, keys, values, seen, Past(table, other, written))
    close(part, whole[:, :, cut:])


def test_a_row_of_padding_still_attends_to_something() -> None:
    read = readable(torch.tensor([[0, 0, 0], [5, 0, 7]]))
    assert read.tolist() == [[True, False, False], [True, False, True]]
    keys = draw(2, HEADS, 3, 6)
    assert attend(keys, keys, keys, read[:, None, None]).isfinite().all()


def test_places_are_the_papers_sinusoids() -> None:
    table = sinusoids(50, 8)
    for place in (0, 1, 7, 49):
        for i in range(4):
            angle = place / 10_000 ** (2 * i / 8)
            assert table[place, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[place, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)
    # The paper's reason for them: k places on is a rotation that does not depend on the place.
    closeness = table @ table.T
    for gap in (1, 5):
        assert closeness.diagonal(gap).std() < 1e-5


@given(before=st.integers(0, 30), length=st.integers(1, 12))
def test_a_token_is_placed_by_how_many_came_before(before: int, length: int) -> None:
    embedding = Embedding(7, 8, 20, 0.5).eval()
    tokens = torch.randint(0, 7, (2, length))
    placed = embedding(tokens, torch.tensor([before, 0]))
    torch.testing.assert_close(placed[1], embedding(tokens)[1])
    vectors = embedding.tokens.weight[tokens[0]] * 8**0.5
    for step in range(length):  # beyond the table every place is its last
        place = sinusoids(20, 8)[min(before + step, 19)]
        torch.testing.assert_close(placed[0, step], vectors[step] + place)


def test_the_papers_base_model_has_the_papers_parameters() -> None:
    """44,138,496 in the layers, which are those of `nn.Transformer`, and 65 million in all."""

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    with torch.device("meta"):
        ours = count(
            *(Stack(6, 512, 8, 2048, 0.1, crossed=c) for c in (False, True)),
        )
        theirs = nn.Transformer(batch_first=True)
        final_norms = [part.norm for part in (theirs.encoder, theirs.decoder)]
        assert ours == count(theirs) - count(*(n for n in final_norms if n)) == 44_138_496
    vocabulary = 37_000  # the paper's, shared by both languages
    assert ours + vocabulary * 512 == pytest.approx(65e6, rel=0.04)


def test_heads_divide_the_size() -> None:
    with pytest.raises(BadSetting, match="a divisor of size, 24"):
        Attention(24, 5)
