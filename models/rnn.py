"""The Elman network: a language model of characters, and a classifier of texts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from models.choices import Count, Dropout
from models.corpus import WINDOW, Window, pydoc_text, tiny_shakespeare
from models.language import (
    language_baseline,
    language_codec,
    language_loss,
    language_metrics,
    language_rows,
)
from models.losses import classification_loss
from models.metrics import one_class
from models.recipe import Recipe, Training
from models.recurrent import (
    EMBEDDING,
    HIDDEN,
    LAYERS,
    Layers,
    RecurrentClassifier,
    RecurrentLanguageModel,
    language_signature,
)
from models.signature import Signature
from models.spam_cnn import CLASSES, TextClassifier, naive_bayes
from models.spam_cnn import signature as text_signature
from models.text import VOCABULARY, VocabularySize, pydoc_passages, sms_spam, text_codec

Activation = Literal["tanh", "relu"]


def _cells(
    inputs: int, hidden: int, layers: int, dropout: float, activation: Activation, identity: bool
) -> nn.RNN:
    between = dropout if layers > 1 else 0.0
    cells = nn.RNN(inputs, hidden, layers, activation, batch_first=True, dropout=between)
    if identity:
        with torch.no_grad():
            for name, parameter in cells.named_parameters():
                if name.startswith("weight_hh"):
                    nn.init.eye_(parameter)
                elif name.startswith("bias"):
                    parameter.zero_()
    return cells


def language_model(
    embedding: Count = EMBEDDING,  # deviation: learned vectors, not one-hot
    hidden: Count = HIDDEN,
    layers: Layers = LAYERS,
    dropout: Dropout = 0.0,
    activation: Activation = "tanh",
    identity: bool = False,
) -> RecurrentLanguageModel:
    """`identity` begins with W_hh the identity and no bias, which Le, Jaitly, Hinton 2015 do."""
    return RecurrentLanguageModel(
        lambda inputs: _cells(inputs, hidden, layers, dropout, activation, identity),
        embedding,
        dropout,
    )


def signature(
    hidden: Count = HIDDEN,
    layers: Layers = LAYERS,
    window: Window = WINDOW,  # deviation: not 100 characters
) -> Signature:
    return language_signature(("hidden",), hidden, layers, window)


def classifier(
    vocabulary: VocabularySize = VOCABULARY,
    embedding: Count = 64,
    hidden: Count = 50,
    layers: Layers = 1,
    dropout: Dropout = 0.0,
    activation: Activation = "tanh",
    identity: bool = False,
) -> RecurrentClassifier:
    return RecurrentClassifier(
        lambda inputs: _cells(inputs, hidden, layers, dropout, activation, identity),
        vocabulary,
        embedding,
        CLASSES,
        dropout,
    )


RNN = Recipe(
    name="rnn",
    kind="sequence",
    title="Elman network, language model of characters, 2 layers of 512",
    paper="Elman 1990, Finding structure in time; in the "
    "size of Karpathy, Johnson, Fei-Fei 2015, Visualizing and understanding recurrent networks",
    network=language_model,
    signature=signature,
    data={"embedded": pydoc_text, "full": tiny_shakespeare},  # deviation: not War and Peace
    loss=language_loss,
    per_row=language_rows,
    evaluate=language_metrics,
    metric="bits_per_character",
    direction="min",
    floor={"embedded": 2.5, "full": None},
    training={  # deviation: Adam and its schedule; the norm of the gradient is clipped
        "embedded": Training(
            epochs=6, batch_size=8, learning_rate=3e-3, schedule="cosine", clip_norm=1, carry=True
        ),
        "full": Training(
            epochs=12, batch_size=32, learning_rate=1e-3, schedule="cosine", clip_norm=1, carry=True
        ),
    },
    presets={
        "embedded": {"embedding": 64, "hidden": 192, "layers": 1, "identity": True},
        "full": {"layers": 1, "dropout": 0.2, "identity": True},
    },
    codec=language_codec,
    baseline=language_baseline,
    exporter="torchscript",
    deviations=(
        "characters enter by learned vectors instead of one-hot",
        "Adam with a cosine schedule instead of RMSprop, and the norm of the gradient clipped "
        "instead of each entry",
        "Python's documentation or tinyshakespeare instead of War and Peace and Linux",
        "windows of 64 characters instead of 100",
    ),
)

RNN_CLASSIFIER = Recipe(
    name="rnn-classifier",
    kind="sequence",
    title="Elman network, classifier of texts by its last state, 50 units",
    paper="Elman 1990, Finding structure in time; in the "
    "size of Liu, Qiu, Huang 2016, Recurrent neural network for text classification with "
    "multi-task learning",
    network=classifier,
    served=TextClassifier,
    signature=text_signature,
    data={"embedded": pydoc_passages, "full": sms_spam},  # deviation: not the paper's four sets
    loss=classification_loss,
    evaluate=one_class,
    metric="f1",
    floor={"embedded": 0.5, "full": 0.87},
    training={  # deviation: Adam
        "embedded": Training(
            epochs=6, batch_size=32, learning_rate=3e-3, schedule="cosine", clip_norm=1
        ),
        "full": Training(
            epochs=10, batch_size=32, learning_rate=2e-3, schedule="cosine", clip_norm=1
        ),
    },
    presets={
        "embedded": {"identity": True, "dropout": 0.3},
        "full": {"identity": True, "dropout": 0.3},
    },
    codec=text_codec,
    baseline=naive_bayes,
    exporter="torchscript",
    deviations=(
        "Adam with a cosine schedule instead of Adagrad, and the norm of the gradient clipped",
        "one task at a time, messages or passages of two classes instead of the paper's four sets "
        "of reviews",
    ),
)
