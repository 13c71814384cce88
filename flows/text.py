"""Numbers as people read them, on the terminal and in Prefect's pages alike."""

from collections.abc import Mapping
from typing import Any

NOTHING = "-"


def percent(value: Any) -> str:
    """Return 0.256 as 25.6%."""
    return NOTHING if value is None else f"{100 * float(value):.1f}%"


def number(value: Any, digits: int = 3) -> str:
    """Return a number with `digits` significant digits."""
    return NOTHING if value is None else f"{float(value):.{digits}g}"


def count(value: Any) -> str:
    """Return 12345 as 12,345."""
    return NOTHING if value is None else f"{round(value):,}"


def duration(seconds: float | None) -> str:
    """Return 3725 s as 1h02m, 95 s as 1m35s, 4.2 s as 4.2s."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def interval(summary: Mapping[str, Any]) -> str:
    """Return an accuracy with its interval."""
    low, high = percent(summary.get("low")), percent(summary.get("high"))
    return f"{percent(summary.get('accuracy'))} ({low} to {high})"


def step_line(steps_done: int, steps: int, metrics: Mapping[str, Any]) -> str:
    """Return what one line can say about a step."""
    seconds = sum(v for k, v in metrics.items() if k.startswith("seconds_") and v is not None)
    return (
        f"step {steps_done}/{steps}  reward {number(metrics.get('reward_mean'))}  "
        f"correct {percent(metrics.get('correct_share'))}  "
        f"sdpo {percent(metrics.get('share_sdpo'))}  loss {number(metrics.get('loss'))}  "
        f"grad {number(metrics.get('grad_norm'))}  "
        f"tokens {count(metrics.get('tokens'))}  {duration(seconds)}{troubles(metrics)}"
    )


def troubles(metrics: Mapping[str, Any]) -> str:
    """Return what went wrong in a step: rollouts cut at the limit, verdicts that are errors."""
    share, errors = metrics.get("truncated_share"), metrics.get("verifier_errors")
    cut = f"  TRUNCATED {percent(share)}" if share else ""
    if not errors:
        return cut
    return f"{cut}  VERIFIER ERRORS {percent(errors / metrics['rollouts'])} (see verdicts.error)"
