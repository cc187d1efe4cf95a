"""The whole Transformer, encoder and decoder, on questions with one right answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from models.attention import (
    DROPOUT,
    HEADS,
    INNER,
    LAYERS,
    SIZE,
    Embedding,
    Heads,
    Inner,
    Layers,
    Past,
    Size,
    Stack,
    causal,
    readable,
)
from models.choices import Dropout
from models.codec import Characters, Codec, Generation
from models.datasets import Dataset
from models.dates import (
    ANSWER,
    IDS,
    QUESTION,
    SOURCE,
    TOKENS,
    Answer,
    Question,
    dates,
    dates_and_numbers,
)
from models.decoding import rows_and_steps, stepwise, stepwise_signature
from models.language import LOGITS, language_loss, language_rows
from models.recipe import Recipe, Training
from models.signature import Arrays, Axis, Signature, TensorSpec


class Translator(nn.Module):
    """Questions int64 [batch, source_length] and the answer so far [batch, length] to logits.

    The question is padded with 0; how far does not change the logits [batch, length, ids].
    """

    def __init__(
        self,
        layers: Layers = LAYERS,
        size: Size = SIZE,
        heads: Heads = HEADS,
        inner: Inner = INNER,
        dropout: Dropout = DROPOUT,
        norm_first: bool = False,
        question: Question = QUESTION,
        answer: Answer = ANSWER,
    ) -> None:
        super().__init__()
        # Questions and answers share one embedding, as in the paper, and so one table of places.
        self.embedding = Embedding(IDS, size, max(question, answer), dropout)
        self.encoder = Stack(layers, size, heads, inner, dropout, norm_first)
        self.decoder = Stack(layers, size, heads, inner, dropout, norm_first, crossed=True)

    def forward(
        self,
        source: Tensor,
        tokens: Tensor,
        position: Tensor | None = None,
        pasts: Sequence[Past] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits, and keys and values of each decoder layer.

        The question is encoded anew in every call: a known cost, paid so that one graph without
        another state does all.
        """
        read = readable(source)[:, None, None]
        memory, _ = self.encoder(self.embedding(source), read)
        seen = causal(tokens.shape[1], tokens.device)
        x, rows = self.decoder(self.embedding(tokens, position), seen, pasts, memory, read)
        return self.embedding.scores(x), rows


def served(network: nn.Module, layers: Layers = LAYERS) -> nn.Module:
    return stepwise(network, (SOURCE, TOKENS), layers)


def signature(
    layers: Layers = LAYERS,
    size: Size = SIZE,
    heads: Heads = HEADS,
    question: Question = QUESTION,
    answer: Answer = ANSWER,
) -> Signature:
    batch, length = rows_and_steps(answer)
    asked = Axis("source_length", 1, min(24, question), question)
    inputs = (
        TensorSpec(SOURCE, "int64", (batch, asked), 0, IDS - 1),
        TensorSpec(TOKENS, "int64", (batch, length), 0, IDS - 1),
    )
    return stepwise_signature(inputs, IDS, layers, heads, size // heads, answer)


def exact_match(rows: Arrays, targets: Arrays) -> dict[str, float]:
    """The share of answers right in every token, of `language_rows`, and the share of tokens.

    The tokens before are the right ones, so an answer is right in all tokens exactly where greedy
    decoding writes it: both take the likeliest token as long as it is the right one.
    """
    return {
        "exact_match": float(np.mean(rows["hits"] == rows["count"])),
        "token_accuracy": float(rows["hits"].sum() / rows["count"].sum()),
    }


def answering(dataset: Dataset) -> Codec:
    """A question is answered character by character, from the mark of the start to the end's."""
    source, tokens = (Characters(name=n, alphabet=dataset.vocabulary) for n in (SOURCE, TOKENS))
    return Codec(generation=Generation(tokens=tokens, logits=LOGITS, source=source))


TRANSFORMER_TRANSLATE = Recipe(
    name="transformer-translate",
    kind="sequence",
    title="Transformer, 6 + 6 layers of 512, 8 heads, from written dates to ISO 8601",
    paper="Vaswani et al. 2017, Attention is all you need",
    network=Translator,
    served=served,
    signature=signature,
    # deviation: generated pairs of characters, not WMT 2014
    data={"embedded": dates, "full": dates_and_numbers},
    loss=language_loss,  # deviation: the labels are not smoothed
    per_row=language_rows,
    evaluate=exact_match,
    metric="exact_match",
    floor={"embedded": 0.95, "full": 0.9},
    training={  # deviation: AdamW
        "embedded": Training(
            epochs=8,
            batch_size=64,
            optimizer="adamw",
            learning_rate=3e-3,
            schedule="one-cycle",
            clip_norm=1.0,
        ),
        "full": Training(
            epochs=10,
            batch_size=64,
            optimizer="adamw",
            learning_rate=2e-3,
            schedule="one-cycle",
            clip_norm=1.0,
        ),
    },
    presets={
        "embedded": {
            "layers": 2,
            "size": 64,
            "heads": 4,
            "inner": 128,
            "dropout": 0.0,
            "question": 40,
            "answer": 11,
        },
        "full": {
            "layers": 2,
            "size": 96,
            "heads": 4,
            "inner": 192,
            "dropout": 0.0,
        },
    },
    codec=answering,
    deviations=(
        "generated pairs of characters instead of word pieces of WMT 2014, called synthetic",
        "AdamW with a one-cycle rate and clipped gradients instead of Adam with the paper's "
        "schedule",
        "no label smoothing, and greedy decoding instead of a beam",
    ),
)
