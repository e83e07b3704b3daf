"""Mask the e-mail addresses and phone numbers of the authors of clip art."""

from __future__ import annotations

import re

from phonenumbers import Leniency, PhoneNumberMatcher

EMAIL, PHONE = "<email>", "<phone>"
_ADDRESS = re.compile(r"(?:mailto:)?[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
# countries of numbers without a country code: those of most contributors. None: numbers with a country code
_REGIONS = (None, "US", "FR", "DE", "GB", "BR")


def masked(text: str) -> str:
    """Return the text with `<email>` and `<phone>` in place of addresses and valid phone numbers."""
    text = _ADDRESS.sub(EMAIL, text)
    for region in _REGIONS:
        # from the last match to the first, because a replacement moves what follows
        for found in reversed(list(PhoneNumberMatcher(text, region, leniency=Leniency.VALID))):
            text = text[: found.start] + PHONE + text[found.end :]
    return text
