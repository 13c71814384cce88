"""From a preset's name or a TOML file and dotted overrides to a `Config`, or one clear line."""

import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import Config
from pipeline.errors import ConfigError

PRESETS = resources.files("pipeline") / "presets"


def preset_names() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(p.name.removesuffix(".toml") for p in PRESETS.iterdir() if p.name[-5:] == ".toml")


def preset_text(name: str) -> str:
    """Return the TOML text of a preset."""
    return (PRESETS / f"{name}.toml").read_text(encoding="utf-8")


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """Load a preset or a TOML file and apply `section.key=value` overrides.

    Raises:
        ConfigError: no such preset or file, malformed TOML, unknown key, wrong type, or settings
            that contradict each other.
    """
    values = _read_source(source)
    for override in overrides:
        apply_override(values, override)
    return validate_config(values, source)


def validate_config(values: Mapping[str, Any], source: str) -> Config:
    """Build a `Config` from nested values; `source` only names them in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = "; ".join(_explain(detail) for detail in error.errors())
        raise ConfigError(f"{source}: {lines}") from None


def config_keys() -> list[str]:
    """Return every dotted key that a configuration may hold."""
    return [
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in _section_class(field.annotation).model_fields
    ]


def _read_source(source: str) -> dict[str, Any]:
    path = Path(source)
    if source in preset_names():
        text = preset_text(source).encode()
    elif path.suffix == ".toml" and path.is_file():
        text = path.read_bytes()
    else:
        names = preset_names()
        near = difflib.get_close_matches(source, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{source}: neither a TOML file nor a preset; {hint}{', '.join(names)}")
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in nested values, in place.

    Raises:
        ConfigError: it is not of that form, the key is unknown, or it lies below a plain setting.
    """
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot):
        raise ConfigError(f"--set {override!r}: expected section.key=value")
    _known_key(f"{section}.{name.split('.')[0]}")
    table = values
    *parents, last = f"{section}.{name}".split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {parent} is {table!r}, not a table of settings")
    table[last] = _parse_value(f"{section}.{name}", text.strip())


def _parse_value(key: str, text: str) -> Any:
    """Read a value as JSON or TOML would; `none` is null, anything else that fails is a string."""
    section, name = key.split(".", 1)
    field = _section_class(Config.model_fields[section].annotation).model_fields.get(name)
    if field is not None and _accepts_only_text(field.annotation):
        return None if text == "none" else text
    if text == "none":
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _accepts_only_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return all(a is str or a is type(None) for a in get_args(annotation))
    return annotation is str


def _section_class(annotation: Any) -> type[BaseModel]:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise TypeError(f"{annotation} is not a section")
    return annotation


def _known_key(key: str) -> None:
    keys = config_keys()
    if key in keys:
        return
    near = difflib.get_close_matches(key, keys, 1, cutoff=0.0)
    raise ConfigError(f"unknown key {key}; the nearest valid one is {near[0]}")


def _explain(detail: ErrorDetails) -> str:
    """Turn one of pydantic's details into half a line."""
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        sections = list(Config.model_fields)
        near = difflib.get_close_matches(key, config_keys() + sections, 1, cutoff=0.0)
        return f"unknown key {key}; the nearest valid one is {near[0]}"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"]) if "ctx" in detail else detail["msg"]
    if detail["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {json.dumps(detail['input'], default=str)}: {detail['msg'].lower()}"
