"""Steps made by hand: responses and rewards in, what our stages make of them out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.load import validate_config
from pipeline.config.sections import Config
from pipeline.policy.policy import Policy
from pipeline.stage.contract import Handles
from pipeline.tables.invariants import check_table
from pipeline.tables.schemas import VERDICTS, schema_with
from stages.route import STAGE as ROUTE
from stages.update import STAGE as UPDATE
from stages.weigh import STAGE as WEIGH
from tests.builders.policies import open_on_cpu, write_tiny_policy
from tests.builders.tables import answer_columns, verdict_columns

Group = Sequence[tuple[str, float | None]]
"""Responses and rewards of one question; None: it could not be judged. "|" at the end: no EOS."""

NOT_JUDGED = "time limit of 1 s exceeded, also when judged alone"

SYSTEM = {"role": "system", "content": "be brief"}


def open_tiny(folder: Path, tied: bool = True, padding: str | None = None, **model: Any) -> Policy:
    """Write and open the tiny policy; `model` are settings of the section model."""
    write_tiny_policy(folder, seed=1, tied=tied, padding=padding)
    return open_on_cpu(folder, **model)


def config_of(**sections: Mapping[str, object]) -> Config:
    """Return a configuration for hand-made steps."""
    values: dict[str, dict[str, object]] = {
        "data": {"task": "none"},
        "model": {"path": "none"},
        "route": {"top_k": 16},
        "update": {"learning_rate": 1e-3},
    }
    for section, settings in sections.items():
        values[section] = {**values.get(section, {}), **settings}
    return validate_config(values, "test")


def sampled(policy: Policy, groups: Sequence[Group], step: int = 0) -> dict[str, pa.Table]:
    """Return the tables `rollouts` and `verdicts` of a step; log-probabilities are made up."""
    answers = [answer for answers in groups for answer in answers]
    places = [(g, s) for g, answers in enumerate(groups) for s in range(len(answers))]
    prompts = [policy.encode(f"<system>be brief<user>question {g}<assistant>") for g, _ in places]
    cut = [text.endswith("|") for text, _ in answers]
    texts = [text.removesuffix("|") for text, _ in answers]
    end = [min(policy.eos_ids)]
    responses = [
        policy.encode(text) + ([] if is_cut else end)
        for text, is_cut in zip(texts, cut, strict=True)
    ]
    rollouts = answer_columns(
        step,
        places,
        responses,
        prompt_id=[str(g) for g, _ in places],
        messages=[[SYSTEM, {"role": "user", "content": f"question {g}"}] for g, _ in places],
        prompt_ids=prompts,
        response_text=texts,
        finish_reason=["length" if is_cut else "stop" for is_cut in cut],
        policy_version=[policy.version] * len(places),
    )
    rewards = [reward or 0.0 for _, reward in answers]
    verdicts = verdict_columns(
        [reward >= 0.5 for reward in rewards],
        reward=rewards,
        error=[NOT_JUDGED if reward is None else None for _, reward in answers],
    )
    logprobs = [[-3.5] * len(response) for response in responses]
    return {
        "rollouts": pa.table(
            {**rollouts, "sampled_logprobs": logprobs}, schema=schema_with("rollouts", ())
        ),
        "verdicts": pa.table({"rollout_id": rollouts["rollout_id"], **verdicts}, schema=VERDICTS),
    }


def routed(
    policy: Policy, config: Config, groups: Sequence[Group], step: int = 0
) -> dict[str, pa.Table]:
    """Return the step's tables up to `weights`, invariants checked."""
    tables = sampled(policy, groups, step)
    for stage in (ROUTE, WEIGH):
        run_one(stage, tables, policy, config, step)
    return tables


def updated(
    policy: Policy, config: Config, groups: Sequence[Group], step: int = 0
) -> dict[str, pa.Table]:
    """Return all tables of the step; the policy is updated."""
    tables = routed(policy, config, groups, step)
    run_one(UPDATE, tables, policy, config, step)
    return tables


def run_one(
    stage: Any, tables: dict[str, pa.Table], policy: Policy, config: Config, step: int = 0
) -> Mapping[str, Any]:
    """Run one stage, check the invariants of its tables, add them, and return its facts."""
    output = stage.run(tables, config, Handles(seed=0, step=step, policy=policy))
    tables.update(output.tables)
    for name in output.tables:
        check_table(name, tables)
    return dict(output.facts)
