"""Tokens of decoding tasks: the ids of open_clip for any text, in bounded memory, and without torch."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip import SimpleTokenizer

from orchestrator.clip import tokens
from orchestrator.clip.tokens import ClipCaptions, OwnCaptions, captions_of
from tests.support.noisy_texts import ENTITIES, ODD, like_captions, noisy_texts

LENGTH = 77


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Remember ten words."""
    remembered: dict[str, list[int]] = {}
    monkeypatch.setattr(tokens, "REMEMBERED", 10)
    monkeypatch.setattr(tokens._vocabulary(), "remembered", remembered)
    return remembered


def assert_same(texts: list[str], length: int = LENGTH) -> None:
    expected = open_clip.tokenizer._tokenizer(texts, context_length=length).numpy()
    found = ClipCaptions(length)(texts)
    assert found.dtype == np.int32
    assert found.shape == (len(texts), length)
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert np.array_equal(ours, theirs), repr(text)


@pytest.mark.parametrize("length", [8, 32, LENGTH])
def test_noisy_texts_have_the_ids_of_open_clip(length: int) -> None:
    captions = random.Random(length).sample(like_captions(), 500)
    assert_same(list(noisy_texts(captions, 2_500, seed=length)), length)


def test_odd_words_have_the_ids_of_open_clip() -> None:
    assert_same(
        [*ENTITIES, *ODD, *map("".join, zip(ODD, reversed(ODD), strict=True)), "", " ", "x" * 5_000, "a1" * 400]
    )


@given(st.text(max_size=60))
@example("don't &amp; can't")
@example("ΟΔΟΣ\u2028ΣΑΣ Σ")
def test_any_text_has_the_ids_of_open_clip(text: str) -> None:
    # hypothesis makes no lone surrogates by default
    assert_same([text, f"a {text} z"])


def test_the_memory_of_words_is_bounded(small_memory: dict[str, list[int]]) -> None:
    assert_same([f"word{number} {number:x}" for number in range(200)])
    assert 0 < len(small_memory) <= 10
    ClipCaptions(LENGTH)(["y" * 1000])
    assert "y" * 1000 not in small_memory


@pytest.mark.parametrize("length", [16, LENGTH])
def test_the_plain_tokenizer_is_replaced(length: int) -> None:
    assert captions_of(SimpleTokenizer(context_length=length)) == ClipCaptions(length)


@pytest.mark.parametrize(
    "options",
    [{"clean": "canonicalize"}, {"clean": "whitespace"}, {"additional_special_tokens": ["<mark>"]}],
)
def test_other_tokenizers_are_called_as_they_are(options: dict) -> None:
    texts = ["A Photo, of: a <mark> dog!", "don't"]
    theirs = SimpleTokenizer(context_length=20, **options)
    # as a task gets it
    found = pickle.loads(pickle.dumps(captions_of(theirs)))
    assert isinstance(found, OwnCaptions)
    assert np.array_equal(found(texts), theirs(texts).numpy())
    assert found([]).shape == (0, 20)


def test_a_function_is_a_tokenizer_too() -> None:
    def lengths(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text), 1] for text in texts])

    found = captions_of(lengths)(["abc", ""])
    assert found.dtype == np.int32
    assert found.tolist() == [[3, 1], [0, 1]]


def test_tasks_need_no_torch() -> None:
    program = (
        "import sys; from orchestrator.clip.tokens import ClipCaptions; print(ClipCaptions(5)(['a dog']).tolist()); "
        "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[[49406, 320, 1929, 49407, 0]]"
