"""Language models of characters: loss, metrics, codec, and the baselines beside them."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor
from torch.nn import functional

from models.codec import PADDING, Characters, Codec, Generation
from models.corpus import NEXT, TOKENS, read_back
from models.datasets import Dataset
from models.ngrams import gzip_bits, ngram_bits
from models.signature import Arrays

LOGITS = "logits"
_ORDER = 5


def language_loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Mean nats per token: -log softmax(`logits` [batch, length, ids])[`next`], less padding."""
    logits, following = outputs[LOGITS], targets[NEXT]
    return functional.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=PADDING)


def language_rows(outputs: Arrays, targets: Arrays) -> Arrays:
    """Of each row: summed `nats`, `hits` of the likeliest token, `count` of tokens; [rows] each."""
    logits, following = outputs[LOGITS], targets[NEXT]
    top = logits.max(-1, keepdims=True)
    log_sum = top[..., 0] + np.log(np.exp(logits - top).sum(-1, dtype=np.float64))
    given = np.take_along_axis(logits, following[..., None], -1)[..., 0]
    counted = following != PADDING
    return {
        "nats": ((log_sum - given) * counted).sum(1),
        "hits": ((logits.argmax(-1) == following) & counted).sum(1),
        "count": counted.sum(1),
    }


def language_metrics(rows: Arrays, targets: Arrays) -> dict[str, float]:
    """Bits and nats per character and the share of characters that were the likeliest."""
    count = int(rows["count"].sum())
    nats = float(rows["nats"].sum()) / count
    return {
        "bits_per_character": nats / math.log(2),
        "nats_per_character": nats,
        "accuracy": int(rows["hits"].sum()) / count,
    }


def language_codec(dataset: Dataset) -> Codec:
    """A prompt is continued character by character; an empty one begins after a line's end."""
    tokens = Characters(name=TOKENS, alphabet=dataset.vocabulary)
    return Codec(generation=Generation(tokens=tokens, logits=LOGITS))


def language_baseline(dataset: Dataset) -> dict[str, float]:
    """Bits per character of the same test text by a 5-gram of the train split, and by gzip.

    The 5-gram has interpolated Witten-Bell smoothing; gzip has just read the text before, as
    `models.ngrams` says.
    """
    characters = Characters(name=TOKENS, alphabet=dataset.vocabulary)
    train, validation, test = map(read_back, (dataset.train, dataset.validation, dataset.test))
    before = characters.decode(np.concatenate([train, validation, test[:1]]).tolist())
    text = characters.decode(test[1:].tolist())
    return {
        "5-gram bits_per_character": ngram_bits(train, test, _ORDER, characters.ids),
        "gzip bits_per_character": gzip_bits(before.encode("ascii"), text.encode("ascii")),
    }
