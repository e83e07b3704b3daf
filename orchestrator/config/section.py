"""The base of every group of settings, and the number types that groups share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import UserError

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Price = Annotated[float, Field(ge=0)]
MAX_IMAGE_PIXELS = 89_478_485
"""Pixels of the largest image that is decoded by default: the size from which Pillow warns of decompression bombs."""


class ConfigError(UserError, ValueError):
    """An invalid setting. The message is one line for the user."""


class Section(BaseModel):
    """A group of settings: immutable, and an unknown key is an error.

    The string below each setting is its meaning in the configuration reference of the documentation. A number's string
    ends with its unit, as in "Unit: steps."; "Unit: none." marks a plain number. `tests/docs` checks both."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)
