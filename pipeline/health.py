"""Health: rules over the records of steps and evaluations, and the evidence in the tables.

A rule looks at the records up to a step and says what is wrong, or nothing. It compares a short
recent window with the run's own past, by a relative and an absolute change, so that noise of a
small run raises nothing. An alarm is raised once, at its first step, and is part of that step's
record: rules read nothing but records and tables, so a replay raises the same alarms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

Record = Mapping[str, Any]
Records = Sequence[Record]

RECENT = 3
"""Steps of the recent window: alarms come within five steps of an onset, one bad step is none."""
PAST = 5
"""Steps that the past must have before anything is compared with it."""

_FORMAT_DROP = 0.15  # of all responses; parsers fail on a few per cent in healthy runs
_EVALUATED_FORMAT_DROP = 0.10  # evaluations sample at low temperature, where noise is smaller
_ACCURACY_DROP = 0.10  # five times the usual half interval would hide a collapse of 20 points
_LENGTH_FACTOR = 2.0  # task-driven growth takes dozens of steps, not three
_LENGTH_TOKENS = 20.0
_TRUNCATED = 0.25  # published runs lost 97% to a limit of 256 tokens without noticing
_COLLAPSED = 0.25  # of the past's teacher entropy or weight spread
_WITHOUT_TEACHING = 10  # steps; in fewer, chance may leave no failed rollout with a sibling
_MASTERED = 0.9  # correct share above which there is little left to teach
_DEMONSTRATIONS_SHRINK = 0.6  # of the past's length against that of wrong responses
_DUPLICATES = 0.5  # share of long responses that answer two questions with one text
_SPIKE = 10.0  # times the median of the past; clipped, but Adam's moments remember
_GAP_NATS = 0.5  # mean over rollouts of the largest gap; bfloat16 engines stay below 0.2
_VERIFIER_ERRORS = 0.05  # of rollouts


@dataclass(frozen=True)
class Rule:
    """A rule: its name, what it finds, and where its evidence is.

    Attributes:
        find: returns a message with numbers for the newest of some records, or None.
        evidence: name of a choice in `health_evidence`.
        severe: whether `run.on_alarm` acts on it: the run is being lost, not merely noisy.
    """

    name: str
    find: Callable[[Records, Records], str | None]
    evidence: str
    severe: bool


@dataclass(frozen=True)
class Finding:
    """A rule that has fired at a step."""

    rule: Rule
    step: int
    message: str


def new_findings(steps: Records, evaluations: Records) -> list[Finding]:
    """Return what is wrong at the newest step and was not found at an earlier one.

    Args:
        steps: records of steps 0 to now; earlier ones hold their `alarms`.
        evaluations: records of evaluations up to now, each with `steps_done`.
    """
    known = {alarm["rule"] for record in steps[:-1] for alarm in record.get("alarms") or []}
    found = []
    for rule in RULES:
        message = None if rule.name in known else rule.find(steps, evaluations)
        if message is not None:
            found.append(Finding(rule, steps[-1]["step"], message))
    return found


def _values(records: Records, key: str) -> list[float]:
    return [float(r[key]) for r in records if isinstance(r.get(key), int | float)]


def _windows(records: Records, key: str) -> tuple[float, float] | None:
    """Return the median of the past and the mean of the recent steps, if there is enough of both.

    A value that jumps about is judged by its calmest recent step in `_steadily`.
    """
    past, recent = _values(records[:-RECENT], key), _values(records[-RECENT:], key)
    if len(past) < PAST or len(recent) < RECENT:
        return None
    return median(past), fmean(recent)


def _format_falls(steps: Records, _: Records) -> str | None:
    windows = _windows(steps, "format_rate")
    if windows is None or windows[0] - windows[1] < _FORMAT_DROP:
        return None
    was, now = windows
    return f"format rate {now:.0%} over the last {RECENT} steps, {was:.0%} before"


def _evaluated_format_falls(_: Records, evaluations: Records) -> str | None:
    rates = _values(evaluations, "format_rate")
    if len(rates) < 2 or max(rates[:-1]) - rates[-1] < _EVALUATED_FORMAT_DROP:
        return None
    return (
        f"format rate {rates[-1]:.0%} at evaluation after {evaluations[-1]['steps_done']} steps, "
        f"{max(rates[:-1]):.0%} at best before: it breaks at the evaluation's temperature"
    )


def _accuracy_falls(steps: Records, evaluations: Records) -> str | None:
    values = _values(evaluations, "accuracy")
    if len(values) < 2:
        return None
    last = evaluations[-1]
    noise = float(last.get("high") or 0) - float(last.get("low") or 0)
    best = max(values[:-1])
    if best - values[-1] < max(_ACCURACY_DROP, noise):
        return None
    reward = _values(steps[-RECENT:], "reward_mean")
    training = f"; training reward {fmean(reward):.2f}" if reward else ""
    return (
        f"accuracy {values[-1]:.1%} at evaluation after {last['steps_done']} steps, {best:.1%} at "
        f"best before{training}"
    )


def _length_runs_away(steps: Records, _: Records) -> str | None:
    windows = _windows(steps, "response_tokens_mean")
    if windows is None:
        return None
    was, now = windows
    if now < _LENGTH_FACTOR * was or now - was < _LENGTH_TOKENS:
        return None
    return f"responses of {now:.0f} tokens over the last {RECENT} steps, {was:.0f} before"


def _length_shrinks(steps: Records, _: Records) -> str | None:
    windows = _windows(steps, "response_tokens_mean")
    if windows is None:
        return None
    was, now = windows
    if now * _LENGTH_FACTOR > was or was - now < _LENGTH_TOKENS:
        return None
    return f"responses of {now:.0f} tokens over the last {RECENT} steps, {was:.0f} before"


def _truncated(steps: Records, _: Records) -> str | None:
    recent = _values(steps[-RECENT:], "truncated_share")
    if len(recent) < RECENT or min(recent) < _TRUNCATED:
        return None
    return (
        f"{fmean(recent):.0%} of responses cut at the length limit over the last {RECENT} steps; "
        "raise generate.max_response_length, or find out why they don't end"
    )


def _entropy_collapses(steps: Records, _: Records) -> str | None:
    return _collapses(steps, "teacher_entropy_mean", "teacher entropy", " nats")


def _weights_collapse(steps: Records, _: Records) -> str | None:
    return _collapses(steps, "weight_std", "spread of the token weights", "")


def _collapses(steps: Records, key: str, name: str, unit: str) -> str | None:
    windows = _windows(steps, key)
    if windows is None or windows[0] < 1e-3 or windows[1] > _COLLAPSED * windows[0]:
        return None
    was, now = windows
    return f"{name} {now:.3g} {unit} over the last {RECENT} steps, {was:.3g} before".replace(
        "  ", " "
    )


def _nothing_taught(steps: Records, _: Records) -> str | None:
    recent = steps[-_WITHOUT_TEACHING:]
    if len(recent) < _WITHOUT_TEACHING or any(r.get("taught_tokens") for r in recent):
        return None
    if not any(r.get("distils") for r in recent) or not _unmastered(recent):
        return None
    correct = fmean(_values(recent, "correct_share"))
    return (
        f"no token was distilled in {_WITHOUT_TEACHING} steps, though only {correct:.0%} of "
        "rollouts are correct: no failed rollout has a correct sibling that fits"
    )


def _unmastered(records: Records) -> bool:
    values = _values(records, "correct_share")
    return bool(values) and fmean(values) < _MASTERED


def _demonstrations_shrink(steps: Records, _: Records) -> str | None:
    pairs = [
        {"ratio": r["demonstration_tokens_mean"] / r["other_tokens_mean"]}
        for r in steps
        if r.get("demonstration_tokens_mean") is not None and r.get("other_tokens_mean")
    ]
    windows = _windows(pairs, "ratio")
    if windows is None or windows[1] > _DEMONSTRATIONS_SHRINK * windows[0]:
        return None
    was, now = windows
    length = fmean(_values(steps[-RECENT:], "demonstration_tokens_mean") or [0.0])
    return (
        f"demonstrations have {now:.2f} of the length of other responses over the last {RECENT} "
        f"steps ({length:.0f} tokens), {was:.2f} before: what is imitated gets shorter"
    )


def _duplicates(steps: Records, _: Records) -> str | None:
    recent = _values(steps[-RECENT:], "duplicate_share")
    if len(recent) < RECENT or min(recent) < _DUPLICATES:
        return None
    return (
        f"{fmean(recent):.0%} of responses answer different questions with the same text over the "
        f"last {RECENT} steps"
    )


def _gradient_spikes(steps: Records, _: Records) -> str | None:
    past, now = _values(steps[:-1], "grad_norm"), _values(steps[-1:], "grad_norm")
    if len(past) < 2 * PAST or not now:
        return None
    usual = median(past[-4 * PAST :])
    if now[0] < _SPIKE * usual or now[0] < 2 * max(past):
        return None
    return (
        f"gradient norm {now[0]:.3g}, {now[0] / max(usual, 1e-12):.0f} times the usual {usual:.3g}"
    )


def _engine_mismatch(steps: Records, _: Records) -> str | None:
    recent = _values(steps[-RECENT:], "logprob_gap_mean")
    if len(recent) < RECENT or min(recent) < _GAP_NATS:
        return None
    return (
        f"engine and trainer differ by {fmean(recent):.2f} nats in a rollout's worst token over "
        f"the last {RECENT} steps; below {_GAP_NATS} is usual"
    )


def _verifier_fails(steps: Records, _: Records) -> str | None:
    last = steps[-1]
    count, rollouts = last.get("verifier_errors") or 0, last.get("rollouts") or 0
    if not rollouts or count < _VERIFIER_ERRORS * rollouts:
        return None
    return f"the verifier failed on {count} of {rollouts} rollouts, which count as wrong"


RULES = (
    Rule("format_falls", _format_falls, "format", severe=True),
    Rule("evaluated_format_falls", _evaluated_format_falls, "evaluated_format", severe=True),
    Rule("accuracy_falls", _accuracy_falls, "evaluated_wrong", severe=True),
    Rule("length_runs_away", _length_runs_away, "longest", severe=True),
    Rule("length_shrinks", _length_shrinks, "shortest", severe=True),
    Rule("truncated", _truncated, "truncated", severe=False),
    Rule("teacher_entropy_collapses", _entropy_collapses, "surest", severe=True),
    Rule("weights_collapse", _weights_collapse, "surest", severe=False),
    Rule("nothing_taught", _nothing_taught, "wrong", severe=False),
    Rule("demonstrations_shrink", _demonstrations_shrink, "demonstrations", severe=True),
    Rule("duplicate_responses", _duplicates, "duplicates", severe=True),
    Rule("gradient_spike", _gradient_spikes, "largest_loss", severe=False),
    Rule("engine_mismatch", _engine_mismatch, "largest_gap", severe=False),
    Rule("verifier_fails", _verifier_fails, "verifier_errors", severe=False),
)
