"""Make the configuration reference: types, units and meanings from the pydantic models in `orchestrator/config`, and
defaults from the composed configuration in `conf/`, so that neither can go stale."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic.fields import FieldInfo

from orchestrator.cli import conf_dir
from orchestrator.config import Config, Section, SelectionConfig, SourceConfig

REQUIRED = "???"
UNIT = re.compile(r"\s*Unit:\s(.+)\.\s*$", re.DOTALL)
BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}
NAMES = {str: "string", bool: "true or false", int: "integer", float: "number", Any: "any value"}
GENERAL = "general"
TAGS = (".kind", ".method", ".format")


@dataclass(frozen=True)
class Setting:
    """One key; `unit` is None for what is no number or has none, `composed` false for a key that is not in `conf/`."""

    key: str
    type: str
    default: str
    meaning: str
    unit: str | None
    composed: bool
    states_unit: bool


@dataclass(frozen=True)
class Group:
    """The keys of one section class at one path."""

    path: str
    about: str
    settings: tuple[Setting, ...]

    @property
    def page(self) -> str:
        """The part of the configuration that it belongs to: the first word of its path."""
        return re.split(r"[.=]", self.path)[0] or GENERAL


def markdown(page: str) -> str:
    """The reference of one part of the configuration ("training"; "general" for the keys without a group)."""
    written: set[str] = set()
    return "\n\n".join(_group(group, written) for group in all_groups() if group.page == page)


@cache
def all_groups() -> list[Group]:
    """Every group of the configuration, in its order; `source` once for each format."""
    groups = [group for group in _walk(Config, "", _composed()) if not group.path.startswith("source")]
    for kind in _members(SourceConfig):
        name = kind.model_fields["format"].default
        groups += _walk(kind, f"source={name}", _composed(f"source={name}")["source"])
    return groups


@cache
def _composed(*overrides: str) -> Any:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


def _walk(section: type[Section], path: str, raw: Mapping[str, Any]) -> Iterator[Group]:
    own, below = [], []
    for name, field in section.model_fields.items():
        key = f"{path}.{name}".lstrip(".")
        kind = _section_of(field.annotation)
        if isinstance(kind, type):
            below += list(_walk(kind, key, raw.get(name) or {}))
        elif section is SelectionConfig and name == "settings":
            below += _named(field, path, {step: node for step, node in raw.items() if step != "steps"})
        elif key != "source":
            named = _named(field, key, raw.get(name) or {})
            below += named
            if not (named and raw.get(name)):
                own.append(_setting(field, key, raw, name))
    if own:
        # a key that selects the class stands first
        own.sort(key=lambda setting: not setting.key.endswith(TAGS))
        yield Group(path, " ".join((section.__doc__ or "").split()), tuple(own))
    yield from below


def _named(field: FieldInfo, path: str, nodes: Mapping[str, Any]) -> list[Group]:
    # a mapping from names to sections: those that conf/ declares, or the form of one
    values = get_args(field.annotation)[1:] if get_origin(field.annotation) is dict else ()
    kinds = [kind for value in values for kind in _members(value)]
    if not kinds:
        return []
    if not nodes:
        return list(_walk(kinds[0], f"{path}.NAME", {}))
    groups: list[Group] = []
    for name, node in nodes.items():
        (kind,) = [kind for kind in kinds if len(kinds) == 1 or _tag(kind) in (node.get("kind"), node.get("method"))]
        groups += _walk(kind, f"{path}.{name}", node)
    return groups


def _tag(kind: type[Section]) -> str:
    return next(kind.model_fields[name].default for name in ("kind", "method") if name in kind.model_fields)


def _members(annotation: Any) -> list[type[Section]]:
    # the section classes of a union, which may be annotated with its discriminator
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [kind for part in get_args(annotation) if not isinstance(part, FieldInfo) for kind in _members(part)]


def _section_of(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _setting(field: FieldInfo, key: str, raw: Mapping[str, Any], name: str) -> Setting:
    meaning = " ".join((field.description or "").split())
    unit = UNIT.search(meaning)
    # a key that is missing in the form of a nameless mapping is the user's to write
    composed = name in raw or ".NAME." in key
    value = raw[name] if name in raw else REQUIRED if field.is_required() else field.default
    return Setting(
        key=key,
        type=type_text(field.annotation, field.metadata),
        default="required" if value == REQUIRED else f"`{yaml_text(value)}`",
        meaning=UNIT.sub("", meaning),
        unit=None if unit is None or unit[1] == "none" else unit[1],
        composed=composed,
        states_unit=unit is not None,
    )


def type_text(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in words: `int | None` with a bound is "integer > 0, or null"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], [bound for one in arguments[1:] for bound in _bounds(one)])
    if origin in (Union, types.UnionType):
        texts = [type_text(one, metadata) for one in arguments if one is not types.NoneType]
        return " or ".join(texts) + (", or null" if types.NoneType in arguments else "")
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {_plural(type_text(arguments[0]))}"
    if origin is tuple:
        return f"list of {len(arguments)} {_plural(type_text(arguments[0]))}"
    if origin is dict:
        return "mapping"
    if annotation is types.NoneType:
        return "null"
    bounds = [BOUNDS[name].format(getattr(one, name)) for one in metadata for name in BOUNDS if hasattr(one, name)]
    return " ".join([NAMES[annotation], " and ".join(bounds)]).strip()


def _bounds(one: Any) -> list[Any]:
    # pydantic's Field holds a list of bounds; annotated_types' own are one each
    return list(getattr(one, "metadata", [one]))


def _plural(text: str) -> str:
    word, _, rest = text.partition(" ")
    return text if word.startswith("`") or word == "any" else f"{word}s {rest}".strip()


def yaml_text(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {yaml_text(one)}' for key, one in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) and value < 0.001 else str(value)


def _group(group: Group, written: set[str]) -> str:
    heading = [] if group.path in ("", group.page) else [f"## `{group.path}`"]
    settings = []
    for setting in group.settings:
        # the formats of a source share keys: a link goes to the first
        key = re.sub(r"^source=\w+", "source", setting.key)
        settings.append(_confval(setting, key, is_known=key in written))
        written.add(key)
    return "\n\n".join([*heading, group.about, *settings])


def _confval(setting: Setting, key: str, *, is_known: bool) -> str:
    kind, null = re.fullmatch(r"(.*?)(, or null)?", setting.type).groups("")  # type: ignore[union-attr]
    unit = f" ({setting.unit})" if setting.unit else ""
    lines = [f"```{{confval}} {key}", f":type: {kind}{unit}{null}", f":default: {setting.default}"]
    if is_known:
        lines.append(":no-index:")
    added = [] if setting.composed else [f"\nNot in `conf/`: set it with a plus sign, `+{key}=...`."]
    return "\n".join([*lines, "", setting.meaning, *added, "```"])
