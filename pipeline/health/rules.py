"""The rules of health: what each finds, how grave it is, and what to do.

An alarm is raised by the first record at which its rule finds something, is part of that record,
and stays known. So whoever computes it again, after a resume or elsewhere, gets the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.health import findings
from pipeline.health.findings import Sign
from pipeline.health.shifts import RECENT, Records
from pipeline.health.thresholds import (
    ACCURACY_DROP,
    COLLAPSED,
    DEMONSTRATION_RATIO,
    DEMONSTRATION_SHARE,
    DUPLICATES,
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
    SHRINK_TOKENS,
    SPIKE,
    SPIKE_OVER_LARGEST,
    TRUNCATED,
    WITHOUT_TEACHING,
)

AtStep = Callable[[Records], Sign | None]
"""Judges the newest of the steps' records."""
AtEvaluation = Callable[[Records, Records], Sign | None]
"""Judges the newest of the evaluations' records, beside those of the steps."""


Finder = TypeVar("Finder", AtStep, AtEvaluation)


@dataclass(frozen=True)
class Rule(Generic[Finder]):
    """A rule.

    Attributes:
        evidence: name of a selector in `evidence.SELECTORS`.
        severe: whether `run.on_alarm` acts on it: the policy is being lost.
        meaning, advice: when it is raised and what to do, for docs/health.md.
    """

    name: str
    find: Finder
    evidence: str
    severe: bool
    meaning: str
    advice: str


STEP_RULES: Sequence[Rule[AtStep]] = (
    Rule(
        "format_falls",
        findings.format_falls,
        "format",
        True,
        f"the format rate of training falls by {1 - FORMAT_SHARE:.0%}, at least "
        f"{100 * FORMAT_DROP:.0f} points",
        "read the responses; lower the learning rate, or reward the format",
    ),
    Rule(
        "length_grows",
        findings.length_grows,
        "longest",
        True,
        f"responses become {LENGTH_GROWTH:g} times as long, by {GROWTH_TOKENS:g} tokens or more",
        "read the longest: repetition means a rate too high; see also the truncated share",
    ),
    Rule(
        "length_shrinks",
        findings.length_shrinks,
        "shortest",
        True,
        f"responses shrink to {LENGTH_SHARE:.0%} of their length, by {SHRINK_TOKENS:g} tokens or "
        "more",
        "compare with an early step: is the reasoning gone? short demonstrations teach shortness",
    ),
    Rule(
        "demonstrations_shrink",
        findings.demonstrations_shrink,
        "demonstrations",
        True,
        f"demonstrations shrink against wrong responses to {DEMONSTRATION_RATIO:.0%} of their "
        f"former ratio, and to {DEMONSTRATION_SHARE:.0%} of their own length",
        "fork from before, with a lower rate or another method; read what is imitated",
    ),
    Rule(
        "teacher_entropy_collapses",
        findings.entropy_collapses,
        "surest",
        True,
        f"the teacher's mean entropy falls to {COLLAPSED:.0%} within a few steps",
        "is the answer in the teacher's prompt? a slower EMA, or a frozen teacher, keeps it apart",
    ),
    Rule(
        "weights_collapse",
        findings.weights_collapse,
        "surest",
        False,
        f"the spread of the token weights falls to {COLLAPSED:.0%} within a few steps",
        "the weighting has no effect any more; look at the teacher's entropies",
    ),
    Rule(
        "nothing_taught",
        findings.nothing_taught,
        "wrong",
        False,
        f"a method that distils had no token to distil for {WITHOUT_TEACHING} steps, at a correct "
        f"share below {MASTERED:.0%}",
        "questions are too hard for the group size, or teacher prompts too long: see `reason`",
    ),
    Rule(
        "truncated",
        findings.truncated,
        "truncated",
        False,
        f"at least {TRUNCATED:.0%} of responses are cut at the limit, {RECENT} steps in a row",
        "raise generate.max_response_length, or find out why responses don't end",
    ),
    Rule(
        "duplicate_responses",
        findings.duplicates,
        "duplicates",
        True,
        f"at least {DUPLICATES:.0%} of responses are long texts that another question got too, "
        f"{RECENT} steps in a row",
        "the policy no longer reads its prompt: fork from before, with a lower rate",
    ),
    Rule(
        "gradient_spike",
        findings.gradient_spikes,
        "largest_loss",
        False,
        f"the gradient norm is {SPIKE:g} times its median and {SPIKE_OVER_LARGEST:g} times the "
        "largest so far",
        "look at the step's largest losses; if it recurs, lower the learning rate",
    ),
    Rule(
        "engine_mismatch",
        findings.engine_mismatch,
        "largest_gap",
        False,
        f"the worst token of a rollout differs by {GAP_NATS} nats between engine and trainer, in "
        f"the mean over rollouts, {RECENT} steps in a row",
        "same weights, temperature and precision in both? top-p and top-k bias it",
    ),
    Rule(
        "verifier_fails",
        findings.verifier_fails,
        "verifier_errors",
        False,
        f"the verifier fails on {ERROR_SHARE:.0%} of rollouts, at least {ERRORS}",
        "read `error`; mend the verifier and replay from verify",
    ),
)
EVALUATION_RULES: Sequence[Rule[AtEvaluation]] = (
    Rule(
        "evaluated_verifier_fails",
        findings.evaluated_verifier_fails,
        "evaluated_errors",
        False,
        f"the verifier fails on {ERROR_SHARE:.0%} of an evaluation's answers, at least {ERRORS}",
        "read `error`; the evaluation's accuracy is too low by as much",
    ),
    Rule(
        "evaluated_format_falls",
        findings.evaluated_format_falls,
        "evaluated_format",
        True,
        f"the format rate of an evaluation is {100 * EVALUATED_FORMAT_DROP:.0f} points below the "
        "best before",
        "it breaks at low temperature first; evaluate more often, fork from the last good state",
    ),
    Rule(
        "accuracy_falls",
        findings.accuracy_falls,
        "evaluated_wrong",
        True,
        f"accuracy is {100 * ACCURACY_DROP:.0f} points below the best before, and by more than its "
        "interval is wide",
        "reward up and accuracy down: the reward is being gamed, or the format breaks",
    ),
)
"""Rules of evaluations; a state is judged when it is evaluated."""
