"""Real and generated texts with what captions of the web have: mojibake, entities, emoji, odd blanks, every script."""

from __future__ import annotations

import html
import random
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from shutil import which

import polars as pl

from tests.support.pools import real_captions

BLANKS = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u200b\u2028\u3000\ufeff"
ENTITIES = ("&amp;", "&lt;b&gt;", "&amp;amp;", "&eacute;", "&#x1F600;", "&#39;", "&nbsp;", "&nosuch;", "&", "&#xD800;")
ODD = (
    "<start_of_text>",
    "<END_OF_TEXT>",
    "<ſtart_of_text>",
    "it's",
    "WE'LL",
    "'ſ",
    "ΟΔΟΣ ΣΑΣ",
    "İstanbul",
    "ﬁne",
    "ß",
    "\x00",
)
# scripts, symbols and emoji by their first and last characters; the last one is every character that has a code
RANGES = (
    (0x20, 0x7E),
    (0x20, 0x24F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0xDFF),
    (0x2000, 0x2BFF),
    (0x3040, 0x9FFF),
    (0xFB00, 0xFFFD),
    (0x1F300, 0x1FAFF),
    (0x01, 0x10FFFF),
)


def like_captions() -> list[str]:
    """Return the captions of the embedded pool, and the one-line summaries of this machine's packages."""
    texts = [caption for caption in real_captions(10_000) if caption]
    texts += [package.metadata["Summary"] for package in metadata.distributions() if package.metadata["Summary"]]
    start = "Description: "
    texts += [line.removeprefix(start) for line in _packages() if line.startswith(start)]
    return pl.Series(texts, dtype=pl.String).unique(maintain_order=True).to_list()


def real_texts() -> list[str]:
    """Return the captions, and every line of the descriptions of this machine's packages."""
    texts = like_captions()
    for package in metadata.distributions():
        texts += (package.metadata.get_payload() or "").splitlines()  # type: ignore[attr-defined]
    texts += _packages()
    return pl.Series(texts, dtype=pl.String).unique(maintain_order=True).to_list()


def _packages() -> list[str]:
    if not which("apt-cache"):
        return []
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=False, encoding="utf-8")
    return dump.stdout.splitlines()


def spoiled(text: str, draw: random.Random) -> str:
    """Return a text as a careless program would have stored it."""
    way = draw.randrange(6)
    if way == 0:
        return text.encode().decode(draw.choice(["latin-1", "cp1252", "cp437"]), errors="replace")
    if way == 1:
        return html.escape(html.escape(text) if draw.random() < 0.5 else text)
    if way == 2:
        place = draw.randrange(len(text) + 1)
        return text[:place] + draw.choice(ENTITIES + ODD) + text[place:]
    if way == 3:
        return draw.choice(BLANKS).join(text.split(" "))
    if way == 4:
        return "".join(draw.choice((str.upper, str.title, str.swapcase))(word) for word in text)
    return f"{text}{generated(draw)}"


def generated(draw: random.Random) -> str:
    """Return words of random characters, of one script or of all."""
    first, last = draw.choice(RANGES)
    characters = [chr(draw.randint(first, last)) for _ in range(draw.randint(0, 60))]
    # a lone surrogate is no text: it cannot be stored
    return "".join(draw.choice((one, one, one, one, " ")) for one in characters if not 0xD800 <= ord(one) <= 0xDFFF)


def noisy_texts(real: Sequence[str], num: int, seed: int) -> Iterator[str]:
    """Yield `num` texts: each real one once, then spoiled and generated ones."""
    draw = random.Random(seed)
    yield from real[:num]
    for _ in range(num - len(real)):
        yield spoiled(draw.choice(real), draw) if draw.random() < 0.6 else generated(draw)
