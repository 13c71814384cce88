"""Out of memory, in one line: which stage, and which of its settings would need less."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.sections import Config
from pipeline.errors import MemoryShortage
from pipeline.text import command, state_word

LOWER = {
    "generate": ("generate.batch_size",),
    "verify": ("verify.workers",),
    "route": ("route.micro_batch_tokens", "route.projection_mb"),
    "weigh": (),
    "update": ("update.micro_batch_tokens", "update.projection_mb"),
    "evaluate": ("evaluate.batch_size",),
}
"""Settings by which the memory of a stage grows."""

_SIGNS = re.compile(
    "can't allocate memory|out of memory|cannot allocate memory|not enough memory|"
    "malloc of size|realloc of size|bad_alloc",
    re.IGNORECASE,
)


@contextmanager
def memory_errors_explained(stage: str, step: int, root: Path, config: Config) -> Iterator[None]:
    """Turn a library's out-of-memory error into one line that says which settings to lower.

    Raises:
        MemoryShortage: instead of MemoryError, torch's and Arrow's errors.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _SIGNS.search(str(error))):
            raise
        raise MemoryShortage(
            f"{root}: out of memory in stage {stage} of step {step}; "
            f"{_advice(stage, step, root, config)}"
        ) from error


def _advice(stage: str, step: int, root: Path, config: Config) -> str:
    values = {key: getattr(getattr(config, stage), key.split(".")[1]) for key in LOWER[stage]}
    if not values:
        return "what was saved stays; free memory and go on with --resume"
    lower = " or ".join(f"{key} (now {value:g})" for key, value in values.items())
    key, value = next(iter(values.items()))
    setting = ("--set", f"{key}={max(1, value // 2):g}")
    if stage == "evaluate":
        return f"lower {lower}: {command('evaluate', state_word(root, step), *setting)}"
    again = command("stage", stage, "--run", root, "--step", step, *setting)
    return (
        f"lower {lower} in a fork, since tables say how they were made: {again} --fork NEW, "
        "then srpo train --resume --run NEW"
    )
