"""What the rows of a step's tables must be by docs/method.md and the recorded settings.

`pipeline.tables.invariants` holds what needs no settings. Tables of one row per rollout are checked
here, token tables in `token_tables`, the loss in `updates`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files.durable import digest_of
from pipeline.seeds import derive_seed
from pipeline.tables.invariants import Broken, require, within
from pipeline.tables.manifest import Manifest
from pipeline.tables.rule_changes import unjudged_left_out
from pipeline.tables.schemas import CREDIT_LAMBDA, UNCLOSED_THINKING, Row
from pipeline.twin.routing import (
    credit_at,
    ends_thinking,
    group_advantages,
    route_of,
    sibling_of,
)

_ENTROPY_SLACK = 1e-4
_SOLVED_FROM_THE_START = "word_problems"
"""The task that had worked solutions before manifests had a digest of all else of questions."""


@dataclass(frozen=True)
class StepTables:
    """The tables of a step that are whole, with their manifests.

    Attributes:
        settings: recorded settings by section.
        vocabulary: V; None if no snapshot says it.
    """

    step: int
    tables: Mapping[str, pa.Table]
    manifests: Mapping[str, Manifest]
    vocabulary: int | None

    def setting(self, table: str, section: str, key: str) -> Any:
        """Return a setting as the manifest of a table records it."""
        return self.manifests[table].origin.settings_of(section)[key]

    @property
    def highest_entropy(self) -> float:
        """Return ln V, with room for float32."""
        if self.vocabulary is None:
            return float("inf")
        return float(np.log(self.vocabulary)) * (1 + _ENTROPY_SLACK)


def rollouts_rules(step: StepTables) -> Iterator[Broken]:
    """Check rollouts against the settings by which they were sampled."""
    yield from _samples(step, "rollouts", "generate", "")


def evaluations_rules(step: StepTables) -> Iterator[Broken]:
    """Check evaluations: samples and verdicts."""
    yield from _samples(step, "evaluations", "evaluate", "e")
    yield from _judged(step, "evaluations")


def verdicts_rules(step: StepTables) -> Iterator[Broken]:
    """Section 1: c = 1 if r >= the threshold."""
    yield from _judged(step, "verdicts")


def _judged(step: StepTables, name: str) -> Iterator[Broken]:
    table = step.tables[name]
    ids = table["rollout_id"].to_pylist()
    threshold = np.float32(step.setting(name, "verify", "success_threshold"))
    right = table["reward"].to_numpy() >= threshold
    correct = np.asarray(table["correct"].to_pylist(), dtype=bool)
    yield from require(name, f"correct is reward >= {threshold}", ids, correct == right)
    judged = np.asarray(pc.is_null(table["error"]), dtype=bool)
    yield from require(name, "what could not be judged is not correct", ids, judged | ~correct)


def _samples(step: StepTables, name: str, section: str, prefix: str) -> Iterator[Broken]:
    table, manifest = step.tables[name], step.manifests[name]
    settings = manifest.origin.settings_of(section)
    ids = table["rollout_id"].to_pylist()
    groups, samples = table["group"].to_pylist(), table["sample"].to_pylist()
    size = settings["rollouts"]
    places = [divmod(row, size) for row in range(len(ids))]
    pairs = zip(groups, samples, strict=True)
    fine = [found == place for found, place in zip(pairs, places, strict=True)]
    yield from require(name, f"groups of {size} rollouts, numbered in order", ids, fine)
    named = [f"{prefix}{step.step:06d}-{g:04d}-{s:02d}" for g, s in places]
    yield from require(name, "rollout_id says step, group and sample", ids, _same(ids, named))
    yield from require(name, f"step is {step.step}", ids, table["step"].to_numpy() == step.step)
    version = manifest.origin.policy_version
    same = _same(table["policy_version"].to_pylist(), [version] * len(ids))
    yield from require(name, f"policy_version is {version}, the manifest's", ids, same)
    for column in ("temperature", "top_p", "top_k"):
        expected = np.asarray(settings[column], dtype=table[column].to_numpy().dtype)
        equal = table[column].to_numpy() == expected
        yield from require(name, f"{column} is {settings[column]}", ids, equal)
    known = [reason in ("stop", "length") for reason in table["finish_reason"].to_pylist()]
    yield from require(name, "finish_reason is stop or length", ids, known)
    lengths = pc.list_value_length(table["response_ids"]).to_numpy()
    longest = settings["max_response_length"]
    yield from require(name, f"at most {longest} response tokens", ids, lengths <= longest)
    yield from _token_ids(step, name, table, ids)
    yield from _questions(name, table, manifest, ids, size)
    run_seed = int(manifest.origin.inputs["seed"])
    seeds = [derive_seed(run_seed, f"sample{prefix}", step.step, g) + s for g, s in places]
    derived = table["seed"].to_numpy() == np.asarray(seeds, dtype=np.int64)
    yield from require(name, "seed is derived from run, step, group and sample", ids, derived)


def _token_ids(
    step: StepTables, name: str, table: pa.Table, ids: Sequence[str]
) -> Iterator[Broken]:
    for column in ("prompt_ids", "response_ids"):
        owners = np.repeat(
            np.asarray(ids, dtype=object), pc.list_value_length(table[column]).to_numpy()
        )
        tokens = pc.list_flatten(table[column]).to_numpy()
        top = np.iinfo(np.int32).max if step.vocabulary is None else step.vocabulary
        known = (tokens >= 0) & (tokens < top)
        yield from require(name, f"{column} are in the vocabulary", owners, known)


def _questions(
    name: str, table: pa.Table, manifest: Manifest, ids: Sequence[str], size: int
) -> Iterator[Broken]:
    """Check that a group has one question, and that the questions are those of the manifest."""
    columns = ("prompt_id", "messages", "reference", "prompt_ids")
    rows = table.select(columns).to_pylist()
    firsts = [rows[row - row % size] for row in range(len(rows))]
    yield from require(name, "a group has one question", ids, _same(rows, firsts))
    asked = [
        {
            "prompt_id": row["prompt_id"],
            "messages": [[m["role"], m["content"]] for m in row["messages"]],
            "reference": row["reference"],
        }
        for row in rows[::size]
    ]
    expected = manifest.facts.get("asked", manifest.origin.inputs["questions"])
    if "asked" not in manifest.facts and _SOLVED_FROM_THE_START in table["task"].to_pylist():
        return  # made before there was that digest: the origin's is of worked solutions, too
    if digest_of(asked) != expected:
        yield Broken(name, "its questions are not those of its manifest", None, len(rows))


def routes_rules(step: StepTables) -> Iterator[Broken]:
    """Sections 2, 3 and 9: advantages, siblings and routes, computed again from the rewards."""
    table, rollouts, verdicts = (step.tables[n] for n in ("routes", "rollouts", "verdicts"))
    ids = table["rollout_id"].to_pylist()
    for name, source in (("group", rollouts), ("reward", verdicts), ("correct", verdicts)):
        yield from require("routes", f"{name} is copied", ids, pc.equal(table[name], source[name]))
    origin = step.manifests["routes"].origin
    settings = origin.settings_of("route")
    # Of a time when what could not be judged was wrong, and all that was right demonstrated.
    early = not unjudged_left_out(origin.stage_version)
    judged = [early or error is None for error in verdicts["error"].to_pylist()]
    mute = [False] * len(ids) if early else _ends_thinking(rollouts)
    rows = table.drop_columns(["teacher_prompt_text", "reason"]).to_pylist()
    groups: dict[int, list[Row]] = {}
    lengths = pc.list_value_length(rollouts["response_ids"]).to_pylist()
    banked = _banked(step, settings["bank_max_age"])
    for row, tokens, known, open_, feedback, demonstration in zip(
        rows, lengths, judged, mute, verdicts["feedback"].to_pylist(), banked, strict=True
    ):
        able = row["correct"] and known and not open_
        member = {**row, "tokens": tokens, "judged": known, "able": able, "feedback": feedback}
        groups.setdefault(row["group"], []).append({**member, "banked": demonstration})
    for members in groups.values():
        yield from _group_rules(members, settings)
    if settings["method"] == "rlsd" or CREDIT_LAMBDA in table.column_names:
        yield from _credit_rules(step, table, settings)
    batches = sorted({row["mini_batch"] for row in rows})
    if batches != list(range(len(batches))):
        yield Broken("routes", f"mini-batches are not numbered from 0: {batches}", None, len(rows))


def _banked(step: StepTables, max_age: int | None) -> list[str | None]:
    """Section 12: the rollout that the step's bank has for each rollout, if any."""
    best: dict[tuple[str, str], tuple[int, str]] = {}
    bank = step.tables.get("bank")
    for row in bank.to_pylist() if bank is not None else ():
        age, question = step.step - row["step"], (row["task"], row["prompt_id"])
        if (max_age is None or age <= max_age) and row["step"] > best.get(question, (-1, ""))[0]:
            best[question] = (row["step"], row["rollout_id"])
    rollouts = step.tables["rollouts"]
    asked = zip(rollouts["task"].to_pylist(), rollouts["prompt_id"].to_pylist(), strict=True)
    return [best[question][1] if question in best else None for question in asked]


def _credit_rules(
    step: StepTables, table: pa.Table, settings: Mapping[str, Any]
) -> Iterator[Broken]:
    """Section 13: lambda falls from its start to 0; only rlsd has one."""
    if (settings["method"] == "rlsd") != (CREDIT_LAMBDA in table.column_names):
        text = f"{CREDIT_LAMBDA} is there exactly with method rlsd, not {settings['method']}"
        yield Broken("routes", text, None, table.num_rows)
        return
    start, steps = settings["credit_lambda"], settings["credit_steps"]
    expected = credit_at(step.step, start, steps)
    near = np.isclose(table[CREDIT_LAMBDA].to_numpy(), expected, rtol=1e-6, atol=1e-40)
    text = f"{CREDIT_LAMBDA} is {expected:g}, of step {step.step}"
    yield from require("routes", text, table["rollout_id"].to_pylist(), near)


def _ends_thinking(rollouts: pa.Table) -> list[bool]:
    """Return which responses end inside a think block, as recorded or by their texts."""
    if UNCLOSED_THINKING in rollouts.column_names:
        return list(rollouts[UNCLOSED_THINKING].to_pylist())
    return [ends_thinking(text, False) for text in rollouts["response_text"].to_pylist()]


def _group_rules(members: Sequence[Row], settings: Mapping[str, Any]) -> Iterator[Broken]:
    ids = [row["rollout_id"] for row in members]
    judged = [row["judged"] for row in members]
    rewards = [row["reward"] for row in members]
    mean, std, advantages = group_advantages(rewards, settings["advantage_scale"], judged)
    scale = f"advantage_scale {settings['advantage_scale']}"
    for column, expected, what in (
        ("advantage", advantages, f"advantage follows from the group's rewards ({scale})"),
        ("group_mean", [mean] * len(ids), "group_mean is the mean of the rewards"),
        ("group_std", [std] * len(ids), "group_std is their deviation, with n - 1"),
    ):
        found = np.asarray([row[column] for row in members], dtype=np.float64)
        near = np.isclose(found, expected, rtol=1e-5, atol=1e-6)
        yield from require("routes", what, ids, near)
    lengths = [row["tokens"] for row in members]
    able = [row["able"] for row in members]
    for index, row in enumerate(members):
        sibling = sibling_of(settings["demonstration"], able, lengths, index)
        known = {"sibling": None if sibling is None else ids[sibling], "bank": row["banked"]}
        teacher = teacher_of(row, known, settings) if row["judged"] else ("none", None)
        yield from _route_rules(row, teacher, settings)


def teacher_of(
    row: Row, found: Mapping[str, str | None], settings: Mapping[str, Any]
) -> tuple[str, str | None]:
    """Section 12: the source of a rollout's teacher information, and the rollout that it is.

    Args:
        found: the rollout that each source has for it, if any. Whether a task offers a solution or
            the gold answer stands in no table: there the row is believed.
    """
    for source in settings["sources"]:
        if (rollout := found.get(source)) is not None:
            return source, rollout
        if source not in found and row["teacher_source"] == source:
            return source, None
    told = settings["feedback_alone"] and (row["feedback"] or "").strip()
    return ("feedback" if told else "none"), None


def _route_rules(
    row: Row, expected: tuple[str, str | None], settings: Mapping[str, Any]
) -> Iterator[Broken]:
    def broken(invariant: str) -> Broken:
        return Broken("routes", invariant, row["rollout_id"], 1)

    method, available = settings["method"], row["teacher_available"]
    source, teacher = row["teacher_source"], row["teacher_rollout_id"]
    if available and (source, teacher) != expected:
        by_sibling = expected[0] == "sibling" or settings["sources"] == ["sibling"]
        which = f"the {settings['demonstration']} correct sibling" if by_sibling else expected[0]
        other = "" if source == "sibling" else f" ({source})"
        yield broken(f"the teacher is {which}, {expected[1]}, not {teacher}{other}")
    if source in ("none", "sibling", "bank") and available != (teacher is not None):
        yield broken("teacher_rollout_id is there exactly if a teacher is available")
    if available != (source != "none"):
        yield broken("teacher_source is none exactly without a teacher")
    if method != "grpo" and available != bool(row["teacher_prompt_ids"]):
        yield broken("teacher_prompt_ids are there exactly if a teacher is available")
    if method == "grpo" and available != (expected[0] != "none"):
        yield broken("a teacher is available exactly if a source has something")
    expected_route = route_of(method, row["correct"], available, row["judged"])
    if row["route"] != expected_route:
        state = f"correct {row['correct']}, teacher_available {available}"
        state = state if row["judged"] else "not judged"
        yield broken(f"method {method}: {state} gives route {expected_route}, not {row['route']}")


def scores_rules(step: StepTables) -> Iterator[Broken]:
    """Check the ranges of stored log-probabilities and entropies."""
    table = step.tables["scores"]
    ids = np.asarray(table["rollout_id"].to_pylist(), dtype=object)
    for column, low, high, what in (
        ("old_logprobs", -np.inf, 1e-6, "old_logprobs in (-inf, 0]"),
        ("student_entropy", -1e-6, step.highest_entropy, "student_entropy in [0, ln V]"),
    ):
        owners = np.repeat(ids, pc.list_value_length(table[column]).to_numpy())
        values: npt.NDArray[np.float32] = pc.list_flatten(table[column]).to_numpy()
        yield from require("scores", what, owners, within(values, low, high))


def _same(found: Sequence[Any], expected: Sequence[Any]) -> list[bool]:
    return [a == b for a, b in zip(found, expected, strict=True)]
