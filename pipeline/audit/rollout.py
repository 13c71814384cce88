"""One rollout whole: what was asked, answered, judged and decided, and every token of it.

Only the rows of this rollout are read of any token table.
"""

import re
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.audit.stored_logprobs import NOT_KEPT, keeps_student, kept_TK, pruned_fields
from pipeline.audit.token_losses import batch_tokens_of, losses_of, shares_T
from pipeline.audit.token_texts import TokenTexts
from pipeline.errors import ConfigError
from pipeline.gold_share import gold_share
from pipeline.run.run import Run
from pipeline.survival import log_survival_of
from pipeline.tables.schemas import CREDIT_LAMBDA, REWARD_WEIGHT, Row
from pipeline.text import printable

TOP = 5
UNCLOSED = "the response ends inside its think block"
"""What readers of a rollout are told where its column `unclosed_thinking` says so."""
_NONE_DISTILLED = "method rlsd distils nothing: see credit, each token's factor of the advantage"
ROLLOUT_ID = re.compile(r"(?P<kind>e?)(?P<step>[0-9]{6,9})-[0-9]{4,9}-[0-9]{2,9}")
"""The only form of a rollout id; whatever else a table or an address holds is none."""


@dataclass(frozen=True)
class LikelyToken:
    """A token among the likeliest: its id, text and log-probability (nats)."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class TokenRecord:
    """One response token. None where nothing was recorded; see `RolloutRecord.not_recorded`.

    Attributes:
        weight: factor of the token's divergence, of what is distilled.
        survival: S, how far the teacher, too, would have come to this token.
        reward_weight: weight of the GRPO loss beside the teacher's.
        credit: factor of the token's advantage, where a teacher distributes it (method rlsd).
        tis: correction from engine to trainer.
        loss: contribution to the sum of the rollout's losses, before the division by N.
        share: part of the sum of absolute losses of the rollout's tokens.
    """

    position: int
    id: int
    text: str
    sampled_logprob: float | None = None
    old_logprob: float | None = None
    student_entropy: float | None = None
    teacher_entropy: float | None = None
    raw_weight: float | None = None
    weight: float | None = None
    survival: float | None = None
    reward_weight: float | None = None
    credit: float | None = None
    jsd: float | None = None
    student_logprob: float | None = None
    teacher_logprob: float | None = None
    student_top: tuple[LikelyToken, ...] | None = None
    teacher_top: tuple[LikelyToken, ...] | None = None
    tis: float | None = None
    loss: float | None = None
    share: float | None = None


_OPTIONAL = tuple(f.name for f in fields(TokenRecord) if f.name not in ("position", "id", "text"))


@dataclass(frozen=True)
class RolloutRecord:
    """A rollout with everything that tables say of it.

    Attributes:
        rollout, verdict, route, update: its rows, without lists of tokens; None where the step has
            no such table yet.
        sibling_text: response of the demonstrating rollout, whatever step it is of.
        teacher_age: steps from that rollout to this one; None without one.
        feedback_gold_share: share of the gold answer that the verdict's feedback tells; None: there
            is no feedback, or the reference holds tests.
        batch_tokens: N of the mini-batch, by which token losses are divided in the objective.
        loss_difference: sum of the token losses less the recorded `loss_sum`; None without one.
        loss_note: why tables alone don't determine the token losses; empty: they do, and the
            difference is rounding.
        not_recorded: missing fields of tokens, why they are, and the setting that records them.
    """

    rollout_id: str
    step: int
    rollout: Row
    verdict: Row | None
    route: Row | None
    update: Row | None
    sibling_text: str | None
    teacher_age: int | None
    feedback_gold_share: float | None
    batch_tokens: int | None
    loss_difference: float | None
    loss_note: str
    not_recorded: dict[str, str]
    tokens: tuple[TokenRecord, ...]

    def to_dict(self) -> Row:
        """Return plain values for JSON."""
        return {**vars(self), "tokens": [_token_dict(token) for token in self.tokens]}


def rollout_record(run: Run, rollout_id: str) -> RolloutRecord:
    """Read one rollout of a training step (or of an evaluation: ids that begin with e).

    Raises:
        ConfigError: the run has no such rollout.
    """
    table, step = _place(run, rollout_id)
    row = _row(run, table, step, rollout_id)
    if row is None:
        raise ConfigError(f"{run.root}: no rollout {rollout_id}")
    if table == "evaluations":
        return _evaluated(run, step, row)
    verdict, route, update, scores = (
        _row(run, name, step, rollout_id) for name in ("verdicts", "routes", "updates", "scores")
    )
    teacher = _token_rows(run, "teacher", step, rollout_id)
    weights = _token_rows(run, "weights", step, rollout_id)
    columns = _token_columns(row, route, scores, teacher, weights)
    gone = pruned_fields(run, step, rollout_id)
    losses = None if gone else losses_of(run, row, route, update, columns, teacher)
    if losses is not None:
        if losses.loss_T is not None:
            columns |= {"loss": losses.loss_T, "share": shares_T(losses.loss_T)}
        columns |= {} if losses.tis_T is None else {"tis": losses.tis_T}
    sibling = _demonstration(run, route)
    return RolloutRecord(
        rollout_id=rollout_id,
        step=step,
        rollout=_without_tokens(row),
        verdict=verdict,
        route=_without_tokens(route),
        update=update,
        sibling_text=sibling["response_text"] if sibling else None,
        teacher_age=step - sibling["step"] if sibling else None,
        feedback_gold_share=_gold_share(row, verdict),
        batch_tokens=batch_tokens_of(run, step, update["mini_batch"]) if update else None,
        loss_difference=losses.difference if losses else None,
        loss_note=losses.note if losses else "",
        not_recorded={
            **_not_recorded(columns, route, update),
            **_dropped(columns, update, teacher),
            **gone,
        },
        tokens=_tokens(TokenTexts(run.tokenizer_path()), row["response_ids"], columns, teacher),
    )


def topk(run: Run, rollout_id: str, position: int) -> Row:
    """Return the row of `teacher` at one position: all K ids and log-probabilities, and `texts`.

    A tail of no mass (-inf) is None, and so are the student's log-probabilities if not kept.

    Raises:
        ConfigError: the run has no such rollout, or nothing is recorded there.
    """
    _, step = _place(run, rollout_id)
    rows = _token_rows(run, "teacher", step, rollout_id)
    if rows is None or not 0 <= position < rows.num_rows:
        raise ConfigError(f"{rollout_id}: nothing recorded at position {position}")
    row = rows.slice(position, 1).to_pylist()[0]
    texts = TokenTexts(run.tokenizer_path())
    tails = {name: row[name] for name in ("student_tail", "teacher_tail")}
    finite = {name: tail if isfinite(tail) else None for name, tail in tails.items()}
    return {
        "student_logprobs": None,
        **row,
        **finite,
        "texts": [texts(token) for token in row["topk_ids"]],
    }


def _place(run: Run, rollout_id: str) -> tuple[str, int]:
    form = ROLLOUT_ID.fullmatch(rollout_id)
    if form is None:
        shown = printable(rollout_id, 60)
        raise ConfigError(f"{shown!r} is no rollout id; one looks like 000012-0003-07")
    table = "evaluations" if form["kind"] else "rollouts"
    step = int(form["step"])
    if not run.has(table, step):
        raise ConfigError(f"{run.root}: no rollout {rollout_id}: step {step} has no {table}")
    return table, step


def _row(run: Run, table: str, step: int, rollout_id: str) -> Row | None:
    if not run.has(table, step):
        return None
    rows: list[Row] = run.read_rollout(table, step, rollout_id).to_pylist()
    return rows[0] if rows else None


def _demonstration(run: Run, route: Row | None) -> Row | None:
    """Return the rollout that demonstrates: of this step, or of an earlier one from the bank."""
    name = (route or {}).get("teacher_rollout_id")
    form = ROLLOUT_ID.fullmatch(name) if name else None
    return None if form is None else _row(run, "rollouts", int(form["step"]), form[0])


def _gold_share(row: Row, verdict: Row | None) -> float | None:
    if verdict is None or not (verdict["feedback"] or "").strip():
        return None
    return gold_share(
        verdict["feedback"], row["reference"], verdict["prediction"], row["response_text"]
    )


def _token_rows(run: Run, table: str, step: int, rollout_id: str) -> pa.Table | None:
    if not run.has(table, step):
        return None
    rows = run.read_rollout(table, step, rollout_id)
    return rows if rows.num_rows else None


def _without_tokens(row: Row | None) -> Any:
    if row is None:
        return None
    lists = ("prompt_ids", "response_ids", "sampled_logprobs", "teacher_prompt_ids")
    return {key: value for key, value in row.items() if key not in lists}


def _evaluated(run: Run, step: int, row: Row) -> RolloutRecord:
    texts = TokenTexts(run.tokenizer_path())
    names = ("reward", "correct", "format_ok", "prediction", "feedback", "verifier", "error")
    return RolloutRecord(
        rollout_id=row["rollout_id"],
        step=step,
        rollout=_without_tokens({k: v for k, v in row.items() if k not in names}),
        verdict={name: row[name] for name in names},
        route=None,
        update=None,
        sibling_text=None,
        teacher_age=None,
        feedback_gold_share=_gold_share(row, row),
        batch_tokens=None,
        loss_difference=None,
        loss_note="",
        not_recorded=dict.fromkeys(_OPTIONAL, "evaluations keep no log-probabilities"),
        tokens=_tokens(texts, row["response_ids"], {}, None),
    )


def _token_columns(
    row: Row,
    route: Row | None,
    scores: Row | None,
    teacher: pa.Table | None,
    weights: pa.Table | None,
) -> dict[str, Any]:
    """Return what is recorded per token, by field of `TokenRecord`, as arrays [T]."""
    columns = {"sampled_logprob": np.array(row["sampled_logprobs"])}
    if scores is not None and scores["old_logprobs"]:
        columns["old_logprob"] = np.array(scores["old_logprobs"])
    if scores is not None and scores["student_entropy"]:
        columns["student_entropy"] = np.array(scores["student_entropy"])
    if teacher is not None:
        columns["teacher_entropy"] = teacher["entropy"].to_numpy()
        for name in ("jsd", "student_logprob", "teacher_logprob"):
            columns[name] = teacher[name].to_numpy()
        columns["survival"] = np.exp(log_survival_of(teacher))
    if weights is not None:
        distributed = route is not None and route["route"] == "grpo"
        columns["credit" if distributed else "weight"] = weights["weight"].to_numpy()
        for name in ("raw_weight", REWARD_WEIGHT):
            if name in weights.column_names:
                columns[name] = weights[name].to_numpy()
    return columns


def _tokens(
    texts: TokenTexts, ids: list[int], columns: dict[str, Any], teacher: pa.Table | None
) -> tuple[TokenRecord, ...]:
    names = list(columns)
    values = zip(*(np.asarray(columns[n], dtype=float).tolist() for n in names), strict=True)
    rows = list(values) if names else [()] * len(ids)
    tops = _tops(texts, teacher)
    return tuple(
        TokenRecord(position, token, texts(token), **dict(zip(names, row, strict=True)), **top)
        for position, (token, row, top) in enumerate(
            zip(ids, rows, tops or [{}] * len(ids), strict=True)
        )
    )


def _tops(texts: TokenTexts, teacher: pa.Table | None) -> list[dict[str, Any]]:
    """Return the likeliest kept tokens of student and teacher at each position."""
    if teacher is None:
        return []
    ids = kept_TK(teacher, "topk_ids")
    found: list[dict[str, Any]] = [{} for _ in range(len(ids))]
    for who in ("student", "teacher") if keeps_student(teacher) else ("teacher",):
        logprobs = kept_TK(teacher, f"{who}_logprobs")
        order = np.argsort(-logprobs, axis=1, kind="stable")[:, :TOP]
        best_ids = np.take_along_axis(ids, order, axis=1).tolist()
        best = np.take_along_axis(logprobs, order, axis=1).tolist()
        for entry, names, values in zip(found, best_ids, best, strict=True):
            entry[f"{who}_top"] = tuple(
                LikelyToken(token, texts(token), value)
                for token, value in zip(names, values, strict=True)
            )
    return found


def _token_dict(token: TokenRecord) -> Row:
    tops = {
        name: None if choices is None else [vars(choice) for choice in choices]
        for name, choices in (
            ("student_top", token.student_top),
            ("teacher_top", token.teacher_top),
        )
    }
    return {**vars(token), **tops}


def _not_recorded(columns: Row, route: Row | None, update: Row | None) -> dict[str, str]:
    """Say of each missing field why it is, and which setting records it."""
    needed = 'the step needed no such pass; route.rescore = "all" records it'
    found = dict.fromkeys(("old_logprob", "student_entropy", "tis"), needed)
    if "student_entropy" in columns:
        found["old_logprob"] = "off-policy: the policy that scored is not the one that sampled"
    distributes = CREDIT_LAMBDA in (route or {})
    found |= {"weight": _NONE_DISTILLED} if distributes else {}
    names = ("credit" if distributes else "weight", "raw_weight")
    if "teacher_entropy" in columns:
        found |= dict.fromkeys(names, "stage weigh has not run for this step")
    else:
        found |= dict.fromkeys(
            (*names, "teacher_entropy", "survival", "jsd", "student_logprob", "teacher_logprob",
             "student_top", "teacher_top"),
            _untaught(route),
        )  # fmt: skip
    if update is None:
        not_yet = "stage update has not run for this step"
        found |= dict.fromkeys(("tis", "loss", "share"), not_yet)
    return {name: reason for name, reason in found.items() if name not in columns}


def _dropped(columns: Row, update: Row | None, teacher: pa.Table | None) -> dict[str, str]:
    """Say what is missing because the student's K log-probabilities were not kept."""
    if teacher is None or keeps_student(teacher):
        return {}
    lost = {"student_top": NOT_KEPT}
    if update is not None and "weight" in columns and "loss" not in columns:
        reason = f"this divergence needs the student's K log-probabilities, {NOT_KEPT}"
        lost |= dict.fromkeys(("loss", "share"), reason)
    return lost


def _untaught(route: Row | None) -> str:
    if route is None:
        return "the step has no routes yet"
    if route["route"] in ("sdpo", "mix") or not route["teacher_available"]:
        return "no teacher was available, so nothing was taught"
    if CREDIT_LAMBDA in route:
        why = "the advantage is 0" if route["advantage"] == 0 else "its share has fallen to 0"
        return f"{why}: the teacher has nothing to distribute, and is not asked"
    return (
        f"routed to {route['route']}: a teacher pass is made only for what is distilled; "
        'route.method = "sdpo" distils whatever has a teacher'
    )
