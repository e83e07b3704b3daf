"""The base of every group of settings, and the number types that groups share."""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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


def not_empty(place: Any) -> Any:
    """Check a path or several: an empty one, such as from an unset variable of the shell, is the working folder."""
    if place == "" or (isinstance(place, tuple) and "" in place):
        raise ValueError("got an empty value, expected a path or URI")
    return place


class Section(BaseModel):
    """A group of settings: immutable, and an unknown key is an error.

    The string below each setting is its meaning in the configuration reference of the documentation. A number's string
    ends with its unit, as in "Unit: steps."; "Unit: none." marks a plain number. `tests/docs` checks both."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    _not_empty = field_validator("uri", "root", check_fields=False)(not_empty)

    @model_validator(mode="before")
    @classmethod
    def _single_value_as_list(cls, raw: Any) -> Any:
        # users write `steps=wfpp` and mean `steps=[wfpp]`
        if not isinstance(raw, dict):
            return raw
        return {
            name: [value] if name in _list_keys(cls) and isinstance(value, str | int | float) else value
            for name, value in raw.items()
        }


@cache
def _list_keys(section: type[Section]) -> frozenset[str]:
    """The settings that take a list of any length, and no text in its place."""
    return frozenset(name for name, field in section.model_fields.items() if _is_list(field.annotation))


def _is_list(kind: Any) -> bool:
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return str not in members and any(get_origin(one) is tuple and ... in get_args(one) for one in members)


# the types of GPUs for which `plan` knows the memory
GpuName = Literal[
    "t4", "v100-16", "v100-32", "l4", "a10", "l40s", "rtx4090", "a100-40", "a100-80", "h100", "h200", "b200"
]
