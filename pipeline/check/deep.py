"""`srpo check --deep`: the tables of one step against the float64 twin."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from pipeline.config.sections import Config
from pipeline.policy.prompts import prompt_time, strftime_at
from pipeline.run.run import Run
from pipeline.tables.rule_changes import padding_learns, unjudged_left_out
from pipeline.twin.compare_tables import (
    compare,
    compare_facts,
    compare_rollouts,
    compare_routes,
)
from pipeline.twin.formulas import Settings
from pipeline.twin.inputs import StepTwin
from pipeline.twin.step import Offered, recompute
from pipeline.twin.tolerances import Report

State = Mapping[str, Tensor]

_FLOOR = 4e-7
"""Four times the golden tests': plain float32 passes over demo responses unlike any in training are
off by 9e-5 in a log-probability (`pipeline.twin.tolerances` derives the rest from it)."""

_STOP_LEFT_OUT = 3
"""The version of stage generate since which texts lack the token that ended the response."""

_NEEDED = ("rollouts", "verdicts", "routes")
_COMPARED = ("teacher", "weights", "updates", "scores")


@dataclass(frozen=True)
class StartingState:
    """The policy and the teacher by which a step was scored.

    Attributes:
        folder: Hugging Face folder of the policy, or of the model under its adapters.
        version: the policy's version.
        teacher: parameters with coefficients; the teacher's logits are the weighted sum.
        adapters: A and B of the policy; None: it has none.
    """

    folder: Path
    version: str
    teacher: Sequence[tuple[State, float]]
    adapters: State | None = None


@dataclass(frozen=True)
class DeepReport:
    """What the twin says of a step.

    Attributes:
        lines: one for each disagreement.
        tables: tables compared.
        numbers: numbers compared.
        worst: largest deviation, as a share of what float32 may do there; `where` says of what.
        notes: what was not compared, and why.
    """

    lines: list[str]
    tables: list[str]
    numbers: int
    worst: float
    where: str
    notes: list[str]


def deep_check(
    run: Run,
    step: int,
    start: StartingState,
    before_updates: Mapping[int, State],
    progress: Callable[[int], None] = lambda passes: None,
    offered: Offered | None = None,
) -> DeepReport:
    """Recompute a step in float64 from its rollouts, verdicts and policies; compare its tables.

    Args:
        start: what scored the step.
        before_updates: parameters just before each optimizer update of the step, by mini-batch;
            updates without are not compared.
        progress: told of each rollout scored or learned from: twice the rollouts in all.
        offered: what the run's tasks offer its teachers, by source, task and question.

    Raises:
        StoreError: rollouts, verdicts or routes are missing, or a table is damaged.
    """
    banked = ["bank"] if "bank" in run.owner("routes", step).config.route.sources else []
    names = [n for n in (*_NEEDED, *banked, *_COMPARED) if n not in _COMPARED or run.has(n, step)]
    tables = {name: run.read(name, step) for name in names}
    settings = twin_settings(run, step)
    twin = recompute(
        tables,
        start.folder,
        start.teacher,
        settings,
        before_updates,
        run.tokenizer_path(),
        progress,
        start.adapters,
        offered,
    )
    report = Report(floor=_FLOOR)
    sampled_by = set(tables["rollouts"]["policy_version"].to_pylist())
    compare_rollouts(report, twin, tables["rollouts"], sampled_by == {start.version})
    compare_routes(report, twin, tables["routes"])
    compare(report, twin, *(tables.get(name) for name in _COMPARED))
    if "updates" in tables:
        compare_facts(report, twin, run.manifest("updates", step).facts)
    compared = [name for name in names if name not in ("verdicts", "bank")]
    notes = _notes(twin, tables, run.config, sampled_by == {start.version})
    return DeepReport(report.lines, compared, report.numbers, report.worst, report.where, notes)


def twin_settings(run: Run, step: int) -> Settings:
    """Return a step's settings for the twin: each of the run that made the table it governs."""
    route = run.owner("routes", step).config.route
    update = run.owner("updates", step).config.update
    weigh = run.owner("weights", step).config.weigh
    model = run.config.model
    updated = run.manifest("updates", step).origin if run.has("updates", step) else None
    sampled = run.manifest("rollouts", step).origin
    return Settings(
        method=route.method,
        advantage_scale=route.advantage_scale,
        success_threshold=run.owner("verdicts", step).config.verify.success_threshold,
        demonstration=route.demonstration,
        top_k=route.top_k,
        beta=1.0 if weigh.beta is None else weigh.beta,
        survival=weigh.survival,
        divergence=update.divergence,
        jsd_alpha=update.jsd_alpha,
        mix_lambda=update.mix_lambda,
        clip_low=update.clip_low,
        clip_high=update.clip_high,
        dual_clip=update.dual_clip,
        tis_clip=update.tis_clip,
        sdpo_ratio_clip=update.sdpo_ratio_clip,
        chat_template_kwargs={
            **model.chat_template_kwargs,
            "strftime_now": strftime_at(prompt_time(model)),
        },
        system_role=model.system_role,
        stop_in_text=sampled.stage_version < _STOP_LEFT_OUT,
        max_teacher_prompt_length=route.max_teacher_prompt_length,
        feedback=route.feedback,
        feedback_alone=route.feedback_alone,
        sources=route.sources,
        bank_max_age=route.bank_max_age,
        templates=route.templates.model_dump(),
        on_policy=updated is None or updated.policy_version == sampled.policy_version,
        early_routing=not unjudged_left_out(run.manifest("routes", step).origin.stage_version),
        padding_masked=updated is not None and not padding_learns(updated.stage_version),
        float32_norm=updated is not None and not padding_learns(updated.stage_version),
        lora_scale=model.lora.alpha / model.lora.rank if model.lora else 1.0,
        base_bfloat16=model.base_dtype == "bfloat16",
        credit_lambda=route.credit_lambda,
        credit_steps=route.credit_steps,
        credit_clip=weigh.credit_clip,
    )


def _notes(
    twin: StepTwin, tables: Mapping[str, pa.Table], config: Config, same_policy: bool
) -> list[str]:
    """Say what the comparison leaves out."""
    notes = ["verdicts are taken as they are: srpo stage verify --fork judges again"]
    if missing := [name for name in _COMPARED if name not in tables]:
        notes.append(f"no table {', '.join(missing)} in this step")
    left_out = sorted(set(twin.batch_tokens) - set(twin.batches))
    if left_out and "updates" in tables:
        notes.append(f"losses of updates {left_out} are not compared: their policies are unknown")
    if not twin.settings.on_policy:
        notes.append("off-policy step: log pi_old is taken as it is stored or reported")
    if not same_policy or config.generate.engine != "transformers":
        notes.append("sampled log-probabilities are not compared: another policy or engine")
    limit: Any = twin.settings.max_teacher_prompt_length
    over = [r for r in twin.rollouts.values() if len(r.teacher_prompt_ids or ()) > limit]
    if over:
        notes.append(f"{len(over)} teacher prompts over {limit} tokens: only their length compared")
    notes.append("the optimizer's step and the EMA are not recomputed: a replay checks them")
    return notes
