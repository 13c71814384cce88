"""What our SRPO steps would cost on 1, 8 and 64 GPUs, and the bytes that they would write.

Tables of docs/SCALING.md, printed by `benchmarks.step_times`. Settings are those of the preset
`srpo-paper`; a run is `STEPS` steps, about as many as the paper's SRPO makes in ten hours.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.cost import (
    ADAPTED,
    MODELS,
    SNAPSHOT,
    STATE,
    Gpus,
    Load,
    Step,
    memory,
    our_step,
    sampling,
    shares,
)
from benchmarks.report import Sheet
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.housekeeping.space_forecast import Facts, step_bytes

NUMBERS = (1, 8, 64)
CORRECT = 0.65
"""Assumed share of correct rollouts, early in the paper's runs."""
STEPS = 450
QUESTIONS_EVALUATED = 210
"""Chemistry's test split."""
DISK = 0.76e9
"""Bytes per second that one writer writes, hashes and syncs: measured on two CPU cores (LOG.md)."""
ROOM = 10e9
"""Least bytes of a GPU for activations and for the keys and values of sampling."""
VOCABULARY = 151_936
LENGTHS = (350, 700, 1400, 2800, 5600)
SETTINGS: tuple[tuple[str, ...], ...] = (
    (),
    ("route.kept_dtype=float16",),
    ("route.keep_student_logprobs=false",),
    ("route.kept_dtype=float16", "route.keep_student_logprobs=false"),
    ("route.top_k=20",),
    ("run.keep_teacher_tables=20",),
    ("run.snapshot_every=100",),
    ("run.snapshot_every=100", "run.keep_teacher_tables=20"),
)
DAY = 86_400


class Pace(NamedTuple):
    """Seconds of a step, and of snapshots and evaluations spread over the steps between them."""

    step: Step
    snapshot: float
    evaluation: float

    @property
    def seconds(self) -> float:
        """Return all of them."""
        return sum(self.step) + self.snapshot + self.evaluation


def h200(number: int) -> Gpus:
    """Return a number of H200 GPUs: published peaks, assumed shares of them."""
    return Gpus(number, 989e12, 4.8e12, memory=141e9)


def load_of(response: float, config: Config) -> Load:
    """Return what a step of the preset has to do."""
    return Load(
        response,
        CORRECT,
        questions=config.generate.questions,
        group=config.generate.rollouts,
        limit=config.generate.max_response_length,
    )


def written(config: Config, load: Load) -> tuple[float, float]:
    """Return the bytes of a step's teacher table, and of its other tables.

    `pipeline.housekeeping.space_forecast` counts the most that a configuration can write. With mean
    lengths as limits, that is a step that teaches every rollout it could teach.
    """
    lengths = {
        "generate": {"max_response_length": round(load.response)},
        "data": {"max_prompt_length": load.prompt},
        "route": {"max_teacher_prompt_length": round(load.taught_prompt)},
    }
    values = config.model_dump()
    for section, settings in lengths.items():
        values[section] |= settings
    teacher, others = step_bytes(Config.model_validate(values), Facts(0, VOCABULARY, 0))
    could = (load.group - 1) / load.group
    return teacher.most * shares(load.correct, load.group).taught / could, others.most


def plans(response: float) -> list[Sheet]:
    """Return memory, seconds, lengths and bytes, for a mean response of so many tokens."""
    config = load_config("srpo-paper")
    load = load_of(response, config)
    each = [(name, number) for name in MODELS for number in NUMBERS]
    return [
        Sheet(
            "Memory per GPU, GB of 141",
            ("model", "GPUs", "training state", "whole copy", "left of 90%", "fits", "a snapshot"),
            [_memory_row(name, number) for name, number in each],
        ),
        Sheet(
            "Qwen3-8B with adapters of rank 16 on one GPU, GB",
            ("GPU", "base", "frozen base", "adapters", "whole copy", "left of 90%", "fits",
             "a snapshot"),
            [_adapted_row(size, base) for size in (80e9, 141e9) for base in (2, 4)],
        ),
        Sheet(
            f"An SRPO step of ours, s, mean response {response:,.0f}",
            (
                "model", "GPUs", "sample", "score", "update", "gather", "write", "send", "step",
                "+ snapshot", "+ evaluation", f"{STEPS} steps, h", "GPU h",
            ),
            [_step_row(name, number, config, load) for name, number in each],
        ),
        Sheet(
            "Qwen3-8B on 8 GPUs by mean response",
            (
                "tokens", "sample, s", "score, s", "update, s", "step, s", "step with all, s",
                "tables, MB", "GB a day",
            ),
            [_length_row(load._replace(response=length), config) for length in LENGTHS],
        ),
        Sheet(
            f"Tables of Qwen3-8B on 8 GPUs, mean response {response:,.0f}",
            (
                "settings", "teacher, MB a step", "others, MB a step", "written, GB a day",
                "on the disk after a day, GB", f"after {STEPS} steps, GB",
            ),
            [_bytes_row(overrides, load) for overrides in SETTINGS],
        ),
    ]  # fmt: skip


def _fits(name: str, number: int) -> bool:
    return memory(MODELS[name], h200(number)).left >= ROOM


def _memory_row(name: str, number: int) -> Sequence[str]:
    model = MODELS[name]
    sizes = (f"{size / 1e9:,.1f}" for size in memory(model, h200(number)))
    fits = "yes" if _fits(name, number) else "no"
    return name, str(number), *sizes, fits, f"{SNAPSHOT * model.parameters / 1e9:,.0f}"


def _adapted_row(size: float, base: int) -> Sequence[str]:
    """Return a row for a base of 2 or 4 bytes a parameter."""
    adapters = ADAPTED.network.adapters
    state, copy, left = memory(ADAPTED, h200(1)._replace(memory=size), base)
    trained = STATE * adapters
    sizes = (state - trained, trained, copy, left)
    return (
        f"{size / 1e9:.0f}",
        "bfloat16" if base == 2 else "float32",
        *(f"{size / 1e9:,.1f}" for size in sizes),
        "yes" if left >= ROOM else "no",
        f"{SNAPSHOT * adapters / 1e9:,.1f}",
    )


def pace(name: str, number: int, config: Config, load: Load) -> Pace:
    """Return what a step takes under a configuration."""
    model, gpus = MODELS[name], h200(number)
    budgets = config.route.micro_batch_tokens, config.update.micro_batch_tokens
    step = our_step(model, gpus, load, budgets, sum(written(config, load)), DISK)
    answers = QUESTIONS_EVALUATED * config.evaluate.rollouts
    asked = load._replace(questions=answers // load.group)
    return Pace(
        step,
        snapshot=SNAPSHOT * model.parameters / DISK / config.run.snapshot_every,
        evaluation=sampling(model, gpus, asked) / config.evaluate.every,
    )


def _step_row(name: str, number: int, config: Config, load: Load) -> Sequence[str]:
    if not _fits(name, number):
        return name, str(number), "does not fit", *[""] * 10
    found = pace(name, number, config, load)
    hours = STEPS * found.seconds / 3600
    figures = (*found.step, sum(found.step), found.snapshot, found.evaluation, hours)
    return name, str(number), *(f"{f:,.1f}" for f in figures), f"{hours * number:,.0f}"


def _length_row(load: Load, config: Config) -> Sequence[str]:
    found = pace("Qwen3-8B", 8, config, load)
    step, size = found.step, sum(written(config, load))
    return (
        f"{load.response:,.0f}",
        *(f"{s:,.1f}" for s in (step.sample, step.score, step.update, sum(step), found.seconds)),
        f"{size / 1e6:,.0f}",
        f"{DAY / found.seconds * size / 1e9:,.0f}",
    )


def _bytes_row(overrides: Sequence[str], load: Load) -> Sequence[str]:
    config = load_config("srpo-paper", overrides)
    teacher, others = written(config, load)
    steps = DAY / pace("Qwen3-8B", 8, config, load).seconds
    keep = config.run.keep_teacher_tables

    def held(steps: float) -> float:
        kept = steps if keep is None else min(steps, keep + config.run.snapshot_every)
        return kept * teacher + steps * others

    sizes = (steps * (teacher + others), held(steps), held(STEPS))
    return (
        ", ".join(overrides) or "the preset",
        f"{teacher / 1e6:,.1f}",
        f"{others / 1e6:,.1f}",
        *(f"{size / 1e9:,.0f}" for size in sizes),
    )
