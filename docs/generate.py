"""Write docs/configuration.md, docs/tables.md and docs/health.md from the code, or check them.

python docs/generate.py            write them
python docs/generate.py --check    name each stale file and end with exit code 1
"""

import argparse
import json
import re
import sys
import tomllib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from words import (
    ALARM,
    COST_KEYS,
    FACTS,
    KEPT_VARIANTS,
    KEYS,
    LORA,
    MANIFEST_KEYS,
    METRICS,
    METRICS_OF_FEEDBACK,
    METRICS_OF_RLSD,
    METRICS_OF_TASKS,
    MIXTURE,
    ORIGIN_KEYS,
    PLANTED_ALARM,
    ROW_OF,
    RUN_FOLDER,
    WIDER,
)

from flows.session.stage_runner import STAGES
from pipeline.config.data import DataSection, TaskEntry
from pipeline.config.load import load_config, preset_names, preset_text
from pipeline.config.sections import Config, LoraSection, ModelSection
from pipeline.health.rules import EVALUATION_RULES, STEP_RULES, Rule
from pipeline.health.shifts import MAJORITY, NOISE, PAST, RECENT, WINDOW
from pipeline.run.run import MAY_CHANGE, MAY_GROW
from pipeline.stage.contract import Stage
from pipeline.tables.manifest import Cost, Manifest, Origin
from pipeline.tables.schemas import SCHEMA_VERSION, SCHEMAS, TOKEN_TABLES, teacher_schema

FOLDER = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py: change the code, then run `make docs`. -->"


def configuration_page() -> str:
    """Return docs/configuration.md."""
    parts = [
        "# Configuration",
        NOTE,
        "A configuration is a TOML file, or a preset by name, with one section per part of the "
        "pipeline. Keys that are left out have the defaults below. Unknown keys, wrong types and "
        "settings that contradict each other are errors. On the command line, "
        "`--set section.key=value` overrides the file; the value `none` unsets a setting. A "
        "configuration is resolved once and stored in `run.json`.",
        "*required* means that there is no default.",
    ]
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        parts += [f"## {name}", (section.__doc__ or "").strip()]
        parts.append(_table(KEYS, _keys(name, section)))
        if section is DataSection:
            parts += [MIXTURE, _table(KEYS, _keys("data.mixture.NAME", TaskEntry))]
        if section is ModelSection:
            parts += [LORA, _table(KEYS, _keys("model.lora", LoraSection))]
    parts += [
        "## Settings that depend on each other",
        "\n".join(
            [
                '- `weigh.beta` unset becomes 1 for `route.method = "srpo"` and 0 for every '
                "other method; another method with a beta that is not 0 is an error.",
                '- `generate.rollouts = 1` is an error unless `route.method = "grpo"`, or teachers '
                "have other sources than siblings: a group of one has none.",
                "- `weigh.survival` is for `srpo`. `route.bank_max_age` needs the bank in "
                "`route.sources`; without any source, `route.feedback_alone` must be on.",
                "- `route.mini_batch` is at most `generate.questions`.",
                "- With `model.lora`, `run.snapshot_every` unset becomes 1: a snapshot then holds "
                "adapters alone, and a resume replays nothing. `model.base_dtype` needs "
                "`model.lora`, and `model.cpu_offload` excludes it.",
                "- `data.max_prompt_length`, `route.max_teacher_prompt_length` and the response "
                "limits must fit into the model's positions; this is checked when the model is "
                "opened.",
                f"- On resume, {_run_keys(MAY_GROW)} may grow, and {_run_keys(MAY_CHANGE)} may "
                "change. Nothing else may.",
            ]
        ),
        "## Presets",
        "What each preset sets. Everything else has its default.",
        *_presets(),
    ]
    return "\n\n".join(parts) + "\n"


def tables_page() -> str:
    """Return docs/tables.md."""
    parts = [
        "# Tables and the run folder",
        NOTE,
        f"This is schema version {SCHEMA_VERSION}. Tables are uncompressed Arrow IPC files. Every "
        "table of a step has the key `rollout_id`, and all but `bank` have its values in the same "
        "order. It is `{step:06d}-{group:04d}-{sample:02d}` in training, with a leading `e` in "
        "evaluations. "
        "Log-probabilities and entropies are in nats. Tables hold nothing that differs between two "
        "equal runs: times and memory are in manifests.",
        "## The run folder",
        RUN_FOLDER,
        "Snapshots and evaluations are named by the steps done, `{steps:06d}`: N is the state "
        "after "
        "N steps.",
    ]
    for stage in STAGES.values():
        for name in stage.writes:
            parts += _table_section(stage, name)
    parts += [
        "## Manifests",
        "Beside each table is its manifest, `NAME.json`. Writing it commits the table.",
        _described(Manifest, MANIFEST_KEYS),
        "### origin",
        _described(Origin, ORIGIN_KEYS),
        "### cost",
        _described(Cost, COST_KEYS),
        "### facts",
        _table(("stage", "facts"), [(f"`{s.name}`", FACTS[s.name]) for s in STAGES.values()]),
        "## metrics.json",
        "One flat record per step, computed from its tables and manifests alone. *null* stands "
        "where "
        "there is nothing to count.",
        _table(("key", "meaning"), [(f"`{k}`", v) for k, v in METRICS.items()]),
        METRICS_OF_FEEDBACK,
        METRICS_OF_RLSD,
        METRICS_OF_TASKS,
    ]
    return "\n\n".join(parts) + "\n"


def health_page() -> str:
    """Return docs/health.md."""
    parts = [
        "# Health",
        NOTE,
        "After each step, rules look at the records of all steps and evaluations so far. If a rule "
        "finds something, it raises an *alarm*: a line in the progress display and in the summary, "
        "a box on the pages, and an entry of `alarms` in the step's `metrics.json`. `srpo runs` "
        "counts alarms. Each rule raises at most one alarm in a run, at the first record that "
        "shows the trouble. Rules read nothing but these records, so a resumed or repeated run "
        "raises the same alarms.",
        "The rules of evaluations run when an evaluation is made; their alarms are in the record "
        "of the step that follows. A broken format shows first at the low temperature of "
        "evaluations, so the smaller `evaluate.every` is, the sooner it is noticed.",
        "## Rules of steps",
        _rules(STEP_RULES),
        "## Rules of evaluations",
        _rules(EVALUATION_RULES),
        "## When a number has changed",
        f"Where a rule says that a number falls or grows, {MAJORITY} of the last {RECENT} steps "
        f"must lie beyond a limit, which is counted from the number's past: at least {PAST} steps "
        "before these. The limit is the furthest of three: the relative change in the table, an "
        f"absolute change, and {NOISE:g} times the usual change from one step to the next. So a "
        "run with few rollouts a step, whose numbers vary more, needs a larger change.",
        f"The past is the median of a window of {WINDOW} steps. Of all windows, the one with the "
        "highest median counts, so that a slow fall is found too, while a slow rise is not. For "
        f"entropies and weights, which fall as a policy learns, it is the last {WINDOW} steps. "
        "Responses that could not be judged are left out of format rates. The constants and their "
        "reasons are in `pipeline/health/thresholds.py` and `pipeline/health/shifts.py`.",
        "## What an alarm says",
        _table(("key", "meaning"), [(f"`{k}`", v) for k, v in ALARM.items()]),
        "This one is from a planted collapse (`tests/planted/`): from step 12 on, answers lost "
        "their format at the temperature of evaluations, while training showed nothing.",
        PLANTED_ALARM,
        "The scripts there plant one kind of trouble for each rule. Tests demand that its own rule "
        "raises the alarm within five steps (`nothing_taught`: ten), with evidence that shows it, "
        "and that healthy runs raise none.",
        "## What a training does about it",
        "A severe alarm means that the policy is being lost. `run.on_alarm` decides what follows:",
        "\n".join(
            [
                '- `"continue"` (the default) only reports it.',
                '- `"stop"` ends the training after the step, with exit code 3. `srpo train '
                "--resume` goes on regardless.",
                '- `"fork"` ends it too, and goes on in a new run beside it: from the newest '
                f"snapshot that no alarm of the last {PAST} steps puts in doubt, at "
                "`run.alarm_rate_factor` times the learning rate. That fork stops at its own first "
                "severe alarm, since a run that fails twice is for a person to look at.",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _run_keys(names: Sequence[str]) -> str:
    *most, last = [f"`run.{name}`" for name in names]
    return f"{', '.join(most)} and {last}" if most else last


def _rules(rules: Sequence[Rule[Any]]) -> str:
    rows = [
        (f"`{rule.name}`", rule.meaning, "yes" if rule.severe else "no", rule.advice)
        for rule in rules
    ]
    return _table(("rule", "raised when", "severe", "what to do"), rows)


def _table_section(stage: Stage, name: str) -> Iterator[str]:
    schema = SCHEMAS[name] or teacher_schema(1)
    yield f"## {name}"
    reads = ", ".join(f"`{table}`" for table in stage.reads) or "no table"
    reads += "".join(f" and, where there is one, `{table}`" for table in stage.reads_if_made)
    reads += ", and `rollouts` and `verdicts` of the steps before" * ("earlier" in stage.uses)
    index = " Its manifest has an index of rollouts." if name in TOKEN_TABLES else ""
    yield f"Written by `{stage.name}` from {reads}. One row per {ROW_OF[name]}.{index}"
    rows = [
        (
            f"`{field.name}`",
            f"`{_arrow_type(field.type, name)}`",
            "yes" if field.nullable else "no",
            WIDER.get(field.name) or field.metadata[b"description"].decode(),
        )
        for field in schema
    ]
    yield _table(("column", "type", "null", "meaning"), rows)
    if name == "teacher":
        yield KEPT_VARIANTS


def _arrow_type(kind: pa.DataType, table: str) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"list<{kind.value_type}>[{'K' if table == 'teacher' else kind.list_size}]"
    if pa.types.is_list(kind):
        return f"list<{_arrow_type(kind.value_type, table)}>"
    if pa.types.is_struct(kind):
        inner = ", ".join(f"{f.name}: {f.type}" for f in kind)
        return f"struct<{inner}>"
    return str(kind)


def _keys(section: str, model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(f"{section}.{name}", inner)
            continue
        yield (
            f"`{section}.{name}`",
            _type(field.annotation),
            _default(field),
            _range(field),
            field.description or "",
        )


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in get_args(annotation))
    if origin is not None and not isinstance(origin, type):
        return _type(get_args(annotation)[0])
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "table"
    if origin is list:
        return f"list of {_type(get_args(annotation)[0])}"
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    if annotation is type(None):
        return "none"
    return names.get(annotation) or _type(get_args(annotation)[0])


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "*required*"
    return "none" if value is None else f"`{json.dumps(value)}`"


def _range(field: FieldInfo) -> str:
    """Return the bounds of a number, wherever the annotation keeps them."""
    bounds = dict(_bounds([*field.metadata, field.annotation]))
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return ", ".join(f"{signs[key]} {bounds[key]:g}" for key in signs if key in bounds)


def _bounds(parts: Sequence[Any]) -> Iterator[tuple[str, float]]:
    for part in parts:
        for key in ("gt", "ge", "lt", "le"):
            if (value := getattr(part, key, None)) is not None and not callable(value):
                yield key, value
        if isinstance(part, FieldInfo):
            yield from _bounds(part.metadata)
        yield from _bounds([*get_args(part)] if get_origin(part) is not Literal else [])
        yield from _bounds(getattr(part, "__metadata__", ()))


def _presets() -> Iterator[str]:
    for name in preset_names():
        text = preset_text(name)
        above = [line[1:].removeprefix(" ") for line in text.splitlines() if line.startswith("#")]
        yield f"### {name}"
        yield "\n".join(above)
        rows = [
            (f"`{section}.{key}`", f"`{json.dumps(value)}`")
            for section, values in tomllib.loads(text).items()
            for key, value in values.items()
        ]
        beta = load_config(name).weigh.beta
        if not any(key == "`weigh.beta`" for key, _ in rows):
            rows.append(("`weigh.beta`", f"`{beta}` (from `route.method`)"))
        yield _table(("key", "value"), rows)


def _described(model: type[BaseModel], texts: dict[str, str]) -> str:
    if list(model.model_fields) != list(texts):
        raise SystemExit(f"docs/generate.py: describe the keys of {model.__name__}")
    return _table(("key", "meaning"), [(f"`{k}`", v) for k, v in texts.items()])


def _table(header: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def _linked(page: str) -> str:
    """Turn "docs/method.md, section n" into a link to that heading.

    Tables on disk carry the descriptions of their columns, whose older name of the page stays.
    """
    method = (FOLDER / "method.md").read_text(encoding="utf-8")
    anchors = {
        number: re.sub(r"[^\w -]", "", f"{number} {title}".lower()).replace(" ", "-")
        for number, title in re.findall(r"^## (\d+)\. (.+)$", method, re.MULTILINE)
    }
    return re.sub(
        r"(?:docs/method|METHOD)\.md, (sections? (\d+)(?:(?:,| and| to) \d+)*)",
        lambda found: f"[the method, {found[1]}](method.md#{anchors[found[2]]})",
        page,
    )


def main() -> int:
    """Write or check the generated pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name stale files")
    check = parser.parse_args().check
    pages = {
        "configuration.md": _linked(configuration_page()),
        "tables.md": _linked(tables_page()),
        "health.md": health_page(),
    }
    stale = 0
    for name, text in pages.items():
        path = FOLDER / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"docs/{name} is not up to date: run make docs", file=sys.stderr)
            stale += 1
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
