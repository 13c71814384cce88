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
from pipeline.tables.schemas import ROLLOUTS, VERDICTS
from stages.route import STAGE as ROUTE
from stages.update import STAGE as UPDATE
from stages.weigh import STAGE as WEIGH
from tests.builders.policies import open_on_cpu, write_tiny_policy

Group = Sequence[tuple[str, float]]
"""Responses and rewards of one question. A trailing "|" stands for a cut: no EOS."""

SYSTEM = {"role": "system", "content": "be brief"}


def open_tiny(folder: Path, tied: bool = True, **model: Any) -> Policy:
    """Write and open the tiny policy; `model` are settings of the section model."""
    write_tiny_policy(folder, seed=1, tied=tied)
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
    rollouts: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    for group, answers in enumerate(groups):
        messages = [SYSTEM, {"role": "user", "content": f"question {group}"}]
        prompt_ids = policy.encode(f"<system>be brief<user>question {group}<assistant>")
        for sample, (text, reward) in enumerate(answers):
            cut = text.endswith("|")
            response_ids = policy.encode(text.removesuffix("|"))
            if not cut:
                response_ids = [*response_ids, min(policy.eos_ids)]
            rollout_id = f"{step:06d}-{group:04d}-{sample:02d}"
            rollouts.append(
                {
                    "rollout_id": rollout_id,
                    "step": step,
                    "group": group,
                    "sample": sample,
                    "task": "none",
                    "prompt_id": str(group),
                    "messages": messages,
                    "reference": '""',
                    "prompt_ids": prompt_ids,
                    "response_ids": response_ids,
                    "response_text": text.removesuffix("|"),
                    "sampled_logprobs": [-3.5] * len(response_ids),
                    "temperature": 1.0,
                    "top_p": 1.0,
                    "top_k": 0,
                    "finish_reason": "length" if cut else "stop",
                    "seed": 0,
                    "policy_version": policy.version,
                    "engine": "hand",
                }
            )
            verdicts.append(
                {
                    "rollout_id": rollout_id,
                    "reward": reward,
                    "correct": reward >= 0.5,
                    "format_ok": True,
                    "verifier": "hand/1",
                }
            )
    return {
        "rollouts": pa.Table.from_pylist(rollouts, schema=ROLLOUTS),
        "verdicts": pa.Table.from_pylist(verdicts, schema=VERDICTS),
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
