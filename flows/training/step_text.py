"""What one line says about a step or an evaluation, on the terminal and in Prefect's pages."""

from collections.abc import Mapping
from typing import Any

from pipeline.run.metrics import tasks_of
from pipeline.text import count, duration, number, percent


def interval(summary: Mapping[str, Any], task: str = "") -> str:
    """Return an accuracy with its interval, overall or on one task of a mixture."""
    of = f"/{task}" if task else ""
    accuracy, low, high = (
        percent(summary.get(f"{key}{of}")) for key in ("accuracy", "low", "high")
    )
    return f"{accuracy} ({low} to {high})"


def tasks_text(summary: Mapping[str, Any]) -> str:
    """Return the accuracy on each task of a mixture, in brackets after a space; else nothing."""
    texts = [f"{task} {percent(summary[f'accuracy/{task}'])}" for task in tasks_of(summary)]
    return f" [{', '.join(texts)}]" if texts else ""


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


def alarm_line(alarm: Mapping[str, Any]) -> str:
    """Return what one line says about an alarm, with a command that shows its evidence."""
    return f"ALARM {alarm['rule']}, step {alarm['step']}: {alarm['message']}; {alarm['command']}"


def troubles(metrics: Mapping[str, Any]) -> str:
    """Return what went wrong in a step: rollouts cut at the limit, verdicts that are errors."""
    share, errors = metrics.get("truncated_share"), metrics.get("verifier_errors")
    cut = f"  TRUNCATED {percent(share)}" if share else ""
    if not errors:
        return cut
    return f"{cut}  VERIFIER ERRORS {percent(errors / metrics['rollouts'])} (see verdicts.error)"
