"""Make the reference of `report.json` and `sweep.json` from the classes that are their schema."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", Any: "any value"}


def markdown(path: str) -> str:
    """The reference of a class and of all classes that it holds, such as "orchestrator.results.run.Report"."""
    module, _, name = path.rpartition(".")
    return "\n\n".join(_class(kind) for kind in _reached(getattr(import_module(module), name)))


def _reached(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    # breadth first: the file's own keys, then those of its parts
    found = [kind]
    for one in found:
        yield one
        for field in one.model_fields.values():
            found += [below for below in _classes(field.annotation) if below not in found]


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _classes(part)]


def _class(kind: type[BaseModel]) -> str:
    rows = [f"| `{name}` | {_type(field.annotation)} |" for name, field in kind.model_fields.items()]
    about = [re.sub(r"\s+", " ", block) for block in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]
    return "\n".join([f"## {kind.__name__}", "", "\n\n".join(about), "", "| key | type |", "|---|---|", *rows])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is types.NoneType else _type(one) for one in arguments)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type, arguments))}]"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return NAMES[annotation]
