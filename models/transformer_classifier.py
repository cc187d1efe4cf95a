"""The Transformer's encoder as a classifier of texts."""

from __future__ import annotations

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
    Size,
    Stack,
    readable,
)
from models.choices import Dropout
from models.losses import classification_loss
from models.metrics import one_class
from models.recipe import Recipe, Training
from models.spam_cnn import CLASSES, TextClassifier, naive_bayes, signature
from models.text import (
    LONGEST,
    VOCABULARY,
    Longest,
    VocabularySize,
    pydoc_passages,
    sms_spam,
    text_codec,
)


class SentenceEncoder(nn.Module):
    """Token ids int64 [batch, length], 0 for padding, to logits [batch, 2].

    How far a row is padded does not change its logits: padding is neither attended to nor pooled.
    """

    def __init__(
        self,
        vocabulary: VocabularySize = VOCABULARY,
        longest: Longest = LONGEST,
        layers: Layers = LAYERS,
        size: Size = SIZE,
        heads: Heads = HEADS,
        inner: Inner = INNER,
        dropout: Dropout = DROPOUT,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, size, longest, dropout)
        # deviation: no decoder
        self.stack = Stack(layers, size, heads, inner, dropout, norm_first)
        self.output = nn.Linear(size, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        read = readable(tokens)
        x, _ = self.stack(self.embedding(tokens), read[:, None, None])
        share = read / read.sum(1, keepdim=True)
        # deviation: the mean of the last layer is classified
        return self.output((x * share[:, :, None].to(x.dtype)).sum(1))


TRANSFORMER_CLASSIFIER = Recipe(
    name="transformer-classifier",
    kind="sequence",
    title="Transformer encoder, 6 layers of 512, 8 heads, the mean of its last layer classified",
    paper="Vaswani et al. 2017, Attention is all you need; its encoder alone",
    network=SentenceEncoder,
    served=TextClassifier,
    signature=signature,
    data={"embedded": pydoc_passages, "full": sms_spam},  # deviation: not WMT 2014
    loss=classification_loss,
    evaluate=one_class,
    metric="f1",
    floor={"embedded": 0.65, "full": 0.88},
    training={  # deviation: AdamW
        "embedded": Training(
            epochs=5,
            batch_size=32,
            optimizer="adamw",
            learning_rate=2e-3,
            schedule="one-cycle",
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        "full": Training(
            epochs=8,
            batch_size=32,
            optimizer="adamw",
            learning_rate=2e-3,
            schedule="one-cycle",
            weight_decay=0.01,
            clip_norm=1.0,
        ),
    },
    presets={
        "embedded": {"layers": 2, "size": 64, "heads": 4, "inner": 128, "dropout": 0.2},
        "full": {"layers": 2, "size": 64, "heads": 4, "inner": 128, "dropout": 0.2},
    },
    codec=text_codec,
    baseline=naive_bayes,
    deviations=(
        "the encoder alone",
        "the mean of the last layer's vectors goes to a linear layer of two classes",
        "messages or passages of two classes instead of WMT 2014; a vocabulary of 4,096 words by "
        "default, and the first 64 tokens of a text",
        "AdamW with a one-cycle rate and clipped gradients instead of Adam with the paper's "
        "schedule",
    ),
)
