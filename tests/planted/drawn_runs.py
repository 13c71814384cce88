"""Write a run of drawn tables in a second, with any trouble from a known step on.

`collapse.py` plants two collapses through the stages themselves. Here the tables are drawn, written
to the real store and read by the real metrics and rules, so that each rule meets its trouble in a
run whose numbers vary as those of small groups do. A healthy policy is described by `State`; a
trouble is a function from steps since its onset to another state.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import data.demo
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_TABLES, TABLES_OF_STAGE
from pipeline.run.step_records import Records
from pipeline.tables.schemas import schema_with, teacher_schema
from stages.route.decisions import group_statistics
from stages.weigh import log_raw_weights_N, normalised_weights_N
from tests.builders.tables import (
    COST,
    Columns,
    answer_columns,
    config,
    origin,
    route_columns,
    update_columns,
    verdict_columns,
)

SAMPLES = 8
KEPT = 2
LIMIT = 400
EVALUATED_QUESTIONS, EVALUATED_SAMPLES = 32, 4
EOS = 1
_STAGE_OF = {table: stage for stage, tables in TABLES_OF_STAGE.items() for table in tables}

Draw = np.random.Generator


@dataclass(frozen=True)
class State:
    """A policy, by the numbers that its tables are drawn from.

    Attributes:
        ease: rate of success on a question, lowest and highest.
        tokens: mean response length.
        demonstration: length of correct responses over that of wrong ones.
        entropy, entropy_spread: the teacher's mean entropy in nats, and its variation.
        repeated: share of responses that are one and the same text.
        evaluated_form: format rate of evaluations; `form` is that of training.
        told: share of wrong responses whose feedback tells the gold answer.
    """

    ease: tuple[float, float] = (0.1, 0.8)
    form: float = 0.96
    evaluated_form: float = 0.99
    tokens: float = 60.0
    demonstration: float = 0.95
    entropy: float = 0.5
    entropy_spread: float = 0.6
    repeated: float = 0.0
    gradient: float = 0.1
    gap: float = 0.02
    errors: float = 0.0
    told: float = 0.0


Trouble = Callable[[int], State]
"""The state so many steps after the onset, which is step 0."""


def healthy(_: int) -> State:
    """Return the policy that nothing is wrong with."""
    return State()


def growing(**ends: float) -> Trouble:
    """Return a trouble that comes in three equal steps, and then stays at `ends`."""
    start = State()

    def after(since: int) -> State:
        far = min(1.0, (since + 1) / 3)
        numbers = {k: (1 - far) * getattr(start, k) + far * end for k, end in ends.items()}
        return replace(start, **numbers)

    return after


def make_run(
    root: Path, trouble: Trouble, seed: int, onset: int, steps: int, groups: int = 8, every: int = 2
) -> Run:
    """Write the run step by step, as a training does, its records included.

    Args:
        onset: first step whose policy has the trouble.
        groups: questions of a step; each gets eight rollouts.
        every: steps from one evaluation to the next.
    """
    settings = config(
        run={"seed": seed, "steps": steps},
        generate={"questions": groups, "rollouts": SAMPLES, "max_response_length": LIMIT},
        route={"feedback": True},
    )
    run = Run.create(root, settings, {})
    tokenizer = Path(data.demo.__file__).parent / "policy"
    run.tokenizer_path().mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run.tokenizer_path() / name).write_bytes((tokenizer / name).read_bytes())
    records = Records(run)
    for step in range(steps):
        draw = np.random.default_rng((seed, step))
        state = State() if step < onset else trouble(step - onset)
        if step % every == 0:
            _commit(run, "evaluations", step, _evaluations(draw, state, step))
        made, facts = _step(draw, state, step, groups, run)
        for table in STEP_TABLES:
            _commit(run, table, step, made[table], facts if table == "updates" else {})
        records.finish(step)
    return run


def _commit(
    run: Run, table: str, step: int, columns: Columns, facts: dict[str, Any] | None = None
) -> None:
    schema = teacher_schema(KEPT) if table == "teacher" else schema_with(table, columns)
    made = origin(
        table,
        step=step,
        stage=_STAGE_OF.get(table, "evaluate"),
        inputs={},
        settings=run.config.model_dump(),
        policy_version=f"{step:06d}-abc",
    )
    run.commit(made, pa.table(columns, schema=schema), facts or {}, COST)


def _step(
    draw: Draw, state: State, step: int, groups: int, run: Run
) -> tuple[dict[str, Columns], dict[str, Any]]:
    """Return the tables of a step, and the facts of its update."""
    rollouts, verdicts = _answers(draw, state, step, groups, SAMPLES, state.form)
    ids, tokens = rollouts["rollout_id"], [len(r) for r in rollouts["response_ids"]]
    routes = _routes(rollouts, verdicts)
    teacher, weights = _teacher(draw, state, rollouts, routes, run.config.weigh.beta or 0.0)
    updates = update_columns(
        routes,
        tokens,
        loss_sum=draw.normal(0, 5, len(ids)).tolist(),
        max_logprob_gap=draw.lognormal(np.log(state.gap), 0.5, len(ids)).tolist(),
    )
    norm = float(state.gradient * draw.lognormal(0, 0.4))
    facts = {
        "learning_rate": 1e-5,
        "loss": [float(draw.normal(0, 0.1))],
        "grad_norm": [norm],
        "tokens": [sum(tokens)],
    }
    made = {
        "rollouts": {**rollouts, "sampled_logprobs": [[-0.5] * n for n in tokens]},
        "verdicts": {"rollout_id": ids, **verdicts},
        "routes": routes,
        "scores": {
            "rollout_id": ids,
            "old_logprobs": [[-0.5] * n for n in tokens],
            "student_entropy": [[0.5] * n for n in tokens],
        },
        "teacher": teacher,
        "weights": weights,
        "updates": updates,
    }
    return made, facts


def _answers(
    draw: Draw, state: State, step: int, groups: int, samples: int, form: float
) -> tuple[Columns, Columns]:
    """Return what was sampled, and how it was judged."""
    places = [(group, sample) for group in range(groups) for sample in range(samples)]
    ease = draw.uniform(*state.ease, groups)
    formed = draw.random(len(places)) < form
    failed = draw.random(len(places)) < state.errors
    right = np.array([draw.random() < ease[g] for g, _ in places]) & formed & ~failed
    mean = state.tokens * np.where(right, state.demonstration, 1.0)
    tokens = np.clip((mean * draw.lognormal(-0.06, 0.35, len(places))).round(), 4, LIMIT)
    words = [draw.integers(20, 60, size=int(n) - 1).tolist() for n in tokens]
    repeats = draw.random(len(places)) < state.repeated
    ids = [
        [30] * 40 + [EOS] if again else [*w, EOS] for again, w in zip(repeats, words, strict=True)
    ]
    sampled = answer_columns(
        step,
        places,
        ids,
        prompt_id=[f"q{(step * groups + g) % 40}" for g, _ in places],
        finish_reason=["length" if n >= LIMIT else "stop" for n in tokens],
    )
    told = draw.random(len(places)) < state.told if state.told else np.zeros(len(places), bool)
    judged = verdict_columns(
        right.tolist(),
        feedback=[
            None if r or f else "It is 4." if t else "5 is not the result."
            for r, f, t in zip(right, failed, told, strict=True)
        ],
        format_ok=(formed & ~failed).tolist(),
        error=["timed out" if f else None for f in failed],
    )
    return sampled, judged


def _evaluations(draw: Draw, state: State, step: int) -> Columns:
    sampled, judged = _answers(
        draw, state, step, EVALUATED_QUESTIONS, EVALUATED_SAMPLES, state.evaluated_form
    )
    ids = [f"e{name}" for name in sampled["rollout_id"]]
    return {
        **sampled,
        **judged,
        "rollout_id": ids,
        "prompt_id": [f"t{group}" for group in sampled["group"]],
        "temperature": [0.6] * len(ids),
        "response_tokens": [len(r) for r in sampled["response_ids"]],
    }


def _routes(rollouts: Columns, verdicts: Columns) -> Columns:
    """Return routes as SRPO decides them; the first correct sibling demonstrates."""
    ids, rewards, correct = rollouts["rollout_id"], verdicts["reward"], verdicts["correct"]
    teachers: list[str | None] = []
    statistics = []
    for start in range(0, len(ids), SAMPLES):
        group = slice(start, start + SAMPLES)
        found = group_statistics(rewards[group], scaled=True)
        for sample in range(SAMPLES):
            siblings = [j for j in range(SAMPLES) if correct[start + j] and j != sample]
            teachers.append(ids[start + siblings[0]] if siblings else None)
            statistics.append((found.advantages_G[sample], found.mean, found.std))
    return route_columns(
        rollouts,
        verdicts,
        teachers,
        teacher_prompt_text=[
            f"taught: {said or ''}" if teacher else None
            for teacher, said in zip(teachers, verdicts["feedback"], strict=True)
        ],
        advantage=[a for a, _, _ in statistics],
        group_mean=[m for _, m, _ in statistics],
        group_std=[s for _, _, s in statistics],
    )


def _teacher(
    draw: Draw, state: State, rollouts: Columns, routes: Columns, beta: float
) -> tuple[Columns, Columns]:
    """Return what the teacher said to the rollouts it teaches, and the weights of their tokens."""
    taught = [
        (name, len(response))
        for name, response, route in zip(
            rollouts["rollout_id"], rollouts["response_ids"], routes["route"], strict=True
        )
        if route == "sdpo"
    ]
    names = [name for name, tokens in taught for _ in range(tokens)]
    spread = state.entropy_spread
    drawn = state.entropy * draw.lognormal(-(spread**2) / 2, spread, len(names))
    entropy: npt.NDArray[np.float64] = drawn.astype(np.float64)
    raw = log_raw_weights_N(entropy, beta)
    keys: Columns = {
        "rollout_id": names,
        "position": [position for _, tokens in taught for position in range(tokens)],
    }
    level = {name: [-1.0] * len(names) for name in ("teacher_tail", "student_tail")}
    said = {
        **keys,
        "topk_ids": [[30, 31]] * len(names),
        "teacher_logprobs": [[-1.0, -2.0]] * len(names),
        "student_logprobs": [[-1.0, -2.0]] * len(names),
        **level,
        "entropy": entropy.tolist(),
        "teacher_logprob": [-1.0] * len(names),
        "student_logprob": [-1.0] * len(names),
        "jsd": [0.01] * len(names),
    }
    weight = normalised_weights_N(raw, np.zeros(len(names), dtype=np.int64))
    weighed = {
        **keys,
        "entropy": entropy.tolist(),
        "raw_weight": np.exp(raw).tolist(),
        "weight": weight.tolist(),
    }
    return said, weighed
