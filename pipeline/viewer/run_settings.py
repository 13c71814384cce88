"""What a run was made with: settings that are not the defaults, versions, hardware, policies."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from pipeline.config.field_types import Section
from pipeline.config.sections import Config
from pipeline.run.run import Run
from pipeline.tables.manifest import flat


@dataclass(frozen=True)
class Setting:
    """A setting, its default (None: it has none), and what it means."""

    key: str
    value: str
    default: str | None
    meaning: str


def changed_settings(config: Config) -> list[Setting]:
    """Return the settings that differ from the defaults, and those that have none.

    Of a section inside a section that may be there or not, they are all of its settings.
    """
    return [
        setting
        for name in type(config).model_fields
        for setting in _changed(name, getattr(config, name))
    ]


def _changed(name: str, section: Section) -> Iterator[Setting]:
    for setting, value, default in _settings(name, section):
        if not isinstance(value, Section):
            yield from [setting] if value != default else []
        elif isinstance(default, Section):
            yield from _changed(setting.key, value)
        else:
            yield from (inner for inner, *_ in _settings(setting.key, value))


def _settings(name: str, section: Section) -> Iterator[tuple[Setting, Any, Any]]:
    """Yield all settings of a section, each with value and default."""
    stored = section.model_dump()
    for key, field in type(section).model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = None if default is PydanticUndefined else written(default)
        setting = Setting(f"{name}.{key}", written(stored[key]), shown, field.description or "")
        yield setting, getattr(section, key), default


def written(value: Any) -> str:
    """Return a value as it stands in a configuration."""
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def origins(run: Run) -> list[tuple[str, str]]:
    """Return versions and hardware as pairs of a name and a text."""
    record = run.record
    facts = {**record.get("versions", {}), **flat(record.get("hardware", {}))}
    return [(key.replace("_", " "), written(value)) for key, value in facts.items()]


def policies(run: Run, steps: list[int]) -> list[tuple[str, str]]:
    """Return the policy and teacher versions of the run's first and newest step, and snapshots.

    With adapters, also what of the model is trained.
    """
    pairs = [("first policy", str(run.record.get("initial_policy_version", "-")))]
    if trained := run.record.get("trained"):
        pairs.append(("trained", str(trained)))
    routed = [step for step in steps if run.has("routes", step)]
    if routed:
        origin = run.manifest("routes", routed[-1]).origin
        pairs.append((f"teacher of step {routed[-1]}", origin.teacher_version or "none"))
    updated = [step for step in steps if run.has("updates", step)]
    if updated:
        facts = run.manifest("updates", updated[-1]).facts
        pairs.append(("newest policy", str(facts.get("next_policy_version"))))
    kept = run.snapshots()
    pairs.append(("snapshots after steps", ", ".join(map(str, kept)) or "none"))
    return pairs
