"""Tokens of captions for the tasks that decode images: the ids of open_clip, without torch and several times faster.

open_clip's tokenizer cleans a caption (ftfy, HTML entities twice, blanks, lower case), cuts it into words with a
regular expression, and cuts words into pieces with CLIP's merges (byte pair encoding, Sennrich et al. 2016). Three
things differ here, and none changes an id:

- Printable ASCII without `&` is clean already, so ftfy does not read it.
- No word crosses a blank, so the ids between two blanks depend on nothing else. They are remembered, which answers
  most of a caption: few words are frequent.
- Other words go through the `tokenizers` library, which merges eight times faster than Python."""

from __future__ import annotations

import gzip
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ftfy
import numpy as np
import regex
from numpy.typing import NDArray
from tokenizers.models import BPE

if TYPE_CHECKING:
    import torch

MERGES_FILE, NUM_MERGES = "bpe_simple_vocab_16e6.txt.gz", 48_894
MARKS = ("<start_of_text>", "<end_of_text>")
END_OF_WORD = "</w>"
PARTS = regex.compile("|".join(MARKS) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
# words that a process remembers, about 10 MB, and the longest of them
REMEMBERED, LONGEST_REMEMBERED = 2**16, 32


class Captions(Protocol):
    """Turns captions into tokens in a task: it pickles small, or once for each process."""

    def __call__(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """Return int32 [n, context], padded and cut as the model expects."""


@dataclass(frozen=True)
class ClipCaptions:
    """The ids of `open_clip.SimpleTokenizer(context_length=...)`; each process builds its tables once."""

    context_length: int

    def __call__(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """Return int32 [n, context]: start of text, ids, end of text, zeros. Longer captions are cut."""
        vocabulary, length = _vocabulary(), self.context_length
        tokens = np.zeros((len(captions), length), np.int32)
        for row, caption in zip(tokens, captions, strict=True):
            ids = [vocabulary.start, *vocabulary.ids(caption, length), vocabulary.end][:length]
            row[: len(ids)] = ids
            if len(ids) == length:
                row[-1] = vocabulary.end
        return tokens


@dataclass(frozen=True)
class OwnCaptions:
    """The tokens of a model's own tokenizer, such as a Hugging Face one."""

    tokenizer: Callable[[list[str]], torch.Tensor]

    def __call__(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """Return int32 [n, context], as the tokenizer pads and cuts."""
        # no captions at all: some tokenizers refuse an empty list
        tokens = self.tokenizer(list(captions) or [""]).numpy().astype(np.int32)
        return tokens[: len(captions)]


def captions_of(tokenizer: Any) -> Captions:
    """Return the captions' tokenizer for tasks, with the same ids as a `Clip.tokenizer`."""
    from open_clip import tokenizer as theirs

    is_plain = (
        type(tokenizer) is theirs.SimpleTokenizer
        and tokenizer.clean_fn is theirs.get_clean_fn("lower")
        and tokenizer.reduction_fn is None
        and tokenizer.encoder == theirs.SimpleTokenizer().encoder
    )
    return ClipCaptions(tokenizer.context_length) if is_plain else OwnCaptions(tokenizer)


class _Vocabulary:
    """CLIP's merges as open_clip ships them, and the ids of frequent words."""

    def __init__(self, merges: Sequence[tuple[str, str]]):
        self.letters = _letters()
        letters = list(self.letters.values())
        pieces = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges), *MARKS]
        ids = {piece: number for number, piece in enumerate(pieces)}
        self.start, self.end = (ids[mark] for mark in MARKS)
        # without its cache, as `remembered` is one
        self.merges = BPE(vocab=ids, merges=list(merges), end_of_word_suffix=END_OF_WORD, cache_capacity=0)
        self.remembered: dict[str, list[int]] = {}

    def ids(self, caption: str, limit: int) -> list[int]:
        """Return the first `limit` ids of a caption, or a few more."""
        ids: list[int] = []
        for word in _cleaned(caption).split():
            found = self.remembered.get(word)
            ids += self._new(word) if found is None else found
            if len(ids) >= limit:
                break
        return ids

    def _new(self, word: str) -> list[int]:
        ids: list[int] = []
        for part in PARTS.findall(word):
            if part in MARKS:
                ids.append(self.start if part == MARKS[0] else self.end)
            else:
                letters = "".join(map(self.letters.__getitem__, part.encode()))
                ids += (piece.id for piece in self.merges.tokenize(letters))
        if len(word) <= LONGEST_REMEMBERED:
            if len(self.remembered) >= REMEMBERED:
                self.remembered.clear()
            self.remembered[word] = ids
        return ids


def _cleaned(caption: str) -> str:
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        return caption.lower()
    # lower case after the blanks, as in open_clip: how a sigma ends depends on its neighbours
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(caption))).split()).lower()


@lru_cache(maxsize=1)
def _vocabulary() -> _Vocabulary:
    package = find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    # found without an import: open_clip imports torch
    lines = gzip.decompress((Path(package.origin).parent / MERGES_FILE).read_bytes()).decode().split("\n")
    return _Vocabulary([tuple(line.split()) for line in lines[1 : NUM_MERGES + 1]])  # type: ignore[misc]


def _letters() -> dict[int, str]:
    """Return the letter that stands for each byte: itself if it is printable, otherwise one above U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
