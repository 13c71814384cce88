"""Steps by hand on any number of ranks, each `python -m tests.ranks.run_steps FOLDER SETTINGS`.

What rank 0 finds is left in FOLDER/found-<ranks>.pickle: an error that must be one, what a gathered
policy's weights are made of, then tables and whole gradient of every step.
"""

import hashlib
import json
import pickle
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipeline.config.sections import Config, UpdateSection
from pipeline.distributed import ranks
from pipeline.distributed.sharding import gathered, is_spread, whole
from pipeline.errors import NumericalError
from pipeline.policy.adapters import trainable
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.stage.contract import Handles
from stages.update import STAGE as UPDATE
from stages.update.batch import Rollout, rollouts_of
from stages.update.clipping import clip_gradients
from stages.update.stage import accumulate_gradient
from tests.ranks.launcher import launch
from tests.stages.steps import Group, config_of, open_tiny, routed, run_one

LONG = "ab" * 150
STEPS: list[list[Group]] = [
    # Lengths from 1 to 301, groups of 2 to 9, all routes.
    [
        [(LONG, 0.0), ("b", 1.0), ("", 0.0)],
        [("c" * n, float(n % 2)) for n in range(1, 10)],
        [("ab|", 1.0), ("d", 0.0)],
    ],
    # One taught rollout: on all ranks but one no token is distilled.
    [[("abc", 1.0), ("b", 1.0), ("a", 0.0)], [("c", 0.0), ("d", 0.0)]],
    # One group learns, of two rollouts: from the third rank on there is nothing to compute.
    [[("ab", 1.0), ("b", 0.0)], [("c", 1.0), ("d", 1.0)], [("e", 0.0), ("f", 0.0)]],
    # Nobody learns.
    [[("ab", 1.0), ("b", 1.0)], [("c", 0.0), ("d", 0.0)]],
]


def gradient(
    policy: Policy, rollouts: Sequence[Rollout], kept: int, settings: UpdateSection
) -> dict[str, torch.Tensor]:
    """Return the whole gradient of some rollouts; every rank computes its part of it."""
    accumulate_gradient(policy, rollouts, kept, settings)
    return {
        name: whole(parameter.grad)
        for name, parameter in policy.trainable().items()
        if parameter.grad is not None
    }


def clipped(
    policy: Policy, rollouts: Sequence[Rollout], kept: int, settings: UpdateSection
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the norm before, and the whole gradient when it is clipped to a norm of 0.001."""
    accumulate_gradient(policy, rollouts, kept, settings)
    named = policy.trainable()
    norm = clip_gradients(named.values(), 1e-3)
    return norm, {name: whole(p.grad) for name, p in named.items() if p.grad is not None}


def whole_state(policy: Policy) -> str:
    """Return a digest of what this rank holds whole of policy, teacher and optimizer."""
    states = [trainable(model).values() for model in policy.models()]
    states += [policy.optimizer.state[p].values() for p in policy.trainable().values()]
    digest = hashlib.sha256()
    for tensor in chain.from_iterable(states):
        if not is_spread(tensor):
            digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def gathered_dtypes(policy: Policy) -> dict[str, torch.dtype]:
    """Return the dtype that each weight is gathered in; every rank gathers them."""
    with gathered(policy.model):
        return {name: parameter.dtype for name, parameter in policy.trainable().items()}


def refused(policy: Policy, config: Config) -> str:
    """Return the error of a step in which one rank alone meets a rollout that can't be."""
    tables = routed(policy, config, STEPS[0])
    rows = tables["rollouts"].to_pylist()
    rows[-1]["sampled_logprobs"][0] = -90.0
    tables["rollouts"] = pa.Table.from_pylist(rows, schema=tables["rollouts"].schema)
    try:
        UPDATE.run(tables, config, Handles(seed=0, step=0, policy=policy, max_logprob_gap=50.0))
    except NumericalError as error:
        return str(error)
    raise AssertionError("it was learned from")


PERIODIC = TeacherSettings(kind="periodic", rate=0.05, mix=0.05, period=2)


def how(precision: str, method: str) -> Config:
    """Return the configuration of the steps.

    In bfloat16 another pass rounds otherwise, and so does a weight whose last bit is another: there
    each sequence has a pass to itself, on any number of ranks, and weights stay where they are.
    """
    route = {"method": method}
    if precision == "float32":
        return config_of(route=route, update={"micro_batch_tokens": 400, "learning_rate": 1e-2})
    alone = {"micro_batch_tokens": 1}
    return config_of(route={**route, **alone}, update={**alone, "learning_rate": 1e-12})


def all_steps(folder: Path, method: str = "srpo", **model: Any) -> list[dict[str, Any]]:
    """Take every step, one after the other; `model` is how the policy is opened (`open_tiny`).

    With rlsd it has a periodic teacher, renewed after the second step and the fourth.
    """
    config = how(model.get("precision", "float32"), method)
    model |= {"teacher": PERIODIC} if method == "rlsd" else {}
    error = refused(open_tiny(folder / "policy", **model), config)
    policy = open_tiny(folder / "policy", **model)
    dtypes = ranks.together(gathered_dtypes, policy)[0]
    found: list[dict[str, Any]] = [{"error": error, "dtypes": dtypes, "why": policy.unshared}]
    for step, groups in enumerate(STEPS):
        tables: dict[str, pa.Table] = routed(policy, config, groups, step)
        rollouts = rollouts_of(tables, on_policy=True)
        gradients = ranks.together(gradient, policy, rollouts, 16, config.update)[0]
        clips = ranks.together(clipped, policy, rollouts, 16, config.update)
        assert len({norm for norm, _ in clips}) == 1  # one norm, on all ranks
        facts = run_one(UPDATE, tables, policy, config, step)
        policy.finish_update(f"{step + 1:06d}-made by hand")
        step_found = {"tables": tables, "gradient": gradients, "facts": facts}
        held = ranks.together(whole_state, policy)
        found.append({**step_found, "clipped": clips[0][1], "held": held})
    return found


def on_ranks(folder: Path, count: int, **model: Any) -> list[dict[str, Any]]:
    """Take the steps on so many ranks, in processes of their own."""
    launch("tests.ranks.run_steps", count, folder, str(folder), json.dumps(model))
    found: list[dict[str, Any]] = pickle.loads((folder / f"found-{count}.pickle").read_bytes())
    return found


def main() -> None:
    """Be one of the ranks."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with ranks.joined():
        if ranks.rank():
            ranks.follow()
            return
        found = all_steps(folder, **json.loads(sys.argv[2]))
        (folder / f"found-{ranks.size()}.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
