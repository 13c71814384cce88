"""A small run whose every formula matters: random policy, task of its own, real groups.

The policy is a random Qwen3 with a vocabulary of 53, so that entropies are high and answers end at
different lengths; the task calls a response right by a property that a random text has half the
time, so that groups are mixed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors.torch import load_file
from torch import Tensor

from flows.session.session import Session
from pipeline.config.load import validate_config
from pipeline.config.sections import Config
from pipeline.policy.policy import Policy
from pipeline.stage.contract import Handles, silent
from pipeline.twin.compare_tables import compare, compare_gradients, compare_routes
from pipeline.twin.formulas import Settings
from pipeline.twin.inputs import StepTwin
from pipeline.twin.step import Offered, recompute
from pipeline.twin.tolerances import Report
from stages.route import STAGE as ROUTE
from stages.update import STAGE as UPDATE
from stages.weigh import STAGE as WEIGH
from tests.builders.policies import write_tiny_policy

STEP = 2
RTOL = 1e-5
TASK = '''
"""Right is a response whose character codes have an even sum."""
from pipeline.task import Message, Question, Verdict

VERIFIER = "parity/1"
SYSTEM = Message("system", "write")


def load(path, split):
    offset = 0 if split == "train" else 100
    words = ["abc" * (1 + n % 4) + str(n) for n in range(offset, offset + 24)]
    return [Question(w, (SYSTEM, Message("user", w)), '""') for w in words]


def verify(response, reference):
    even = sum(map(ord, response)) % 2 == 0
    return Verdict(reward=float(even), format_ok=True, prediction=response)
'''


@dataclass
class StepCapture:
    """What our stages made of a step: tables, and gradient and parameters of each update."""

    tables: dict[str, pa.Table]
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    parameters: list[dict[str, Tensor]] = field(default_factory=list)


def golden_config(
    folder: Path, overrides: Mapping[str, Mapping[str, object]], padding: str | None = None
) -> Config:
    """Return the configuration: temperature 0.8, K = 16 of 53, several micro-batches."""
    task = folder / "parity.py"
    task.write_text(TASK, encoding="utf-8")
    write_tiny_policy(folder / "policy", seed=5, padding=padding)
    values: dict[str, dict[str, object]] = {
        "run": {"steps": 3, "seed": 3, "threads": 1, "snapshot_every": 1, "keep_snapshots": 9},
        "data": {"task": str(task), "max_prompt_length": 128},
        "model": {"path": str(folder / "policy"), "device": "cpu"},
        "generate": {
            "questions": 6,
            "rollouts": 5,
            "temperature": 0.8,
            "max_response_length": 24,
        },
        "verify": {"workers": 1},
        "route": {
            "top_k": 16,
            "max_teacher_prompt_length": 256,
            "micro_batch_tokens": 300,
            "projection_mb": 0.01,
        },
        "update": {
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "max_grad_norm": 1e9,
            "micro_batch_tokens": 400,
            "projection_mb": 0.01,
        },
        "evaluate": {"questions": 2, "rollouts": 2, "max_response_length": 24, "every": 9},
    }
    for section, settings in overrides.items():
        values[section] = {**values.get(section, {}), **settings}
    return validate_config(values, "golden")


def make_run(
    folder: Path, overrides: Mapping[str, Mapping[str, object]], padding: str | None = None
) -> Session:
    """Run STEP steps and the sampling and judging of step STEP; the policy is that of STEP."""
    session = Session.create(folder / "run", golden_config(folder, overrides, padding))
    for step in range(STEP):
        for name in ("generate", "verify", "route", "weigh", "update"):
            session.run_stage(name, step)
        session.finish_step(step)
        session.snapshot(step + 1)
    session.run_stage("generate", STEP)
    session.run_stage("verify", STEP)
    return session


def run_step(
    session: Session,
    step: int = STEP,
    verdicts: pa.Table | None = None,
    bank: pa.Table | None = None,
    **offered: Any,
) -> StepCapture:
    """Run route, weigh and update of a step on a freshly opened policy, outside the store.

    Args:
        verdicts: other ones than the step's.
        bank: a table of earlier rollouts.
        offered: handles `solutions` and `golds`.
    """
    session.resident.policy = session.resident.open_snapshot(step)
    policy = session.resident.require()
    tables = {name: session.run.read(name, step) for name in ("rollouts", "verdicts")}
    tables |= {} if verdicts is None else {"verdicts": verdicts}
    tables |= {} if bank is None else {"bank": bank}
    capture = StepCapture(tables)
    seed = session.config.run.seed
    handles = Handles(seed=seed, step=step, policy=policy, progress=silent, **offered)
    with _recorded(policy, capture):
        for stage in (ROUTE, WEIGH, UPDATE):
            tables.update(stage.run(tables, session.config, handles).tables)
    return capture


def twin_of(
    session: Session,
    capture: StepCapture,
    settings: Settings | None = None,
    offered: Offered | None = None,
) -> StepTwin:
    """Return what the twin makes of the golden step, from the run's files and its settings."""
    lora, snapshot = session.config.model.lora, session.run.snapshot_path(STEP)
    return recompute(
        capture.tables,
        Path(session.config.model.path) if lora else snapshot,
        teacher_states(session),
        settings or twin_settings(session.config),
        params_before=dict(enumerate(capture.parameters)),
        start=adapters_on_disk(session),
        offered=offered,
    )


def disagreements(twin: StepTwin, capture: StepCapture) -> list[str]:
    """Return every difference beyond 1e-5: tables, N and loss of each update, gradients."""
    tables = capture.tables
    report = Report(RTOL)
    compare_routes(report, twin, tables["routes"])
    names = ("teacher", "weights", "updates", "scores")
    compare(report, twin, *(tables[name] for name in names))
    found = report.lines
    for number, gradient in enumerate(capture.gradients):
        gap = compare_gradients(twin.batches[number].gradient, gradient)
        if not gap <= RTOL:
            found.append(f"gradient of update {number}: off by {gap:.2e} of its norm")
    return found


def twin_settings(config: Config) -> Settings:
    """Hand the run's numbers to the twin."""
    route, update = config.route, config.update
    assert config.weigh.beta is not None
    return Settings(
        demonstration=route.demonstration,
        method=route.method,
        advantage_scale=route.advantage_scale,
        success_threshold=config.verify.success_threshold,
        top_k=route.top_k,
        beta=config.weigh.beta,
        survival=config.weigh.survival,
        divergence=update.divergence,
        jsd_alpha=update.jsd_alpha,
        mix_lambda=update.mix_lambda,
        clip_low=update.clip_low,
        clip_high=update.clip_high,
        dual_clip=update.dual_clip,
        tis_clip=update.tis_clip,
        sdpo_ratio_clip=update.sdpo_ratio_clip,
        lora_scale=config.model.lora.alpha / config.model.lora.rank if config.model.lora else 1.0,
        base_bfloat16=config.model.base_dtype == "bfloat16",
        feedback=route.feedback,
        feedback_alone=route.feedback_alone,
        sources=route.sources,
        bank_max_age=route.bank_max_age,
        templates=route.templates.model_dump(),
        credit_lambda=route.credit_lambda,
        credit_steps=route.credit_steps,
        credit_clip=config.weigh.credit_clip,
    )


def adapters_on_disk(session: Session) -> Mapping[str, Tensor] | None:
    """Return A and B that start the golden step, under our names; None without adapters."""
    if session.config.model.lora is None:
        return None
    stored = load_file(session.run.snapshot_path(STEP) / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").removesuffix(".weight"): tensor
        for name, tensor in stored.items()
    }


def teacher_states(session: Session) -> Sequence[tuple[Mapping[str, Tensor], float]]:
    """Return the teacher's parameters as they are on disk, with their coefficients."""
    folder, route = session.run.snapshot_path(STEP), session.config.route
    live = adapters_on_disk(session) or load_file(folder / "model.safetensors")
    if route.teacher == "live":
        return [(live, 1.0)]
    if route.teacher == "periodic":  # not what was kept of it, but what it must be
        copied = route.teacher_period * (STEP // route.teacher_period)
        return [(load_file(session.run.snapshot_path(copied) / "model.safetensors"), 1.0)]
    kept = load_file(folder / "teacher.safetensors")
    if route.teacher == "trust_region":
        return [(kept, 1 - route.trust_region_mix), (live, route.trust_region_mix)]
    return [(kept, 1.0)]


@contextmanager
def _recorded(policy: Policy, capture: StepCapture) -> Iterator[None]:
    """Record each update's gradient and the parameters it starts from."""
    original = policy.optimizer.step

    def step() -> None:
        named = list(policy.trainable().items())
        capture.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        capture.parameters.append({n: p.detach().clone() for n, p in named})
        original()

    policy.optimizer.step = step  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        policy.optimizer.step = original  # type: ignore[method-assign]
