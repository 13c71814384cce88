"""The rules of health: what each finds, how severe it is, and what to do.

A rule raises its alarm at the first record in which it finds something, and the alarm becomes part
of that record. So computing it again, after a resume or elsewhere, gives the same alarm.
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
    OFF_PATH_FALL,
    OFF_PATH_SHARE,
    OFF_PATH_STEPS,
    SHRINK_TOKENS,
    SPIKE,
    SPIKE_OVER_LARGEST,
    TOLD,
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


_OFF_PATH_ADVICE = (
    "read the tokens behind the first one that the teacher finds improbable; fork from a step "
    "before it, with `weigh.survival`"
)
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
        "read the longest: if they repeat themselves, the learning rate is too high; see also "
        "`truncated`",
    ),
    Rule(
        "length_shrinks",
        findings.length_shrinks,
        "shortest",
        True,
        f"responses shrink to {LENGTH_SHARE:.0%} of their length, by {SHRINK_TOKENS:g} tokens or "
        "more",
        "compare with an early step: is the reasoning gone? short demonstrations teach short "
        "answers",
    ),
    Rule(
        "demonstrations_shrink",
        findings.demonstrations_shrink,
        "demonstrations",
        True,
        f"the length of demonstrations, over that of wrong responses, falls to "
        f"{DEMONSTRATION_RATIO:.0%} of what it was, and itself to {DEMONSTRATION_SHARE:.0%}",
        "fork from a step before it, with a lower learning rate or another method; read what is "
        "imitated",
    ),
    Rule(
        "teacher_entropy_collapses",
        findings.entropy_collapses,
        "surest",
        True,
        f"the teacher's mean entropy falls to {COLLAPSED:.0%} within a few steps",
        "does the teacher's prompt hold the answer? a slower EMA or a frozen teacher stays "
        "independent",
    ),
    Rule(
        "weights_collapse",
        findings.weights_collapse,
        "surest",
        False,
        f"the deviation of the token weights falls to {COLLAPSED:.0%} within a few steps",
        "weights no longer have an effect; look at the teacher's entropies",
    ),
    Rule(
        "nothing_taught",
        findings.nothing_taught,
        "wrong",
        False,
        f"a method that distils had no token to distil for {WITHOUT_TEACHING} steps, at a correct "
        f"share below {MASTERED:.0%}",
        "questions are too hard for the group size, or teacher prompts too long: see `reason` in "
        "`routes`",
    ),
    Rule(
        "truncated",
        findings.truncated,
        "truncated",
        False,
        f"at least {TRUNCATED:.0%} of responses are cut at the limit, {RECENT} steps in a row",
        "raise `generate.max_response_length`, or find out why responses don't end",
    ),
    Rule(
        "duplicate_responses",
        findings.duplicates,
        "duplicates",
        True,
        f"at least {DUPLICATES:.0%} of responses are long texts that another question got too, "
        f"{RECENT} steps in a row",
        "the policy no longer reads its prompt: fork from a step before it, with a lower "
        "learning rate",
    ),
    Rule(
        "off_path",
        findings.off_path,
        "off_path",
        True,
        f"at least {OFF_PATH_SHARE:.0%} of the weighted divergence stands where the teacher would "
        f"not have come (`off_path_share`), {OFF_PATH_STEPS} steps in a row, while the format rate "
        f"of training is {100 * OFF_PATH_FALL:.0f} points below its best",
        _OFF_PATH_ADVICE,
    ),
    Rule(
        "gradient_spike",
        findings.gradient_spikes,
        "largest_loss",
        False,
        f"the gradient norm is {SPIKE:g} times its median and {SPIKE_OVER_LARGEST:g} times the "
        "largest so far",
        "look at the step's largest losses; if it happens again, lower the learning rate",
    ),
    Rule(
        "engine_mismatch",
        findings.engine_mismatch,
        "largest_gap",
        False,
        f"engine and trainer differ by {GAP_NATS} nats in a rollout's worst token, as a mean over "
        f"rollouts, {RECENT} steps in a row",
        "do both have the same weights, temperature and precision? top-p and top-k cause a gap, "
        "too",
    ),
    Rule(
        "verifier_fails",
        findings.verifier_fails,
        "verifier_errors",
        False,
        f"the verifier fails on {ERROR_SHARE:.0%} of rollouts, at least {ERRORS}",
        "read `error` in `verdicts`; mend the verifier and replay from `verify`",
    ),
    Rule(
        "gold_told",
        findings.gold_told,
        "told_gold",
        False,
        f"feedback that teachers are shown tells {TOLD:.0%} of the gold answers, as a mean over "
        f"rollouts, {RECENT} steps in a row",
        "the student learns to copy what it is never shown: replay from `verify` with "
        '`verify.feedback = "hint"`, or turn `route.feedback` off',
    ),
)
EVALUATION_RULES: Sequence[Rule[AtEvaluation]] = (
    Rule(
        "evaluated_verifier_fails",
        findings.evaluated_verifier_fails,
        "evaluated_errors",
        False,
        f"the verifier fails on {ERROR_SHARE:.0%} of an evaluation's answers, at least {ERRORS}",
        "read `error`; the accuracy of that evaluation may be too low by that share",
    ),
    Rule(
        "evaluated_format_falls",
        findings.evaluated_format_falls,
        "evaluated_format",
        True,
        f"the format rate of an evaluation is {100 * EVALUATED_FORMAT_DROP:.0f} points below the "
        "best before",
        "formats break at a low temperature first; evaluate more often, fork from the last good "
        "state",
    ),
    Rule(
        "evaluated_off_path",
        findings.evaluated_off_path,
        "evaluated_wrong",
        True,
        f"as `off_path`, while an evaluation's format rate or accuracy is "
        f"{100 * OFF_PATH_FALL:.0f} points below its best, and by more than the width of its "
        "interval",
        _OFF_PATH_ADVICE,
    ),
    Rule(
        "accuracy_falls",
        findings.accuracy_falls,
        "evaluated_wrong",
        True,
        f"accuracy is {100 * ACCURACY_DROP:.0f} points below the best before, and by more than "
        "the width of its interval",
        "if the reward rises meanwhile, it is being gamed, or the format breaks",
    ),
)
"""Rules of evaluations; a state is judged when it is evaluated."""
