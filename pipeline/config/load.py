"""Loading a `Config` from a preset or a TOML file and dotted overrides; errors fit on one line."""

import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.field_types import Section
from pipeline.config.sections import Config
from pipeline.errors import ConfigError
from pipeline.text import printable

MAX_BYTES = 64 * 1024
"""Bytes of the largest configuration file."""
_DOTS = 100
"""Most dots in a key: the time of TOML's reader grows with the square of its parts."""
_SHOWN = 100
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

PRESETS = resources.files("pipeline.config") / "presets"


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
        raise ConfigError(f"{_short(source)}: {lines}") from None


def config_keys() -> list[str]:
    """Return every dotted key that a configuration may hold."""
    return [
        f"{section}.{key}{inner}"
        for section in Config.model_fields
        for key, field in Config.section_type(section).model_fields.items()
        for inner in ("", *(f".{name}" for name in _inner_keys(field.annotation)))
    ]


def _inner_keys(annotation: Any) -> list[str]:
    """Return the keys of a setting that is a section of its own, or none."""
    kinds = [k for k in (annotation, *get_args(annotation)) if isinstance(k, type)]
    return [name for kind in kinds if issubclass(kind, Section) for name in kind.model_fields]


def _read_source(source: str) -> dict[str, Any]:
    name = _short(source)
    if source in preset_names():
        text = preset_text(source).encode()
    elif source.lower().endswith(".toml") and _is_there(source):
        text = _read_file(Path(source))
    else:
        names = preset_names()
        near = difflib.get_close_matches(source[:_SHOWN], names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{name}: neither a TOML file nor a preset; {hint}{', '.join(names)}")
    if text.startswith(_UTF16) or b"\0" in text[:2]:
        raise ConfigError(f"{name}: UTF-16; save it as UTF-8")
    try:
        return tomllib.loads(text.decode("utf-8-sig"))  # editors on Windows put a mark before it
    except RecursionError:
        raise ConfigError(f"{name}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # also of integers with thousands of digits
        raise ConfigError(f"{name}: not valid TOML: {printable(str(error), 200)}") from None


def _is_there(source: str) -> bool:
    try:
        return Path(source).exists()
    except OSError:  # a name that no file can have
        return False


def _read_file(path: Path) -> bytes:
    """Return the bytes of a regular file of bounded size."""
    try:
        if not path.is_file():
            raise ConfigError(f"{_short(str(path))}: not a regular file; expected a TOML file")
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{_short(str(path))}: can't be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ConfigError(
            f"{_short(str(path))}: over {MAX_BYTES // 1024} KiB; a configuration is smaller"
        )
    if any(part.count(b".") > _DOTS for line in text.split(b"\n") for part in line.split(b"=")):
        raise ConfigError(f"{_short(str(path))}: a key of more than {_DOTS} parts; expected 3")
    return text


def _short(text: str) -> str:
    """Return untrusted text for an error line."""
    return printable(text, 2 * _SHOWN)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in nested values, in place.

    Raises:
        ConfigError: it is not of that form, the key is unknown, or it lies below a plain setting.
    """
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot):
        raise ConfigError(f"--set '{_short(override)}': expected section.key=value")
    _known_key(f"{section}.{name.split('.')[0]}")
    if name.count(".") > (2 if name.startswith("mixture.") else 1):
        raise ConfigError(f"--set '{_short(override)}': no setting is nested as deeply")
    table = values
    *parents, last = f"{section}.{name}".split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"--set '{_short(override)}': {parent} is {_shown(table)}, not a table of settings"
            )
    table[last] = _parse_value(f"{section}.{name}", text.strip())


def _parse_value(key: str, text: str) -> Any:
    """Read a value as JSON or TOML would; `none` is null, anything else that fails is a string."""
    section, name = key.split(".", 1)
    field = Config.section_type(section).model_fields.get(name)
    if text[:1] in ("'", '"') and (quoted := _quoted(text)) is not None:
        return quoted
    if field is not None and _accepts_only_text(field.annotation):
        return None if text == "none" else text
    if text == "none":
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _quoted(text: str) -> str | None:
    """Return what stands in a text's quotes; None: it is not one quoted text."""
    try:
        found = tomllib.loads(f"value = {text}")
    except ValueError:
        return None
    return found["value"] if found.keys() == {"value"} else None


def _accepts_only_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return all(a is str or a is type(None) for a in get_args(annotation))
    return annotation is str


def _known_key(key: str) -> None:
    keys = config_keys()
    if key in keys:
        return
    raise ConfigError(_unknown(key, keys))


def _unknown(key: str, keys: Sequence[str]) -> str:
    near = difflib.get_close_matches(key[:_SHOWN], keys, 1, cutoff=0.0)
    return f"unknown key {_short(key)}; the nearest valid one is {near[0]}"


def _shown(value: Any) -> str:
    """Return a setting's value for an error line."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):
        text = f"a deeply nested {type(value).__name__}"
    return printable(text, _SHOWN)


def _explain(detail: ErrorDetails) -> str:
    """Return one of pydantic's error details as a phrase."""
    key = ".".join(_short(str(part)) for part in detail["loc"]) or "configuration"
    if detail["type"] == "extra_forbidden":
        return _unknown(key, config_keys() + list(Config.model_fields))
    if detail["type"] == "value_error" and detail["loc"] in ((), ("data",)):
        return str(detail["ctx"]["error"])
    if detail["type"] == "missing":
        return f"{key} is missing"
    given = _shown(detail["input"])
    if detail["type"] == "list_type" and isinstance(detail["input"], str):
        return f"{key} is {given}: expected a list, such as [{given}]"
    if detail["type"] in ("bool_type", "bool_parsing"):
        return f"{key} is {given}: expected true or false"
    reason = detail["msg"].removeprefix("Value error, ")
    return f"{key} is {given}: {reason[:1].lower()}{reason[1:]}"
