"""Short texts in two classes: SMS messages, spam or not, and passages that Python comes with."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from models.codec import FIRST_WORD, Codec, TextInput, tokenise
from models.datasets import Dataset, RemoteFile, Split, fetch
from models.errors import DataUnavailable

TOKENS = "tokens"
# Settings of the data, of the network that reads it and of the signature: of one default each.
VOCABULARY = 4096  # ids there are, padding and unknown among them
LONGEST = 64  # tokens of a text that are read
VocabularySize = Annotated[int, Field(ge=8, le=1 << 20)]
Longest = Annotated[int, Field(ge=8, le=4096)]

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
# A word that stands in one training text only says nothing of another text.
_LEAST_TEXTS = 2
_LEAST_PASSAGES = 100

_SPAM_FILE = RemoteFile(
    "sms_spam/SMSSpamCollection",
    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
    "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
    member="SMSSpamCollection",
)


def sms_spam(vocabulary: VocabularySize = VOCABULARY, longest: Longest = LONGEST) -> Dataset:
    """The SMS Spam Collection: 5,574 messages in English, of which 747 are spam.

    About 70 % to train, 10 % to validate, 20 % to test, drawn in each class. A message that comes
    again is kept once.
    """
    lines = fetch(_SPAM_FILE).decode("utf-8").splitlines()
    labels, texts = zip(*(line.split("\t", 1) for line in lines), strict=True)
    return _dataset(
        "sms-spam",
        "SMS Spam Collection v.1, UCI Machine Learning Repository 228, digest checked",
        "CC BY 4.0 (Almeida, Hidalgo 2011)",
        ("ham", "spam"),
        texts,
        labels,
        vocabulary,
        longest,
    )


def pydoc_passages(vocabulary: VocabularySize = VOCABULARY, longest: Longest = LONGEST) -> Dataset:
    """Passages of Python's language reference among passages of its library's docstrings.

    Real prose that every Python carries, one or two sentences at a time and four docstrings to
    one of the reference; which there are depends on the version of Python. The classes are told
    apart by words: markup, code and quotation marks are taken away. Raises `DataUnavailable`.
    """
    reference = _draw(_passages(_topics()), 1000)
    docstring = _draw(_passages(_docstrings()), 4 * len(reference))
    if min(len(reference), len(docstring)) < _LEAST_PASSAGES:
        raise DataUnavailable(
            "this Python lacks its own documentation, which the embedded texts are taken from",
            got=f"{len(reference)} passages of pydoc_data, {len(docstring)} of docstrings",
            fix="use --data full, or a Python with its whole standard library",
        )
    return _dataset(
        "pydoc",
        "Python's own documentation as installed: passages of pydoc_data.topics against "
        "passages of the standard library's docstrings",
        "PSF License 2.0 (Python Software Foundation)",
        ("docstring", "reference"),
        [*docstring, *reference],
        ["docstring"] * len(docstring) + ["reference"] * len(reference),
        vocabulary,
        longest,
    )


def build_vocabulary(texts: Iterable[str], size: int, least: int = 1) -> tuple[str, ...]:
    """The `size` tokens that stand in the most texts, in at least `least`; equals by spelling."""
    counts = Counter(token for text in texts for token in set(tokenise(text)))
    often = sorted((-count, token) for token, count in counts.items() if count >= least)
    return tuple(token for _, token in often[:size])


def text_codec(dataset: Dataset) -> Codec:
    """Plain texts, read with the data's vocabulary and answered by class name."""
    longest = dataset.train.inputs[TOKENS].shape[1]
    return Codec(
        text=TextInput(name=TOKENS, vocabulary=dataset.vocabulary, longest=longest, multiple=8),
        classes=dataset.classes,
        scores="probabilities",
    )


def _dataset(
    name: str,
    source: str,
    licence: str,
    classes: tuple[str, ...],
    texts: Sequence[str],
    labels: Sequence[str],
    vocabulary: int,
    longest: int,
) -> Dataset:
    """Splits of texts without what comes twice, and the vocabulary of the training texts.

    Texts are the same when they read the same: in case, in space, and in a later split also in
    words that the vocabulary lacks.
    """
    first = {" ".join(tokenise(text)): place for place, text in reversed([*enumerate(texts)])}
    kept = sorted(first.values())
    texts = [texts[place] for place in kept]
    label = np.array([classes.index(labels[place]) for place in kept], np.int64)
    rows = _stratified(label)
    words = build_vocabulary(
        (texts[row] for row in rows["train"]), vocabulary - FIRST_WORD, _LEAST_TEXTS
    )
    reader = TextInput(name=TOKENS, vocabulary=words, longest=longest, shortest=longest)
    splits = {}
    seen: set[bytes] = set()
    for split, numbers in rows.items():
        tokens = reader.encode([texts[row] for row in numbers])
        read = [row.tobytes() for row in tokens]
        new = np.array([row not in seen for row in read])
        seen.update(read)
        splits[split] = Split({TOKENS: tokens[new]}, {"label": label[numbers][new]})
    return Dataset(
        name=name, source=source, licence=licence, classes=classes, vocabulary=words, **splits
    )


def _stratified(label: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Row numbers of each split, in their order; each class is shared out alike."""
    random = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _SHARES}
    for value in np.unique(label):
        order = random.permutation(np.flatnonzero(label == value))
        ends = np.cumsum([round(share * len(order)) for share in _SHARES.values()])[:-1]
        for name, part in zip(_SHARES, np.split(order, ends), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def _draw(texts: Iterable[str], count: int, seed: int = 0) -> list[str]:
    """At most `count` different texts, drawn at random, in their order."""
    unique = list(dict.fromkeys(texts))
    chosen = np.random.default_rng(seed).permutation(len(unique))[:count]
    return [unique[place] for place in np.sort(chosen)]


def _topics() -> Iterator[str]:
    """The topics of the language reference, as `help("assignment")` shows them."""
    with suppress(ImportError):  # a distribution may leave it out
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))


def _docstrings() -> Iterator[str]:
    """The docstrings of the standard library's top-level modules, parsed and never imported."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield from _documented(ast.parse(path.read_bytes()))


def _documented(node: _Documented) -> Iterator[str]:
    """The docstrings of a module, class or function and of those right inside it."""
    yield ast.get_docstring(node) or ""
    for inner in node.body:
        if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(inner)


_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
# What only code, grammar, tables and markup hold.
_NO_PROSE = re.compile(r">>>|::|->|[=|{}<>\\~+#@]|[-*=^_]{3,}|\b\w+\(.*\)")
_SIGNS = re.compile(r"\[\d+\]|[^\w\s.,;:?!'-]|_|(?<!\w)'|'(?!\w)")


def _passages(documents: Iterable[str]) -> Iterator[str]:
    """One or two whole sentences of prose at a time, 6 words or more."""
    for document in documents:
        for paragraph in _PARAGRAPH.split(document):
            sentences = list(_sentences(" ".join(paragraph.split())))
            for start in range(0, len(sentences), 2):
                passage = " ".join(sentences[start : start + 2])
                if len(passage.split()) >= 6:
                    yield passage


def _sentences(paragraph: str) -> Iterator[str]:
    """The sentences that are prose, without the signs of markup; apostrophes alike."""
    for sentence in _SENTENCE_END.split(paragraph.replace("’", "'")):
        if sentence[:1].isupper() and sentence[-1:] == "." and not _NO_PROSE.search(sentence):
            yield " ".join(_SIGNS.sub(" ", sentence).split())
