"""What SRPO steps of ours would cost on 1, 8 and 64 GPUs, and the bytes that they leave.

Tables of docs/SCALING.md, printed by `benchmarks.step_times`. Settings are those of the preset
`srpo-paper`; a run is `STEPS` steps, about what the paper's SRPO makes in ten hours.
"""

from collections.abc import Sequence

from benchmarks.cost import MODELS, SNAPSHOT, Gpus, Load, Step, memory, our_step, sampling, shares
from benchmarks.report import Sheet
from pipeline.config import Config
from pipeline.loading import load_config
from pipeline.space import Facts, step_bytes

NUMBERS = (1, 8, 64)
CORRECT = 0.65
STEPS = 450
QUESTIONS_EVALUATED = 210
DISK = 0.76e9
"""Bytes per second that one writer writes, hashes and syncs: measured on two CPU cores (LOG.md)."""
ROOM = 10e9
"""Bytes of a GPU that activations, and keys and values of sampling, need at the least."""
VOCABULARY = 151_936
LENGTHS = (350, 700, 1400, 2800, 5600)
SETTINGS: tuple[tuple[str, ...], ...] = (
    (),
    ("route.kept_dtype=float16",),
    ("route.keep_student_logprobs=false",),
    ("route.kept_dtype=float16", "route.keep_student_logprobs=false"),
    ("route.top_k=20",),
    ("run.keep_teacher_tables=20",),
)
DAY = 86_400


def h200(number: int) -> Gpus:
    """Return so many H200: published peaks, assumed shares of them."""
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

    `pipeline.space` counts the most that a configuration can write; with mean lengths for limits
    that is a step in which all that could be taught is.
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
            f"An SRPO step of ours, s, mean response {response:,.0f}",
            (
                "model", "GPUs", "sample", "score", "update", "gather", "write", "send", "step",
                "GPU s", "+ snapshot", "+ evaluation", f"{STEPS} steps, h", "GPU h",
            ),
            [_step_row(name, number, config, load) for name, number in each],
        ),
        Sheet(
            "Qwen3-8B on 8 GPUs by mean response",
            ("tokens", "sample, s", "score, s", "update, s", "step, s", "tables, MB", "GB a day"),
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


def step_of(name: str, number: int, config: Config, load: Load) -> Step:
    """Return the seconds of a step under the settings of a configuration."""
    budgets = config.route.micro_batch_tokens, config.update.micro_batch_tokens
    bytes_written = sum(written(config, load))
    return our_step(MODELS[name], h200(number), load, budgets, bytes_written, DISK)


def _step_row(name: str, number: int, config: Config, load: Load) -> Sequence[str]:
    if not _fits(name, number):
        return name, str(number), "does not fit", *[""] * 11
    step = step_of(name, number, config, load)
    snapshot = SNAPSHOT * MODELS[name].parameters / DISK / config.run.snapshot_every
    answers = QUESTIONS_EVALUATED * config.evaluate.rollouts
    asked = load._replace(questions=answers // load.group)
    evaluation = sampling(MODELS[name], h200(number), asked) / config.evaluate.every
    hours = STEPS * (sum(step) + snapshot + evaluation) / 3600
    figures = (*step, sum(step), sum(step) * number, snapshot, evaluation, hours)
    return name, str(number), *(f"{f:,.1f}" for f in figures), f"{hours * number:,.0f}"


def _length_row(load: Load, config: Config) -> Sequence[str]:
    step = step_of("Qwen3-8B", 8, config, load)
    size = sum(written(config, load))
    seconds = (step.sample, step.score, step.update, sum(step))
    day = DAY / sum(step) * size
    return (
        f"{load.response:,.0f}",
        *(f"{s:,.1f}" for s in seconds),
        f"{size / 1e6:,.0f}",
        f"{day / 1e9:,.0f}",
    )


def _bytes_row(overrides: Sequence[str], load: Load) -> Sequence[str]:
    config = load_config("srpo-paper", overrides)
    teacher, others = written(config, load)
    steps = DAY / sum(step_of("Qwen3-8B", 8, config, load))
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
