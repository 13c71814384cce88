"""What the token tables must be by docs/method.md, sections 4 to 6, in slices of some megabytes."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.stored_logprobs import (
    is_rounded,
    jsd_rounding_T,
    keeps_student,
    kept_TK,
    rounding,
)
from pipeline.check.rollout_tables import StepTables
from pipeline.config.sections import RouteSection
from pipeline.survival import log_survival_of
from pipeline.tables.invariants import (
    Broken,
    Mask,
    in_group,
    require,
    within,
)
from pipeline.tables.rollout_index import RolloutSpans
from pipeline.tables.schemas import CREDIT_LAMBDA, REWARD_WEIGHT, SURVIVAL

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

_SLICE_VALUES = 1 << 17
"""Values of a [rows, K] array that are worked on at once: what a core's cache holds."""

_MASS_SLACK = 1e-5
_LOG_SLACK = 1e-5
_TAIL_FLOOR = np.float32(1e-7)
_LOWEST = np.float32(-1e4)
_SMALLEST = np.float32(1e-38)
_LARGEST = float(np.finfo(np.float32).max)


def teacher_rules(step: StepTables, release: Callable[[], None]) -> Iterator[Broken]:
    """Check the distributions that student and teacher gave to each token.

    Args:
        release: called after each slice, to give the pages of the file back.
    """
    table = step.tables["teacher"]
    kept = table.schema.field("topk_ids").type.list_size
    wanted = min(step.setting("teacher", "route", "top_k"), step.vocabulary or kept)
    if kept != wanted:
        yield Broken("teacher", f"K is {kept}, not {wanted} (route.top_k)", None, table.num_rows)
    yield from _as_set(step, table)
    if not table.num_rows:
        return
    spans = RolloutSpans(table)
    bounded = table["entropy"].to_numpy() <= step.highest_entropy
    yield from require("teacher", "entropy in [0, ln V]", spans, bounded)
    yield from _against_scores(step, table, spans)
    sampled = _sampled_ids(step, spans)
    rows: Counter[str] = Counter()
    first: dict[str, str] = {}
    size = max(1, _SLICE_VALUES // max(kept, 1))
    for start in range(0, table.num_rows, size):
        part = _Part(step, table.slice(start, size), sampled[start : start + size])
        for what, holds in part.rules():
            if not holds.all():
                rows[what] += int((~holds).sum())
                first.setdefault(what, spans[start + int(holds.argmin())])
        release()
    for what, count in rows.items():
        yield Broken("teacher", what, first[what], count)


class _Part:
    """Some rows of `teacher` as arrays, [R] or [R, K]."""

    def __init__(self, step: StepTables, part: pa.Table, sampled: Ints) -> None:
        kept = part.schema.field("topk_ids").type.list_size

        def column(name: str) -> Floats:
            values: Floats = part[name].to_numpy()
            return values

        self.kept, self.vocabulary, self.sampled = kept, step.vocabulary, sampled
        self.rounded = is_rounded(part)
        self.ids: Ints = kept_TK(part, "topk_ids")
        known = ("student", "teacher") if keeps_student(part) else ("teacher",)
        self.logs: dict[str, Floats] = {who: kept_TK(part, f"{who}_logprobs") for who in known}
        self.tails = {"student": column("student_tail"), "teacher": column("teacher_tail")}
        self.logprobs = {"student": column("student_logprob"), "teacher": column("teacher_logprob")}
        self.jsd = column("jsd")

    def rules(self) -> Iterator[tuple[str, Mask]]:
        top = np.iinfo(np.int32).max if self.vocabulary is None else self.vocabulary
        known: Mask = (self.ids.min(axis=1) >= 0) & (self.ids.max(axis=1) < top)
        yield "topk_ids are in the vocabulary", known
        ordered = np.sort(self.ids, axis=1)
        distinct = (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
        yield "topk_ids are distinct", np.asarray(distinct)
        masses = {who: np.exp(logs) for who, logs in self.logs.items()}
        tails = {who: np.exp(tail) for who, tail in self.tails.items()}
        if "student" in self.logs:
            student = self.logs["student"]
            falling = (student[:, 1:] <= student[:, :-1]).all(axis=1)
            yield "topk_ids stand in the order of the student's probability", np.asarray(falling)
        for who, mass in masses.items():
            whole = mass.sum(axis=1, dtype=np.float32) + tails[who]
            slack = _MASS_SLACK + (_sum(mass, rounding(self.logs[who])) if self.rounded else 0)
            yield f"the {who}'s kept mass and tail sum to 1", np.abs(whole - 1) <= slack
        yield from self._tail_rules()
        yield from self._sampled_rules()
        if "student" in self.logs:
            near = np.abs(self._jsd(masses, tails) - self.jsd) <= self._jsd_slack()
            yield "jsd follows from the stored log-probabilities", near

    def _tail_rules(self) -> Iterator[tuple[str, Mask]]:
        if self.vocabulary is None:
            return
        for who, tail in self.tails.items():
            empty = np.isneginf(tail)
            fine = empty if self.kept == self.vocabulary else ~empty
            yield f"the {who}'s tail is -inf exactly if K = V", fine

    def _sampled_rules(self) -> Iterator[tuple[str, Mask]]:
        """A sampled token among the K has its log-probability there; another has no more."""
        hits = self.ids == self.sampled[:, None]
        found = hits.any(axis=1)
        at = hits.argmax(axis=1)[:, None]
        for who, logs in self.logs.items():
            there = np.take_along_axis(logs, at, axis=1)[:, 0]
            near = np.abs(there - self.logprobs[who]) <= self._log_slack(there)
            yield f"{who}_logprob is that of the sampled token among the K", near | ~found
        if "student" in self.logs:
            least = self.logs["student"][:, -1]
            fine = found | (self.logprobs["student"] <= least + self._log_slack(least))
            yield "a sampled token outside the K is no likelier than those in it", fine

    def _log_slack(self, logs: Floats) -> Floats:
        slack = rounding(logs) if self.rounded else np.zeros_like(logs)
        return np.asarray(slack + np.float32(_LOG_SLACK))

    def _jsd_slack(self) -> Floats:
        """Return ten times what float32 was measured to do to sums of p log p, and rounding."""
        slack = np.float32(1e-5) + np.float32(1e-4) * self.jsd
        if self.rounded:
            slack = slack + jsd_rounding_T(self.logs["student"], self.logs["teacher"])
        return np.asarray(slack, dtype=np.float32)

    def _jsd(self, masses: dict[str, Floats], tails: dict[str, Floats]) -> Floats:
        """Section 5 at alpha = 0.5: (sum of p log p + q log q) / 2 - sum of m log m."""
        p, q = masses["student"], masses["teacher"]
        mixture = (p + q) * np.float32(0.5)
        logs = {who: np.maximum(found, _LOWEST) for who, found in self.logs.items()}
        own = _sum(p, logs["student"]) + _sum(q, logs["teacher"])
        common = _sum(mixture, np.log(np.maximum(mixture, _SMALLEST)))
        if self.kept == self.vocabulary:
            return np.asarray(own / 2 - common)
        tail = {who: np.maximum(logs, np.log(_TAIL_FLOOR)) for who, logs in self.tails.items()}
        own += tails["student"] * tail["student"] + tails["teacher"] * tail["teacher"]
        rest = (tails["student"] + tails["teacher"]) / 2
        return np.asarray(own / 2 - common - rest * np.log(np.maximum(rest, _TAIL_FLOOR)))


def _sum(a: Floats, b: Floats) -> Floats:
    """Return the sum over the K of a b, [R]."""
    found: Floats = np.einsum("rk,rk->r", a, b)
    return found


def _as_set(step: StepTables, table: pa.Table) -> Iterator[Broken]:
    """Check that the K log-probabilities are kept as the recorded settings say."""
    settings = step.manifests["teacher"].origin.settings_of("route")
    for name, found in (
        ("kept_dtype", "float16" if is_rounded(table) else "float32"),
        ("keep_student_logprobs", keeps_student(table)),
    ):
        wanted = settings.get(name, RouteSection.model_fields[name].default)
        if found != wanted:
            yield Broken("teacher", f"route.{name} is {wanted}, not {found}", None, table.num_rows)


def _sampled_ids(step: StepTables, spans: RolloutSpans) -> Ints:
    """Return the sampled token of each row."""
    rollouts = step.tables["rollouts"]
    place = {name: row for row, name in enumerate(rollouts["rollout_id"].to_pylist())}
    rows = pa.array([place[name] for name in spans.names], type=pa.int64())
    flat: Ints = pc.list_flatten(rollouts["response_ids"].take(rows)).to_numpy()
    return flat


def _against_scores(step: StepTables, table: pa.Table, spans: RolloutSpans) -> Iterator[Broken]:
    """Where old log-probabilities are stored, they are those of the same pass."""
    scores = step.tables["scores"]
    place = {name: row for row, name in enumerate(scores["rollout_id"].to_pylist())}
    taught = scores["old_logprobs"].take(pa.array([place[name] for name in spans.names]))
    counts = pc.list_value_length(taught).to_numpy()
    stored = np.repeat(counts > 0, spans.counts)
    old = pc.list_flatten(taught).to_numpy()
    equal = np.ones(table.num_rows, dtype=bool)
    equal[stored] = old == table["student_logprob"].to_numpy()[stored]
    yield from require("teacher", "student_logprob is that of scores", spans, equal)


def weights_rules(step: StepTables) -> Iterator[Broken]:
    """Sections 6, 13 and 15: raw weights, weights and survival, computed again."""
    table = step.tables["weights"]
    beta = step.setting("weights", "weigh", "beta")
    method = step.setting("routes", "route", "method")
    if method != "srpo" and beta != 0:
        yield Broken("weights", f"beta is {beta}; method {method} has w = 1", None, table.num_rows)
    kind = step.setting("weights", "weigh", "survival")
    yield from _survival_as_set(table, kind)
    if not table.num_rows:
        return
    spans = RolloutSpans(table)
    yield from (_credit_rules if method == "rlsd" else _entropy_rules)(step, spans)
    weight = table["weight"].to_numpy()
    yield from require("weights", "weights are finite", spans, within(weight, 0, np.inf))


def _entropy_rules(step: StepTables, spans: RolloutSpans) -> Iterator[Broken]:
    """Section 6: raw = exp(-beta H), weight = raw over its mean in the mini-batch; survival."""
    table, routes = step.tables["weights"], step.tables["routes"]
    beta, kind = (step.setting("weights", "weigh", key) for key in ("beta", "survival"))
    log_survival = np.zeros(table.num_rows)
    if kind != "off" and SURVIVAL in table.column_names:
        log_survival = log_survival_of(step.tables["teacher"])
        found = table[SURVIVAL].to_numpy()
        follows = np.isclose(found, np.exp(log_survival), rtol=1e-6, atol=1e-37)
        yield from require("weights", "survival follows from teacher", spans, follows)
    exponents: Doubles = -beta * table["entropy"].to_numpy().astype(np.float64)
    formula, factor = f"exp(-{beta:g} H)", np.ones(table.num_rows)
    if kind == "weight":
        exponents, formula = exponents + log_survival, f"{formula} S"
    else:
        factor = np.exp(log_survival)
    raw = np.isclose(table["raw_weight"].to_numpy(), np.exp(exponents), rtol=1e-6, atol=1e-37)
    yield from require("weights", f"raw_weight is {formula}", spans, raw)
    places = in_group(spans.column_of(routes, "mini_batch"))
    highest = np.full(places.max() + 1, -np.inf)
    np.maximum.at(highest, places, exponents)
    scaled = np.exp(exponents - highest[places])
    means = np.bincount(places, weights=scaled) / np.bincount(places)
    weight = table["weight"].to_numpy()
    near = np.isclose(weight, factor * scaled / means[places], rtol=1e-5, atol=1e-30)
    times = ", times survival" if kind in ("unnormalised", "hand_over") else ""
    yield from require("weights", f"weight is raw_weight over its mean{times}", spans, near)


def _survival_as_set(table: pa.Table, kind: str) -> Iterator[Broken]:
    """Check that the columns of survival are there exactly where the recorded setting says so."""
    for name, wanted in ((SURVIVAL, kind != "off"), (REWARD_WEIGHT, kind == "hand_over")):
        if (name in table.column_names) != wanted:
            text = f"weigh.survival is {kind}, so there is {'a' if wanted else 'no'} column {name}"
            yield Broken("weights", text, None, table.num_rows)


def _credit_rules(step: StepTables, spans: RolloutSpans) -> Iterator[Broken]:
    """Section 13: raw = exp(sign(A) log(q / s)), weight = 1 - lambda + lambda clip(raw)."""
    table, routes, teacher = (step.tables[n] for n in ("weights", "routes", "teacher"))
    ratio: Doubles = teacher["teacher_logprob"].to_numpy().astype(np.float64)
    ratio = ratio - teacher["student_logprob"].to_numpy()
    sign = np.sign(spans.column_of(routes, "advantage"))
    expected = np.exp(np.minimum(sign * ratio, np.log(_LARGEST)))
    raw = np.isclose(table["raw_weight"].to_numpy(), expected, rtol=1e-6, atol=1e-37)
    yield from require("weights", "raw_weight is exp(sign(A) log(q / s))", spans, raw)
    clip = step.setting("weights", "weigh", "credit_clip")
    credit = spans.column_of(routes, CREDIT_LAMBDA)
    factor = 1 - credit + credit * np.clip(expected, 1 - clip, 1 + clip)
    near = np.isclose(table["weight"].to_numpy(), factor, rtol=1e-6, atol=1e-7)
    yield from require("weights", "weight is the factor of the advantage", spans, near)
