"""Sentence CNN: convolutions of three widths over word vectors, the strongest of each map."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.codec import PADDING, UNKNOWN
from models.datasets import Dataset, Split
from models.losses import classification_loss
from models.metrics import one_class
from models.recipe import Recipe, Training
from models.signature import BATCH, Axis, Signature, TensorSpec
from models.text import (
    LONGEST,
    TOKENS,
    VOCABULARY,
    Longest,
    VocabularySize,
    pydoc_passages,
    sms_spam,
    text_codec,
)

WIDTHS = (3, 4, 5)  # words that one filter sees
CLASSES = 2


class SentenceCNN(nn.Module):
    """Token ids int64 [batch, length], 0 for padding, to logits [batch, 2].

    How far a row is padded does not change its logits: only windows that hold a word count.
    """

    def __init__(
        self,
        vocabulary: VocabularySize = VOCABULARY,
        embedding: Annotated[int, Field(ge=1, le=4096)] = 300,
        maps: Annotated[int, Field(ge=1, le=4096)] = 100,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.word_dropout = word_dropout
        # The paper's CNN-rand: vectors drawn from U[-0.25, 0.25] and learned, none pre-trained.
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        with torch.no_grad():
            self.embedding.weight[PADDING + 1 :].uniform_(-0.25, 0.25)
        # Padded on both sides, so that the first word meets every tap and one word is enough.
        self.convolutions = nn.ModuleList(
            nn.Conv1d(embedding, maps, width, padding=width - 1) for width in WIDTHS
        )
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(maps * len(WIDTHS), CLASSES)  # deviation: no limit on its norm

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training and self.word_dropout:  # deviation: off in the paper
            tokens = _forget(tokens, self.word_dropout)
        words = self.embedding(tokens).transpose(1, 2)  # [batch, embedding, length]
        is_word = (tokens != PADDING).to(words.dtype)[:, None, None]  # [batch, 1, 1, length]
        strongest = []
        for width, convolution in zip(WIDTHS, self.convolutions, strict=True):
            features = self.relu(convolution(words))  # [batch, maps, length + width - 1]
            sides = functional.pad(is_word, (width - 1, width - 1))
            # In two dimensions, because the exporter freezes the length of max_pool1d.
            holds_word = functional.max_pool2d(sides, (1, width), stride=1)[:, :, 0]
            # No feature is below 0, so a window without a word never is the strongest.
            strongest.append((features * holds_word).amax(dim=2))
        return self.output(self.dropout(torch.cat(strongest, dim=1)))


def _forget(tokens: Tensor, share: float) -> Tensor:
    """That share of the words, drawn at random, made unknown: the net learns to do without."""
    drawn = torch.rand(tokens.shape, device=tokens.device) < share
    return torch.where(drawn & (tokens != PADDING), UNKNOWN, tokens)


class TextClassifier(nn.Module):
    """Token ids to `logits` and `probabilities`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        logits = self.network(tokens)
        return {"logits": logits, "probabilities": logits.softmax(dim=-1)}


def signature(vocabulary: VocabularySize = VOCABULARY, longest: Longest = LONGEST) -> Signature:
    batch = Axis(BATCH, 1, 8, 64)
    length = Axis("length", 1, min(24, longest), longest)
    return Signature(
        inputs=(TensorSpec(TOKENS, "int64", (batch, length), 0, vocabulary - 1),),
        outputs=(
            TensorSpec("logits", "float32", (batch, CLASSES)),
            TensorSpec("probabilities", "float32", (batch, CLASSES), 0.0, 1.0),
        ),
    )


def naive_bayes(dataset: Dataset) -> dict[str, float]:
    """F1 of multinomial naive Bayes on the counts of the same tokens, what a CNN has to beat."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.metrics import f1_score
    from sklearn.naive_bayes import MultinomialNB

    def words(split: Split) -> list[str]:
        return [" ".join(map(str, row[row != PADDING])) for row in split.inputs[TOKENS]]

    counter = CountVectorizer(token_pattern=r"\d+")
    model = MultinomialNB().fit(
        counter.fit_transform(words(dataset.train)), dataset.train.targets["label"]
    )
    predicted = model.predict(counter.transform(words(dataset.test)))
    return {"naive Bayes f1": float(f1_score(dataset.test.targets["label"], predicted))}


SPAM_CNN = Recipe(
    name="spam-cnn",
    kind="classification",
    title="Sentence CNN (CNN-rand), widths 3, 4 and 5, 100 maps each",
    paper="Kim 2014, Convolutional neural networks for sentence classification",
    network=SentenceCNN,
    served=TextClassifier,
    signature=signature,
    data={"embedded": pydoc_passages, "full": sms_spam},  # deviation: not the paper's seven sets
    loss=classification_loss,
    evaluate=one_class,
    metric="f1",
    floor={"embedded": 0.65, "full": 0.93},
    training={  # deviation: Adam, not Adadelta
        "embedded": Training(epochs=5, batch_size=50, learning_rate=5e-3),
        "full": Training(epochs=6, batch_size=50, learning_rate=1e-3, schedule="cosine"),
    },
    presets={
        "embedded": {"embedding": 64, "maps": 32, "word_dropout": 0.2},
        "full": {"word_dropout": 0.2},
    },
    codec=text_codec,
    baseline=naive_bayes,
    deviations=(
        "Adam instead of Adadelta",
        "one word in five is made unknown at random in training",
        "no limit of 3 on the norm of the output layer's weights",
        "messages or passages of two classes instead of the paper's seven data sets; a "
        "vocabulary of 4,096 by default, and the first 64 tokens of a text",
    ),
)
