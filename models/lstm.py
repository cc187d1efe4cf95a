"""Long short-term memory: language models of characters and of tunes, a classifier of texts."""

from __future__ import annotations

from dataclasses import replace

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
from models.tunes import generated_tunes, irish_abc, tune_codec


def _cells(inputs: int, hidden: int, layers: int, dropout: float) -> nn.LSTM:
    between = dropout if layers > 1 else 0.0
    # deviation: a forget gate, and no peepholes
    return nn.LSTM(inputs, hidden, layers, batch_first=True, dropout=between)


def language_model(
    embedding: Count = EMBEDDING,  # deviation: learned vectors, not one-hot
    hidden: Count = HIDDEN,
    layers: Layers = LAYERS,
    dropout: Dropout = 0.0,
) -> RecurrentLanguageModel:
    return RecurrentLanguageModel(
        lambda inputs: _cells(inputs, hidden, layers, dropout),
        embedding,
        dropout,
    )


def signature(
    hidden: Count = HIDDEN,
    layers: Layers = LAYERS,
    window: Window = WINDOW,  # deviation: not 100 characters
) -> Signature:
    return language_signature(("hidden", "cell"), hidden, layers, window)


def classifier(
    vocabulary: VocabularySize = VOCABULARY,
    embedding: Count = 64,
    hidden: Count = 50,
    layers: Layers = 1,
    dropout: Dropout = 0.0,
) -> RecurrentClassifier:
    return RecurrentClassifier(
        lambda inputs: _cells(inputs, hidden, layers, dropout),
        vocabulary,
        embedding,
        CLASSES,
        dropout,
    )


LSTM = Recipe(
    name="lstm",
    kind="sequence",
    title="Long short-term memory, language model of characters, 2 layers of 512",
    paper="Hochreiter, Schmidhuber 1997, Long short-term memory; in the "
    "size of Karpathy, Johnson, Fei-Fei 2015, Visualizing and understanding recurrent networks",
    network=language_model,
    signature=signature,
    data={"embedded": pydoc_text, "full": tiny_shakespeare},  # deviation: not War and Peace
    loss=language_loss,
    per_row=language_rows,
    evaluate=language_metrics,
    metric="bits_per_character",
    direction="min",
    floor={"embedded": 2.4, "full": 2.38},
    training={  # deviation: Adam and its schedule; the norm of the gradient is clipped
        "embedded": Training(
            epochs=4, batch_size=8, learning_rate=3e-3, schedule="cosine", clip_norm=1, carry=True
        ),
        "full": Training(
            epochs=12, batch_size=32, learning_rate=2e-3, schedule="cosine", clip_norm=1, carry=True
        ),
    },
    presets={
        "embedded": {"embedding": 64, "hidden": 192, "layers": 1},
        "full": {"layers": 1, "dropout": 0.2},
    },
    codec=language_codec,
    baseline=language_baseline,
    exporter="torchscript",
    deviations=(
        "a forget gate (Gers, Schmidhuber, Cummins 2000), which the paper of 1997 lacks",
        "characters enter by learned vectors instead of one-hot",
        "Adam with a cosine schedule instead of RMSprop, and the norm of the gradient clipped "
        "instead of each entry",
        "Python's documentation or tinyshakespeare instead of War and Peace and Linux",
        "windows of 64 characters instead of 100",
    ),
)

LSTM_MUSIC = replace(
    LSTM,
    name="lstm-music",
    title="Long short-term memory that writes tunes in ABC notation, 2 layers of 512",
    data={"embedded": generated_tunes, "full": irish_abc},  # deviation: music instead of prose
    floor={"embedded": 1.4, "full": 1.7},
    training={
        "embedded": Training(
            epochs=6, batch_size=8, learning_rate=3e-3, schedule="cosine", clip_norm=1, carry=True
        ),
        "full": Training(
            epochs=20, batch_size=8, learning_rate=2e-3, schedule="cosine", clip_norm=1, carry=True
        ),
    },
    presets={
        "embedded": {"embedding": 64, "hidden": 192, "layers": 1},
        "full": {"embedding": 64, "hidden": 384, "layers": 1, "dropout": 0.4},
    },
    codec=tune_codec,
    deviations=(
        *LSTM.deviations[:3],
        "tunes instead of War and Peace and Linux",
        LSTM.deviations[4],
    ),
)

LSTM_CLASSIFIER = Recipe(
    name="lstm-classifier",
    kind="sequence",
    title="Long short-term memory, classifier of texts by its last state, 50 units",
    paper="Hochreiter, Schmidhuber 1997, Long short-term memory; in the "
    "size of Liu, Qiu, Huang 2016, Recurrent neural network for text classification with "
    "multi-task learning",
    network=classifier,
    served=TextClassifier,
    signature=text_signature,
    data={"embedded": pydoc_passages, "full": sms_spam},  # deviation: not the paper's four sets
    loss=classification_loss,
    evaluate=one_class,
    metric="f1",
    floor={"embedded": 0.55, "full": 0.84},
    training={  # deviation: Adam
        "embedded": Training(
            epochs=6, batch_size=32, learning_rate=3e-3, schedule="cosine", clip_norm=1
        ),
        "full": Training(
            epochs=10, batch_size=32, learning_rate=2e-3, schedule="cosine", clip_norm=1
        ),
    },
    presets={
        "embedded": {"dropout": 0.3},
        "full": {"dropout": 0.3},
    },
    codec=text_codec,
    baseline=naive_bayes,
    exporter="torchscript",
    deviations=(
        "a forget gate (Gers, Schmidhuber, Cummins 2000), which the paper of 1997 lacks",
        "Adam with a cosine schedule instead of Adagrad, and the norm of the gradient clipped",
        "one task at a time, messages or passages of two classes instead of the paper's four sets "
        "of reviews",
    ),
)
