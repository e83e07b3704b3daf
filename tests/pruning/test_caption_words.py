"""Compare `caption_words` with its definition, and prove the assumptions of its fast path."""

from __future__ import annotations

import html
import itertools
import re
import unicodedata
from collections.abc import Iterable
from re import _constants, _parser

import ftfy
import numpy as np
import polars as pl
import pytest
import regex
from ftfy.badness import BADNESS_RE

from orchestrator.pruning.caption_words import (
    INERT_CHARACTERS,
    MOJIBAKE_CHARACTERS,
    caption_words,
    needs_reference,
    reference_words,
)

CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
ASCII = set(range(0x80))


def code_points_in(characters: str) -> set[int]:
    """Return the code points of one of the module's character classes."""
    inside = pl.Series([chr(code) for code in CODE_POINTS]).str.contains(f"^[{characters}]$")
    return set(pl.Series(CODE_POINTS).filter(inside))


@pytest.fixture(scope="module")
def inert() -> set[int]:
    return code_points_in(INERT_CHARACTERS)


@pytest.fixture(scope="module")
def mojibake() -> set[int]:
    return code_points_in(MOJIBAKE_CHARACTERS)


def assert_as_defined(captions: Iterable[str | None]) -> None:
    series = pl.Series("caption", list(captions), dtype=pl.String)
    found = caption_words(series)
    assert found.dtype == pl.List(pl.String)
    differing = [
        (caption, got, want)
        for caption, got in zip(series, found.to_list(), strict=True)
        if got != (want := reference_words(caption or ""))
    ]
    assert not differing, differing[:5]


def test_reference_words_are_the_words_of_clips_tokenizer(demo_captions: pl.Series) -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    pattern = regex.compile(tokenizer.pat.pattern, regex.IGNORECASE)
    for caption in [*demo_captions.sample(500, seed=0), "Don't <start_of_text> &amp;amp; 3D!? \u017fo '\u017f"]:
        assert reference_words(caption) == pattern.findall(tokenizer.clean_fn(caption))


def test_words_of_example_captions() -> None:
    assert reference_words("I don't  like A3-paper!!") == ["i", "don", "'t", "like", "a", "3", "-", "paper", "!!"]
    assert reference_words("Rock &amp;amp; Roll") == ["rock", "&", "roll"]
    assert reference_words("CafÃ© <end_of_text>") == ["café", "<end_of_text>"]


def test_demo_captions_have_the_defined_words(demo_captions: pl.Series) -> None:
    assert needs_reference(demo_captions).mean() < 0.02, "the fast path must be the common one"
    assert_as_defined(demo_captions)


def test_perturbed_captions_have_the_defined_words(demo_captions: pl.Series) -> None:
    def mojibake_of(caption: str, encoding: str) -> str:
        return caption.replace("e", "é").replace("-", "—").replace("'", "’").encode().decode(encoding, "replace")

    captions = demo_captions.sample(700, seed=1).to_list()
    assert_as_defined(caption.replace("a", "à").replace("o", "ö").replace("'", "’") for caption in captions)
    assert_as_defined(html.escape(caption.replace(" ", "\xa0<b> & ")) for caption in captions)
    assert_as_defined(html.escape(html.escape(f'"{caption}" & <i>')) for caption in captions)
    assert_as_defined(mojibake_of(caption, "latin-1") for caption in captions)
    assert_as_defined(mojibake_of(caption, "cp1252") for caption in captions)
    assert_as_defined(mojibake_of(caption, "cp1251") for caption in captions)
    assert_as_defined(caption.replace("e", "\x1b[31m").replace("a", "\x00\x0b\x1c") for caption in captions)
    assert_as_defined(unicodedata.normalize("NFD", caption.replace("e", "é")) for caption in captions)


def test_edge_cases_have_the_defined_words() -> None:
    assert caption_words(pl.Series([None, "", " \t\n\x0b\u3000"], dtype=pl.String)).to_list() == [[], [], []]
    assert caption_words(pl.Series([], dtype=pl.String)).to_list() == []
    assert_as_defined(["a cat " * 833, "é’ " * 1666, "&amp; Ã© " * 625, "x" * 5000, "\U0001f600" * 5000])
    assert_as_defined(
        ["a\r\nb\rc\x0cd", "R&B", "Salt & Pepper &", "&", "&&amp", "&\u2019", "\u017f'\u017f", "ΟΔΟΣ ΣΑΣ"]
    )
    assert_as_defined(
        ["e\u0301", "\u1100\u1161", "İstanbul", "ŉ ǆ \u212a", "\ufb01x", "ｆｕｌｌ　ｗｉｄｔｈ", "voilÃ la", "Â ", "œ"]
    )


def test_usual_non_ascii_captions_take_the_fast_path() -> None:
    captions = [
        "café au lait",
        "it’s “quoted” – a dash…",
        "東京の夜景",
        "I ❤️ NY",
        "собака на пляже",
        "Salt & Pepper",
        "5° ½",
    ]
    assert not needs_reference(pl.Series(captions)).any()
    assert_as_defined(captions)


def test_every_code_point_alone_and_between_letters_gives_the_defined_words(inert: set[int]) -> None:
    """Compare every code point that takes the fast path. The others use the definition itself."""
    alone = pl.Series([chr(code) for code in CODE_POINTS])
    assert set(pl.Series(CODE_POINTS).filter(~needs_reference(alone))) == inert
    for template in ("{0}", "a{0}b", "A{0}B'{0}s 9{0}9 <{0}& {0} {0}"):
        captions = pl.Series([template.format(chr(code)) for code in sorted(inert)])
        fast = captions.filter(~needs_reference(captions))
        assert len(fast) > 0.99 * len(inert)
        assert_as_defined(fast)


def test_random_strings_of_inert_characters_have_the_defined_words(inert: set[int]) -> None:
    rng = np.random.default_rng(0)
    any_letters = [chr(code) for code in sorted(inert)]
    # sampled separately, because European letters and quotes would rarely meet among the many ideographs
    near_letters = [letter for letter in any_letters if 0x80 <= ord(letter) < 0x500 or 0x2010 <= ord(letter) < 0x2040]
    ascii_pieces = ["'s", "'T", "<start_of_text>", " ", "& ", "a", "Z", "7", "'", "!"]
    alphabets = [np.array(pieces) for pieces in (ascii_pieces, near_letters, ascii_pieces, any_letters, ascii_pieces)]
    strings = pl.Series(["".join(str(rng.choice(alphabets[i % 5])) for i in range(10)) for _ in range(10_000)])
    fast = strings.filter(~needs_reference(strings))
    assert len(fast) > 4000
    assert_as_defined(fast)


def test_random_strings_of_entity_pieces_have_the_defined_words() -> None:
    rng = np.random.default_rng(1)
    pieces = [
        "&amp; ",
        "&amp;",
        "&quot;",
        "&#39;",
        "&#039;",
        "&lt;",
        "&gt;",
        "&",
        "& ",
        " ",
        "amp;",
        "quot;",
        "#39;",
        ";",
    ]
    alphabet = np.array([*pieces, *pieces[:7], "a", "S", "9", "<", "'", "é", "’", "ſ", "Ã", "&AMP;", "&nbsp;"])
    strings = pl.Series(["".join(rng.choice(alphabet, rng.integers(1, 9))) for _ in range(10_000)])
    assert 2000 < needs_reference(strings).sum() < 8000
    assert_as_defined(strings)


def test_inert_characters_never_compose(inert: set[int]) -> None:
    """Show that strings of inert characters are in NFC: all are starters, and none can be second in a composition."""
    seconds = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    for code in CODE_POINTS:
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            seconds.add(int(parts[1], 16))
    assert not inert & seconds
    assert all(unicodedata.combining(chr(code)) == 0 for code in inert)
    assert all(unicodedata.is_normalized("NFC", chr(code)) for code in inert)
    quotes = set(map(ord, "\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f"))
    assert {code for code in inert if ftfy.fix_text(chr(code)) != chr(code)} - quotes <= {0x0D}


def test_every_mojibake_pattern_of_ftfy_fails_the_fast_path_rule(inert: set[int], mojibake: set[int]) -> None:
    """Show that text which ftfy takes as mojibake leaves the fast path.

    Every alternative of ftfy's pattern needs a character that is not inert, or two adjacent non-ASCII characters, of
    which one is in MOJIBAKE_CHARACTERS."""
    (branch,) = _parser.parse(BADNESS_RE.pattern, re.VERBOSE)
    alternatives = branch[1][1]
    assert len(alternatives) > 30
    for alternative in alternatives:
        sets = [characters_of(node) for node in alternative]
        excluded = any(found is not None and not found & inert for found in sets)
        adjacent = any(
            left is not None
            and right is not None
            and not (left | right) & ASCII
            and (left <= mojibake or right <= mojibake)
            for left, right in itertools.pairwise(sets)
        )
        assert excluded or adjacent, alternative


def characters_of(node: tuple[object, object]) -> set[int] | None:
    """Return the code points that a node of a parsed pattern matches, or None if the node does not list them."""
    kind, value = node
    if kind is _constants.LITERAL:
        return {value}
    if kind is not _constants.IN:
        return None
    found: set[int] = set()
    for item, argument in value:
        if item is _constants.LITERAL:
            found.add(argument)
        elif item is _constants.RANGE:
            found.update(range(argument[0], argument[1] + 1))
        else:
            return None
    return found
