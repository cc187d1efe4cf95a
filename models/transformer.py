"""The Transformer's decoder alone, as a language model of characters with a key/value cache."""

from __future__ import annotations

from collections.abc import Sequence

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
)
from models.choices import Dropout
from models.corpus import IDS, TOKENS, WINDOW, Window, pydoc_text, tiny_shakespeare
from models.decoding import rows_and_steps, stepwise, stepwise_signature
from models.language import (
    language_baseline,
    language_codec,
    language_loss,
    language_metrics,
    language_rows,
)
from models.recipe import Recipe, Training
from models.signature import Signature, TensorSpec


class Decoder(nn.Module):
    """Ids int64 [batch, length] to logits [batch, length, ids] of the token after each.

    `window` is how many tokens it can tell apart by their place: as many as it is trained on, and
    as many as its tables hold.
    """

    def __init__(
        self,
        layers: Layers = LAYERS,
        size: Size = SIZE,
        heads: Heads = HEADS,
        inner: Inner = INNER,
        dropout: Dropout = DROPOUT,
        norm_first: bool = False,
        window: Window = WINDOW,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(IDS, size, window, dropout)
        # deviation: no attention to an encoder, for there is none
        self.stack = Stack(layers, size, heads, inner, dropout, norm_first)

    def forward(
        self, tokens: Tensor, position: Tensor | None = None, pasts: Sequence[Past] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits, and keys and values of each layer; `position` [batch] tokens came before."""
        seen = causal(tokens.shape[1], tokens.device)
        x, rows = self.stack(self.embedding(tokens, position), seen, pasts)
        return self.embedding.scores(x), rows


def served(network: nn.Module, layers: Layers = LAYERS) -> nn.Module:
    return stepwise(network, (TOKENS,), layers)


def signature(
    layers: Layers = LAYERS, size: Size = SIZE, heads: Heads = HEADS, window: Window = WINDOW
) -> Signature:
    tokens = TensorSpec(TOKENS, "int64", rows_and_steps(window), 0, IDS - 1)
    return stepwise_signature((tokens,), IDS, layers, heads, size // heads, window)


TRANSFORMER = Recipe(
    name="transformer",
    kind="sequence",
    title="Decoder-only Transformer, 6 layers of 512, 8 heads, a language model of characters",
    paper="Vaswani et al. 2017, Attention is all you need; its decoder alone, Liu et al. 2018, "
    "Generating Wikipedia by summarizing long sequences",
    network=Decoder,
    served=served,
    signature=signature,
    # deviation: texts of characters, not WMT 2014
    data={"embedded": pydoc_text, "full": tiny_shakespeare},
    loss=language_loss,  # deviation: the labels are not smoothed
    per_row=language_rows,
    evaluate=language_metrics,
    metric="bits_per_character",
    direction="min",
    floor={"embedded": 2.4, "full": 2.5},
    training={  # deviation: AdamW
        "embedded": Training(
            epochs=9,
            batch_size=16,
            optimizer="adamw",
            learning_rate=5e-3,
            schedule="one-cycle",
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        "full": Training(
            epochs=16,
            batch_size=32,
            optimizer="adamw",
            learning_rate=2e-3,
            schedule="one-cycle",
            weight_decay=0.1,
            clip_norm=1.0,
        ),
    },
    presets={
        "embedded": {"layers": 2, "size": 64, "heads": 4, "inner": 256, "dropout": 0.0},
        "full": {
            "layers": 4,
            "size": 128,
            "heads": 4,
            "inner": 512,
            "window": 128,
        },
    },
    codec=language_codec,
    baseline=language_baseline,
    deviations=(
        "the decoder without attention to an encoder (Liu et al. 2018)",
        "characters of one text instead of word pieces of WMT 2014, in windows of 64 by default",
        "AdamW with a one-cycle rate and clipped gradients instead of Adam with the paper's "
        "schedule",
        "no label smoothing",
    ),
)
