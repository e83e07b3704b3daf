"""The words of a caption, as CLIP's tokenizer sees them before byte-pair encoding.

A caption is repaired (`ftfy.fix_text`), HTML-unescaped twice, stripped, its white space collapsed, lower-cased, and
split by CLIP's pattern under IGNORECASE (Radford et al. 2021; WFPP, arXiv 2410.10879, counts the same words).
`reference_words` is that definition. `caption_words` returns the same lists for whole columns: if it is known that no
step but lower-casing and quotes changes a caption, Polars lower-cases and splits it; the definition handles all others.
"""

from __future__ import annotations

import html

import ftfy
import polars as pl
import regex
from ftfy.badness import is_bad

WORD_PATTERN = (
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's, verbatim
)
_WORD_RE = regex.compile(WORD_PATTERN, regex.IGNORECASE)

# The most frequent entities of web captions. They decode to plain ASCII and, as an ampersand is decoded only before a
# blank, never to a part of another entity: so it does not matter which of the three unescapings decodes them.
_COMMON_ENTITIES = {"&amp; ": "& ", "&quot;": '"', "&#39;": "'", "&#039;": "'", "&lt;": "<", "&gt;": ">"}

# ftfy replaces curly quotes one by one, so no sequence results that the rules below forbid.
_SINGLE_QUOTES = r"\x{2bc}\x{2018}-\x{201b}"
_DOUBLE_QUOTES = r"\x{201c}-\x{201f}"

# Characters that cleaning never changes (no control, width, ligature or normalisation fix applies, and none composes
# with the character before it), that Python and Polars lower-case in the same way, and that `regex` and Polars put in
# the same class of the pattern. Excluded, although harmless by themselves: characters that make ftfy suspect mojibake
# (Â, Ã, Œ, œ, C1 controls), capital sigma (its lower case depends on its position) and long s (equal to s under
# IGNORECASE).
_ASCII = r"\t\n\x0c\r\x20-\x7e"
_LATIN = r"\x{a0}-\x{c1}\x{c4}-\x{131}\x{134}-\x{148}\x{14a}-\x{151}\x{154}-\x{17e}\x{1ea0}-\x{1ef9}"
_GREEK_CYRILLIC = r"\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a4}-\x{3ff}\x{400}-\x{482}\x{48a}-\x{52f}"
_SEMITIC = r"\x{5d0}-\x{5ea}\x{620}-\x{64a}\x{660}-\x{66f}\x{671}-\x{6d5}"
_PUNCTUATION = r"\x{2002}-\x{2017}\x{2020}-\x{2027}\x{202f}-\x{205f}"
_SYMBOLS = r"\x{20a0}-\x{20bf}\x{2100}-\x{2125}\x{2190}-\x{2328}\x{232b}-\x{2426}\x{2460}-\x{27bf}"
_EAST_ASIAN = r"\x{3001}-\x{3029}\x{3041}-\x{3096}\x{30a0}-\x{30fe}\x{3400}-\x{4dbf}\x{4e00}-\x{9fff}\x{ac00}-\x{d7a3}"
_EMOJI = r"\x{fe0f}\x{1f300}-\x{1f64f}\x{1f680}-\x{1f6c5}\x{1f900}-\x{1f9ff}"
INERT_CHARACTERS = (
    f"{_ASCII}{_LATIN}{_GREEK_CYRILLIC}{_SEMITIC}{_PUNCTUATION}{_SYMBOLS}{_EAST_ASIAN}{_EMOJI}"
    f"{_SINGLE_QUOTES}{_DOUBLE_QUOTES}"
)
# ftfy repairs an encoding only where its pattern for mojibake matches. Apart from the characters excluded above, that
# pattern needs two adjacent non-ASCII characters, one of them in these blocks: only such captions are checked by ftfy.
MOJIBAKE_CHARACTERS = (
    r"\x{80}-\x{24f}\x{2b0}-\x{2ff}\x{384}\x{385}\x{402}\x{40e}\x{452}\x{45e}\x{490}\x{491}"
    r"\x{2000}-\x{23ff}\x{2500}-\x{25ff}\x{e000}-\x{f8ff}\x{fb00}-\x{fb06}\x{fffd}"
)
# Rust syntax. An ampersand before a blank is never the start of an HTML entity.
_NOT_INERT = rf"[^{INERT_CHARACTERS}]|&[^\x20]"
_PERHAPS_MOJIBAKE = rf"[{MOJIBAKE_CHARACTERS}][^\x00-\x7f]|[^\x00-\x7f][{MOJIBAKE_CHARACTERS}]"


def reference_words(caption: str) -> list[str]:
    """The words of one caption, in order: the definition."""
    text = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    words: list[str] = _WORD_RE.findall(" ".join(text.split()).lower())
    return words


def caption_words(captions: pl.Series) -> pl.Series:
    """The words of each caption.

    Args:
        captions: String [n]; null counts as empty.

    Returns:
        List[String] [n], never null: `reference_words` of each caption.
    """
    captions = captions.fill_null("")
    decoded = captions.str.replace_many(_COMMON_ENTITIES)
    slow = _needs_reference(decoded)
    fast_words = _inert_words(decoded.filter(~slow))
    if not slow.any():
        return fast_words.alias("words")
    slow_words = pl.Series([reference_words(caption) for caption in captions.filter(slow)], dtype=pl.List(pl.String))
    # both halves keep their order, so a stable sort of the flag inverts the split
    position = slow.arg_sort().arg_sort()
    return pl.concat([fast_words, slow_words]).gather(position).alias("words")


def needs_reference(captions: pl.Series) -> pl.Series:
    """Boolean [n]: captions (String [n], no nulls) that only `reference_words` is known to split correctly."""
    return _needs_reference(captions.str.replace_many(_COMMON_ENTITIES))


def _needs_reference(decoded: pl.Series) -> pl.Series:
    suspects = decoded.str.contains(_PERHAPS_MOJIBAKE)
    slow = decoded.str.contains(_NOT_INERT)
    checked = (suspects & ~slow).arg_true()
    return slow.scatter(checked, [is_bad(caption) for caption in decoded.gather(checked)])


def _inert_words(captions: pl.Series) -> pl.Series:
    straight = captions.str.replace_all(f"[{_SINGLE_QUOTES}]", "'").str.replace_all(f"[{_DOUBLE_QUOTES}]", '"')
    return straight.str.to_lowercase().str.extract_all(WORD_PATTERN)
