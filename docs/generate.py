"""Write docs/configuration.md, docs/tables.md and docs/health.md from the code, or check them.

python docs/generate.py            write them
python docs/generate.py --check    name each stale file and end with exit code 1
"""

import argparse
import json
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

import stages.evaluate
import stages.generate
import stages.route
import stages.update
import stages.verify
import stages.weigh
from pipeline.config import Config
from pipeline.data_settings import DataSection, TaskEntry
from pipeline.health.rules import EVALUATION_RULES, STEP_RULES, Rule
from pipeline.health.shifts import MAJORITY, NOISE, PAST, RECENT, WINDOW
from pipeline.loading import load_config, preset_names, preset_text
from pipeline.manifest import Cost, Manifest, Origin
from pipeline.schemas import SCHEMA_VERSION, SCHEMAS, TOKEN_TABLES, teacher_schema
from pipeline.stage import Stage

FOLDER = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py: change the code, then run `make docs`. -->"

STAGES: list[Stage] = [
    stages.generate.STAGE,
    stages.verify.STAGE,
    stages.route.STAGE,
    stages.weigh.STAGE,
    stages.update.STAGE,
    stages.evaluate.STAGE,
]

ROW_OF = {
    "rollouts": "rollout",
    "verdicts": "rollout",
    "routes": "rollout",
    "scores": "rollout",
    "teacher": "response token of a rollout that the teacher scored",
    "weights": "response token of a rollout that the teacher scored",
    "updates": "rollout",
    "evaluations": "sampled answer to a test question",
}

KEPT_VARIANTS = (
    '`route.kept_dtype = "float16"` stores `teacher_logprobs` and `student_logprobs` as '
    "`list<halffloat>[K]`: a log-probability is then off by up to 2^-11 of itself. Everything else "
    "is computed before rounding and stays float32. `route.keep_student_logprobs = false` leaves "
    "the column `student_logprobs` out: training does not read it, `srpo check` can't recompute "
    "`jsd` without it, and audits know token losses only of `jsd` at alpha = 0.5 and "
    "`sampled_token`."
)
ORIGIN_KEYS = {
    "schema_version": "version of the schemas and of the run folder",
    "table": "name of the table",
    "step": "training step; for evaluations: steps done",
    "stage": "stage that made it",
    "stage_version": "that stage's version, raised by hand",
    "inputs": "SHA-256 of every table read, and digests of questions, seed or verifier where the "
    "stage uses them",
    "settings": "the configuration sections that the stage declares, in full",
    "policy_version": "version of the policy that was used; null without one",
    "teacher_version": "kind and version of the teacher, as in `ema@000012-1a2b3c4d5e6f`",
}
MANIFEST_KEYS = {
    "origin": "what the table was made from; the same in equal runs, and also in the Arrow file's "
    "schema metadata under `srpo`",
    "rows": "number of rows",
    "bytes": "size of the Arrow file",
    "sha256": "SHA-256 of the Arrow file",
    "facts": "numbers of the stage that belong to no row, see below",
    "index": "token tables: first row and number of rows of each rollout; else null",
    "cost": "what making it cost; differs between equal runs",
    "digest": "SHA-256 of the rest of this record",
}
COST_KEYS = {
    "seconds": "time in the stage's `run`; reading, checking and committing tables is not in it",
    "tokens": "tokens handled",
    "peak_memory_mb": "largest resident set of the process up to then, not of this stage alone",
    "created": "UTC time when the stage had made the table",
    "write_seconds": "time of writing, hashing and syncing the table; not in older manifests",
}
FACTS = {
    "generate": "`rollouts`; `truncated`, those cut at the length limit",
    "verify": "`errors`, responses that could not be judged",
    "route": "`teacher_passes`, rollouts that the teacher scored; `tokens_computed` and "
    "`tokens_naive`, see below",
    "weigh": "none",
    "update": "`learning_rate`; `loss`, `grad_norm` (before clipping) and `tokens` (N), one number "
    "per mini-batch; `checksum` of every bit of weights, teacher and optimizer after it; "
    "`tokens_computed` and `tokens_naive`; `next_policy_version`",
    "evaluate": "none",
}
KEYS = ("key", "type", "default", "range", "meaning")

MIXTURE = """\
### Several tasks in one run

Instead of `data.task`, a table for each task, two or more:

```toml
[data]
max_prompt_length = 1024

[data.mixture.arithmetic] # its task is called as it is
weight = 2

[data.mixture.capitals]
task = "tasks/capitals.py"

[data.mixture.chemistry]
task = "science_qa"
path = "/data/sciknoweval/chemistry"
weight = 0.5
```

On the command line: `--set data.mixture.arithmetic.weight=3`, `--set data.mixture=none`. A name
has at most 40 letters, digits, `_` and `-`; rollouts have it in their column `task`, and before
the `prompt_id` of their question, as in `capitals/Peru`. The order of the tables doesn't matter.

- Weights are shares of the questions of training, exact at any step: every task has had its
  share of all questions so far, rounded up or down. Nothing is drawn. Each task has seeded
  epochs of its own.
- `generate.questions` counts the questions of all tasks; a task with a small share is not in
  every step.
- Each answer is judged by its own task's verifier, in child processes that load no other task:
  `verify.workers` for each task. All other settings hold for all tasks.
- An evaluation asks test questions of every task, of each the first `evaluate.questions`.
  Accuracy overall is that of all its questions, each of which counts the same: a task with more
  questions counts more, and weights of training don't matter. For the same number of each task,
  set `evaluate.questions` to what the smallest has. Best snapshots, comparisons and alarms go by
  accuracy overall; each task's own stands beside it."""

METRICS = {
    "step": "training step",
    "rollouts": "rollouts of the step",
    "reward_mean": "mean reward",
    "correct_share": "share of correct rollouts",
    "format_rate": "share that keeps the output format",
    "verifier_errors": "responses that could not be judged",
    "truncated_share": "share cut at the length limit",
    "response_tokens_mean": "mean response length",
    "response_tokens_max": "longest response",
    "duplicate_share": "share of responses of 16 tokens or more that another question got too",
    "share_grpo": "share of rollouts on the GRPO route",
    "share_sdpo": "share on the SDPO route",
    "share_mix": "share on the mix route",
    "share_none": "share that is left out",
    "teacher_available": "share with a demonstration",
    "distils": "whether the method distils at all",
    "demonstrations": "responses that demonstrate",
    "demonstration_tokens_mean": "mean length of the responses that demonstrate; null: none",
    "other_tokens_mean": "mean length of all others",
    "correct_tokens_mean": "mean length of correct responses; null: none",
    "wrong_tokens_mean": "mean length of wrong responses; null: none",
    "taught_tokens": "tokens that the teacher scored",
    "teacher_entropy_mean": "their mean teacher entropy, nats; null without such tokens",
    "jsd_mean": "their mean divergence at alpha = 0.5, nats; null likewise",
    "weight_std": "deviation of their weights; null likewise",
    "loss": "mean loss of the step's optimizer updates",
    "grad_norm": "mean gradient norm before clipping",
    "learning_rate": "learning rate of the step",
    "updates": "optimizer updates",
    "routed_tokens": "sum of N over the updates",
    "computed_tokens": "response tokens that went through forward and backward",
    "logprob_gap_max": "largest |log pi_old - log pi_engine|, nats; null if not known",
    "logprob_gap_mean": "mean over rollouts of their largest such gap; null likewise",
    "logprob_gap_token_mean": "mean over computed tokens of |log pi_old - log pi_engine|, nats",
    "engine_kl": "mean over computed tokens of their estimate of KL(engine || pi_old), nats",
    "tis_cut_share": "computed tokens whose correction update.tis_clip cuts",
    "clipped_fraction": "mean over computed rollouts of their clipped_fraction",
    "tokens_computed": "tokens, padding included, that passed through models in route and update",
    "tokens_naive": "tokens of prompts and responses, were each rollout's prompt its own and none "
    "left out",
    "work_share": "the first divided by the second; null if nothing was computed",
    "seconds_generate": "seconds in generate",
    "seconds_verify": "seconds in verify",
    "seconds_route": "seconds in route",
    "seconds_weigh": "seconds in weigh",
    "seconds_update": "seconds in update",
    "seconds": "their sum; what `run.max_hours` counts",
    "tokens": "sampled tokens",
    "alarms": "what looks wrong since this step, see [health](health.md)",
    "digest": "SHA-256 of the rest of this record",
}

ALARM = {
    "rule": "the rule that raised it",
    "step": "first step, or state evaluated, at which the trouble shows",
    "healthy": "steps done of the newest state that is not known to be affected",
    "message": "what was found and what was expected",
    "evidence": "up to five rollouts that show it; ids of evaluations begin with e",
    "command": "shows the evidence",
    "severe": "whether `run.on_alarm` acts on it",
}

RUN_FOLDER = """\
    RUN/run.json                     resolved configuration, versions, hardware, digests; of a fork
                                     also its parent, whose tables it refers to, and what changed
    RUN/tokenizer/                   the tokenizer, so that tables can be read as text
    RUN/steps/000012/NAME.arrow      a table of step 12 (steps count from 0)
    RUN/steps/000012/NAME.json       its manifest; a table without one does not exist
    RUN/steps/000012/metrics.json    the step's flat record; it exists when the step is complete
    RUN/steps/000012/profile.json    where its time went, by `srpo train --profile`; nothing
                                     depends on it
    RUN/policy/000020/               the policy after 20 steps: a Hugging Face folder, and (beyond
                                     4 GiB in several files: teacher-00001-of-00008.safetensors)
        teacher.safetensors          the teacher in float32 (not for the live teacher)
        optimizer.safetensors        AdamW's state (not before the first update)
        state.json                   steps done, versions, SHA-256 of every other file
    RUN/evaluations/000020.arrow     answers of the policy after 20 steps, and its manifest .json"""


def configuration_page() -> str:
    """Return docs/configuration.md."""
    parts = [
        "# Configuration",
        NOTE,
        "A configuration is a TOML file, or a preset by name, with one section per part of the "
        "pipeline. Keys that are not given have the defaults below; unknown keys, wrong types and "
        "settings that contradict each other are errors. On the command line, "
        "`--set section.key=value` overrides a file; the value `none` is null. A configuration is "
        "resolved once and stored in `run.json`.",
        "Ranges are closed unless they say otherwise. *required* means that there is no default.",
    ]
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        parts += [f"## {name}", (section.__doc__ or "").strip()]
        parts.append(_table(KEYS, _keys(name, section)))
        if section is DataSection:
            parts += [MIXTURE, _table(KEYS, _keys("data.mixture.NAME", TaskEntry))]
    parts += [
        "## Settings that depend on each other",
        "\n".join(
            [
                '- `weigh.beta` unset becomes 1 for `route.method = "srpo"` and 0 for every '
                "other method; another method with a beta that is not 0 is an error.",
                '- `generate.rollouts = 1` is an error unless `route.method = "grpo"`: a group '
                "of one has no siblings.",
                "- `route.mini_batch` is at most `generate.questions`.",
                "- `data.max_prompt_length`, `route.max_teacher_prompt_length` and the response "
                "limits must fit into the model's positions; this is checked when the model is "
                "opened.",
                "- On resume, `run.steps` and `run.max_hours` may grow. Nothing else may change.",
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
        "table of a step has the key `rollout_id`, in the same order everywhere: "
        "`{step:06d}-{group:04d}-{sample:02d}` for training, with a leading `e` for evaluations. "
        "Log-probabilities and entropies are natural (nats). A table holds nothing that differs "
        "between two equal runs.",
        "## The run folder",
        RUN_FOLDER,
        "`{steps done:06d}` names snapshots and evaluations: number N is the state after N steps.",
    ]
    for stage in STAGES:
        for name in stage.writes:
            parts += _table_section(stage, name)
    parts += [
        "## Manifests",
        "`NAME.json` beside each table. Writing it is the commit of its table.",
        _described(Manifest, MANIFEST_KEYS),
        "### origin",
        _described(Origin, ORIGIN_KEYS),
        "### cost",
        _described(Cost, COST_KEYS),
        "### facts",
        _table(("stage", "facts"), [(f"`{s.name}`", FACTS[s.name]) for s in STAGES]),
        "## metrics.json",
        "One flat record per step, derived from its tables and manifests alone.",
        _table(("key", "meaning"), [(f"`{k}`", v) for k, v in METRICS.items()]),
        METRICS_OF_TASKS,
    ]
    return "\n\n".join(parts) + "\n"


METRICS_OF_TASKS = """\
In a run of several tasks each task has some of them for its own rollouts, after a slash:
`rollouts/NAME`, `reward_mean/NAME`, `correct_share/NAME`, `format_rate/NAME`,
`verifier_errors/NAME`, `truncated_share/NAME`, `response_tokens_mean/NAME`, `share_sdpo/NAME`
and `teacher_available/NAME`. Counts are 0 and the rest is null in a step that asked nothing of
it. The record of an evaluation, which commands and pages make from its table, has all its
numbers so, `accuracy/NAME`, `low/NAME`, `high/NAME`, `pass_at_k/NAME`, `questions/NAME` and so
on, beside those of all questions together."""

PLANTED_ALARM = """\
    ALARM evaluated_format_falls, step 12: format rate 78% at evaluation after 12 steps, at best
    100% before; in training it is 95%; srpo audit runs/planted --rollout e000012-0000-00"""


def health_page() -> str:
    """Return docs/health.md."""
    parts = [
        "# Health",
        NOTE,
        "After each step, rules look at the records of all steps and evaluations so far. What one "
        "of them finds is an alarm: a line in the progress display and in the summary, a box on "
        "the pages, and an entry of `alarms` in the step's `metrics.json`; `srpo runs` counts "
        "them. A rule raises one alarm in a run, at the first record that shows the trouble. Rules "
        "read nothing but records, so a resumed or repeated run raises the same alarms.",
        "An evaluation is judged when it is made, and its alarms stand in the record of the step "
        "that follows. Formats break at the evaluation's low temperature first, so "
        "`evaluate.every` says how soon that can be seen.",
        "## Rules of steps",
        _rules(STEP_RULES),
        "## Rules of evaluations",
        _rules(EVALUATION_RULES),
        "## When a number has changed",
        f"Where a rule says that a number falls or grows, {MAJORITY} of the last {RECENT} steps "
        f"must lie beyond a limit, and at least {PAST} steps before them are its past. The limit "
        f"is the furthest of three: the relative change above, an absolute change, and {NOISE:g} "
        "times what the number changes by from step to step anyway. A run of few rollouts needs a "
        f"larger change than one of many. The past is the window of {WINDOW} steps with the "
        "highest median, so a slow fall is found too and a slow rise is not; for entropies and "
        f"weights it is the last {WINDOW} steps, for they fall as a policy learns. Verdicts that "
        "failed are left out of format rates. The constants and their reasons are in "
        "`pipeline/health/thresholds.py` and `shifts.py`.",
        "## What an alarm says",
        _table(("key", "meaning"), [(f"`{k}`", v) for k, v in ALARM.items()]),
        "This one is of a planted collapse (`tests/planted/`): answers lost their form at the "
        "evaluation's temperature from step 12 on, while training noticed nothing.",
        PLANTED_ALARM,
        "The scripts there plant a trouble for every rule; tests demand that it is flagged within "
        "five steps of its onset (nothing taught: ten), by its own rule, with evidence that shows "
        "it, and that healthy runs stay silent.",
        "## What a training does about it",
        "`run.on_alarm` decides what follows a severe alarm, one by which the policy is being "
        'lost: `"continue"` (the default) only tells; `"stop"` ends the training after the step '
        '(exit code 3), and `srpo train --resume` goes on regardless; `"fork"` ends it and goes on '
        f"in a new run beside it, from the newest snapshot that no alarm of the last {PAST} steps "
        "doubts, at `run.alarm_rate_factor` times the learning rate. Such a fork stops at its own "
        "first severe alarm: a run that fails twice is for a person to look at.",
    ]
    return "\n\n".join(parts) + "\n"


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
    index = " Its manifest has an index by rollout." if name in TOKEN_TABLES else ""
    yield f"Written by `{stage.name}` from {reads}. One row per {ROW_OF[name]}.{index}"
    rows = [
        (
            f"`{field.name}`",
            f"`{_arrow_type(field.type, name)}`",
            "yes" if field.nullable else "no",
            field.metadata[b"description"].decode(),
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
    if origin is dict:
        return "table"
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
        first = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
        yield f"### {name}"
        yield " ".join(first)
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


def main() -> int:
    """Write or check the generated pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name stale files")
    check = parser.parse_args().check
    pages = {
        "configuration.md": configuration_page(),
        "tables.md": tables_page(),
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
