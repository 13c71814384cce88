"""One function per rule: what is wrong at the newest record, and since when.

They read records only and keep no state. Each returns a sign, or None.
"""

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from pipeline.health.shifts import (
    PAST,
    RECENT,
    WINDOW,
    Point,
    Record,
    Records,
    Shift,
    number,
    points,
    share_noise,
    shift,
)
from pipeline.health.thresholds import (
    ACCURACY_DROP,
    COLLAPSED,
    DEMONSTRATION_RATIO,
    DEMONSTRATION_SHARE,
    DEMONSTRATIONS,
    DUPLICATES,
    ENTROPY_NATS,
    ERROR_SHARE,
    ERRORS,
    EVALUATED_FORMAT_DROP,
    FORMAT_DROP,
    FORMAT_SHARE,
    GAP_NATS,
    GROWTH_TOKENS,
    LENGTH_GROWTH,
    LENGTH_SHARE,
    MASTERED,
    OFF_PATH_FALL,
    OFF_PATH_SHARE,
    OFF_PATH_STEPS,
    RATIO_DROP,
    SHRINK_TOKENS,
    SPIKE,
    SPIKE_OVER_LARGEST,
    TOLD,
    TRUNCATED,
    WEIGHT_SPREAD,
    WITHOUT_TEACHING,
)


class Sign(NamedTuple):
    """What a rule found.

    Attributes:
        onset: first step, or state evaluated, at which it shows.
        healthy: steps done of the newest state that is not known to be affected.
        message: what was found and what was expected, in numbers.
    """

    onset: int
    healthy: int
    message: str


def _since(found: Shift, text: str) -> Sign:
    return Sign(found.onset, max(0, found.onset - 1), text)


def format_falls(steps: Records) -> Sign | None:
    """Find a format rate of training that falls."""
    noise = share_noise(*_latest(steps, "format_rate", "rollouts"))
    found = shift(points(_judged(steps), "format_rate"), FORMAT_SHARE, max(FORMAT_DROP, noise))
    if found is None:
        return None
    return _since(
        found,
        f"format rate {found.now:.0%}, it was {found.was:.0%}; expected above {found.limit:.0%}",
    )


def _latest(records: Records, *keys: str) -> tuple[float, float]:
    """Return two numbers of the newest record, 0 where it has none."""
    first, second = (number(records[-1], key) or 0.0 for key in keys)
    return first, second


def _judged(records: Records) -> Records:
    """Return records whose format rate is that of the answers that could be judged.

    A verdict that failed says nothing about the format. In evaluations, and in steps of a time when
    such rollouts were wrong, it counts as broken.
    """
    return [
        record
        if "judged" in record
        else {**record, "format_rate": rate / (1 - _unjudged(record))}
        if (rate := number(record, "format_rate")) is not None and _unjudged(record) < 1
        else {**record, "format_rate": None}
        for record in records
    ]


def _unjudged(record: Record) -> float:
    """Return the share of the answers of a step or an evaluation whose verdicts failed."""
    answers, errors = _answers(record), number(record, "verifier_errors") or 0.0
    return min(max(errors / answers, 0.0), 1.0) if answers > 0 else 0.0


def _answers(record: Record) -> float:
    """Return the number of answers; an evaluation's rollouts are those of each question."""
    return (number(record, "rollouts") or 0.0) * (number(record, "questions") or 1.0)


def length_grows(steps: Records) -> Sign | None:
    """Find responses that become much longer."""
    found = shift(points(steps, "response_tokens_mean"), LENGTH_GROWTH, GROWTH_TOKENS)
    return _length(found, "below")


def length_shrinks(steps: Records) -> Sign | None:
    """Find responses that become much shorter."""
    found = shift(points(steps, "response_tokens_mean"), LENGTH_SHARE, SHRINK_TOKENS)
    return _length(found, "above")


def _length(found: Shift | None, side: str) -> Sign | None:
    if found is None:
        return None
    text = f"responses of {found.now:.0f} tokens, they had {found.was:.0f}; expected {side} "
    return _since(found, f"{text}{found.limit:.0f}")


def entropy_collapses(steps: Records) -> Sign | None:
    """Find a teacher that becomes sure of everything."""
    found = shift(points(steps, "teacher_entropy_mean"), COLLAPSED, ENTROPY_NATS, ever=False)
    if found is None:
        return None
    text = f"teacher entropy {found.now:.3g} nats, it was {found.was:.3g}; expected above "
    return _since(found, f"{text}{found.limit:.3g}")


def weights_collapse(steps: Records) -> Sign | None:
    """Find token weights that become even; where a teacher distributes advantages, they shall."""
    weighed = [record for record in steps if "credit_lambda" not in record]
    found = shift(points(weighed, "weight_std"), COLLAPSED, WEIGHT_SPREAD, ever=False)
    if found is None:
        return None
    text = f"token weights spread by {found.now:.3g}, it was {found.was:.3g}; expected above "
    return _since(found, f"{text}{found.limit:.3g}")


def demonstrations_shrink(steps: Records) -> Sign | None:
    """Find demonstrations that become shorter against the responses they correct."""
    telling = [r for r in steps if (number(r, "demonstrations") or 0) >= DEMONSTRATIONS]
    lengths = points(telling, "demonstration_tokens_mean")
    wrong = dict(points(telling, "wrong_tokens_mean"))
    ratios = [Point(s, n / wrong[s]) for s, n in lengths if wrong.get(s, 0.0) > 0]
    found = shift(ratios, DEMONSTRATION_RATIO, RATIO_DROP)
    own = shift(lengths, DEMONSTRATION_SHARE, 0.0)
    if found is None or own is None:
        return None
    return _since(
        found,
        f"demonstrations of {own.now:.0f} tokens, they had {own.was:.0f}: {found.now:.2f} of the "
        f"length of wrong responses, it was {found.was:.2f}; expected above {found.limit:.2f}",
    )


def nothing_taught(steps: Records) -> Sign | None:
    """Find a method that distils and has had nothing to distil."""
    without = _tail(steps, lambda record: bool(record.get("distils")) and not _taught(record))
    correct = [point.value for point in points(without, "correct_share")]
    if len(without) < WITHOUT_TEACHING or not correct or median(correct) >= MASTERED:
        return None
    onset = int(without[0].get("step") or 0)
    return Sign(
        onset,
        max(0, onset - 1),
        f"no token was distilled in {len(without)} steps, though only {median(correct):.0%} of "
        "rollouts are correct: no failed rollout has a correct sibling that fits",
    )


def _taught(record: Record) -> bool:
    return bool(number(record, "taught_tokens"))


def _tail(records: Records, holds: Callable[[Record], bool]) -> Records:
    """Return the longest tail of records that all hold."""
    start = len(records)
    while start and holds(records[start - 1]):
        start -= 1
    return records[start:]


def _above(steps: Records, key: str, limit: float) -> list[Point]:
    """Return the newest steps in a row at which a number is at its limit or above, if enough."""
    tail = points(_tail(steps, lambda record: (number(record, key) or 0.0) >= limit), key)
    return tail if len(tail) >= RECENT else []


def truncated(steps: Records) -> Sign | None:
    """Find many responses cut at the length limit."""
    if not (found := _above(steps, "truncated_share", TRUNCATED)):
        return None
    return Sign(
        found[0].step,
        max(0, found[0].step - 1),
        f"{median(p.value for p in found):.0%} of responses are cut at the length limit; expected "
        f"below {TRUNCATED:.0%}",
    )


def duplicates(steps: Records) -> Sign | None:
    """Find different questions that get the same long text."""
    if not (found := _above(steps, "duplicate_share", DUPLICATES)):
        return None
    return Sign(
        found[0].step,
        max(0, found[0].step - 1),
        f"{median(p.value for p in found):.0%} of responses give different questions the same "
        f"text; expected below {DUPLICATES:.0%}",
    )


def off_path(steps: Records) -> Sign | None:
    """Find teachers that are heard where they would not have come, while the format falls."""
    tail, rates = _off_path(steps), points(_judged(steps), "format_rate")
    past, recent = rates[:-OFF_PATH_STEPS], rates[-OFF_PATH_STEPS:]
    if not tail or len(past) < OFF_PATH_STEPS:
        return None
    windows = (past[n : n + OFF_PATH_STEPS] for n in range(len(past) - OFF_PATH_STEPS + 1))
    best = max(median(point.value for point in window) for window in windows)
    now = median(point.value for point in recent)
    answers = sum(_answers(record) for record in steps[-OFF_PATH_STEPS:])
    if now > best - max(OFF_PATH_FALL, share_noise(best, answers)):
        return None
    onset = recent[0].step
    text = f"{_off_path_text(tail)}, while the format rate is {now:.0%}, at best {best:.0%} before"
    return Sign(onset, max(0, onset - 1), text)


def evaluated_off_path(evaluations: Records, steps: Records) -> Sign | None:
    """Find teachers that are heard where they would not have come, while evaluations fall."""
    if not (tail := _off_path(steps)):
        return None
    failed = _unjudged(evaluations[-1])
    for what, low, high, rated in (
        ("format_rate", "format_rate_low", "format_rate_high", _judged(evaluations)),
        ("accuracy", "low", "high", evaluations),
    ):
        width = max((_width(record, low, high) for record in rated), default=0.0)
        least = max(OFF_PATH_FALL, width) + (failed if what == "accuracy" else 0.0)
        if (found := _evaluated(rated, what, least)) is not None:
            best, now, healthy = found
            steps_done, name = int(evaluations[-1]["steps_done"]), what.replace("_", " ")
            text = f"{name} is {now:.1%} at evaluation after {steps_done} steps, at best {best:.1%}"
            return Sign(steps_done, healthy, f"{_off_path_text(tail)}, while {text} before")
    return None


def _off_path(steps: Records) -> list[Point]:
    """Return the newest steps in a row at which teachers are off their path, if enough.

    Where a teacher distributes advantages nothing is learned from its divergence.
    """
    distilled = [{**r, "off_path_share": None} if "credit_lambda" in r else r for r in steps]
    tail = _above(distilled, "off_path_share", OFF_PATH_SHARE)
    return tail if len(tail) >= OFF_PATH_STEPS else []


def _off_path_text(tail: list[Point]) -> str:
    share = median(point.value for point in tail)
    return (
        f"{share:.0%} of the weighted divergence of {len(tail)} steps in a row stands where the "
        f"teacher would not have come; expected below {OFF_PATH_SHARE:.0%}"
    )


def gradient_spikes(steps: Records) -> Sign | None:
    """Find a gradient far above all before."""
    norms = [point for point in points(steps, "grad_norm") if point.value > 0]
    if len(norms) < 2 * PAST + 1 or norms[-1].step != steps[-1].get("step"):
        return None
    past, (step, now) = [point.value for point in norms[:-1]], norms[-1]
    usual = median(past[-WINDOW:])
    if now < SPIKE * usual or now < SPIKE_OVER_LARGEST * max(past):
        return None
    text = f"gradient norm {now:.3g}, {now / usual:.3g} times the usual {usual:.3g}; expected below"
    return Sign(step, step, f"{text} {max(SPIKE * usual, SPIKE_OVER_LARGEST * max(past)):.3g}")


def engine_mismatch(steps: Records) -> Sign | None:
    """Find an engine whose log-probabilities are not those of the trainer."""
    if not (found := _above(steps, "logprob_gap_mean", GAP_NATS)):
        return None
    gap = median(point.value for point in found)
    return Sign(
        found[0].step,
        max(0, found[0].step - 1),
        f"engine and trainer differ by {gap:.2f} nats in the worst token of a rollout; expected "
        f"below {GAP_NATS}",
    )


def verifier_fails(steps: Records) -> Sign | None:
    """Find verdicts that could not be made."""
    step = int(steps[-1].get("step") or 0)
    return _failing(steps[-1], "rollouts", step, max(0, step - 1))


def gold_told(steps: Records) -> Sign | None:
    """Find feedback that tells teachers the gold answer."""
    fed = [record for record in steps if number(record, "feedback_gold_share") is not None]
    if not fed or not (found := _above(fed, "feedback_gold_share", TOLD)):
        return None
    share = median(point.value for point in found)
    return Sign(
        found[0].step,
        max(0, found[0].step - 1),
        f"feedback in teacher prompts tells {share:.0%} of the gold answers; expected below "
        f"{TOLD:.0%}",
    )


def evaluated_verifier_fails(evaluations: Records, _: Records) -> Sign | None:
    """Find verdicts of an evaluation that could not be made."""
    steps_done = int(evaluations[-1]["steps_done"])
    return _failing(evaluations[-1], "answers to test questions", steps_done, steps_done)


def _failing(record: Record, what: str, step: int, healthy: int) -> Sign | None:
    errors, share = number(record, "verifier_errors") or 0.0, _unjudged(record)
    if errors < ERRORS or share < ERROR_SHARE:
        return None
    effect = "are left out" if "judged" in record else "count as wrong"
    text = f"the verifier failed on {errors:.0f} of {_answers(record):.0f} {what}, which {effect}"
    return Sign(step, healthy, f"{text}; expected below {ERROR_SHARE:.0%}")


def evaluated_format_falls(evaluations: Records, steps: Records) -> Sign | None:
    """Find a format that breaks at the evaluation's temperature."""
    found = _evaluated(_judged(evaluations), "format_rate", EVALUATED_FORMAT_DROP)
    if found is None:
        return None
    best, now, healthy = found
    steps_done = int(evaluations[-1]["steps_done"])
    rates = [point.value for point in points(_judged(steps[-RECENT:]), "format_rate")]
    training = f"; in training it is {median(rates):.0%}" if rates else ""
    return Sign(
        steps_done,
        healthy,
        f"format rate {now:.0%} at evaluation after {steps_done} steps, at best {best:.0%} "
        f"before{training}",
    )


def accuracy_falls(evaluations: Records, steps: Records) -> Sign | None:
    """Find an accuracy that falls, by more than verdicts that failed may explain."""
    width = max((_width(evaluation, "low", "high") for evaluation in evaluations), default=0.0)
    failed = _unjudged(evaluations[-1])
    found = _evaluated(evaluations, "accuracy", max(ACCURACY_DROP, width) + failed)
    if found is None:
        return None
    best, now, healthy = found
    steps_done = int(evaluations[-1]["steps_done"])
    rewards = [point.value for point in points(steps[-RECENT:], "reward_mean")]
    training = f", while the training reward is {median(rewards):.2f}" if rewards else ""
    return Sign(
        steps_done,
        healthy,
        f"accuracy {now:.1%} at evaluation after {steps_done} steps, at best {best:.1%} "
        f"before{training}",
    )


def _width(evaluation: Record, *ends: str) -> float:
    """Return the width of an interval, given the keys of its ends; 0 if it is not recorded."""
    low, high = (number(evaluation, key) for key in ends)
    return 0.0 if low is None or high is None else high - low


def _evaluated(evaluations: Records, key: str, least: float) -> tuple[float, float, int] | None:
    """Return the best rate so far, the newest, and the newest state that kept to the former."""
    rated = [(e, rate) for e in evaluations if (rate := number(e, key)) is not None]
    if len(rated) < 2 or rated[-1][0] is not evaluations[-1]:
        return None
    best, now = max(rate for _, rate in rated[:-1]), rated[-1][1]
    limit = best - max(least, share_noise(best, number(evaluations[-1], "questions") or 0.0))
    if now > limit:
        return None
    return best, now, max(int(e["steps_done"]) for e, rate in rated[:-1] if rate >= limit)
