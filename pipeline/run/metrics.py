"""Numbers about a step or an evaluation, derived from tables and manifests alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.health.leaks import feedback_gold_shares
from pipeline.methods import METHODS, Method
from pipeline.run.pass_at_k import distinct_at_k, ks_up_to, pass_at_k
from pipeline.seeds import derive_seed
from pipeline.survival import log_survival_of, off_path_share
from pipeline.tables.manifest import Manifest
from pipeline.tables.rule_changes import unjudged_left_out
from pipeline.tables.schemas import CREDIT_LAMBDA

Mask = npt.NDArray[np.bool_]
Answers = Sequence[tuple[str, bool]]
"""(prediction, correct) of each answer to one question; "" is no prediction."""

_PER_ANSWER = ("format_ok", "finish_reason", "response_tokens")
_RESAMPLES = 2000
_LEVEL = 0.95
_LONG_RESPONSE = 16
"""Tokens from which on a response that recurs is no coincidence."""


class Interval(NamedTuple):
    """A mean over questions and its bootstrap interval."""

    mean: float
    low: float
    high: float


def step_metrics(
    tables: Mapping[str, pa.Table], manifests: Mapping[str, Manifest], tasks: Sequence[str] = ()
) -> dict[str, Any]:
    """Return one flat record of a training step.

    Args:
        tasks: names of a mixture's tasks, each of which has entries of its own, as in
            `reward_mean/NAME`: null where the step asked nothing of it.
    """
    record: dict[str, Any] = {"step": manifests["updates"].origin.step}
    left_out = unjudged_left_out(manifests["routes"].origin.stage_version)
    judged = _judged(tables["verdicts"], left_out)
    record |= _sample_metrics(tables["rollouts"], tables["verdicts"], judged)
    record |= {"judged": int(judged.sum())} if left_out else {}
    record |= _route_metrics(tables["routes"], manifests["routes"].origin.settings_of("route"))
    record |= _feedback_metrics(tables, manifests["routes"].origin.settings_of("route"))
    record |= _length_metrics(tables["rollouts"], tables["routes"], judged)
    record |= _teacher_metrics(tables["teacher"], tables["weights"])
    if CREDIT_LAMBDA in tables["routes"].column_names:
        weigh = manifests["weights"].origin.settings_of("weigh")
        record |= _credit_metrics(tables["routes"], tables["weights"], weigh["credit_clip"])
    record |= _update_metrics(tables["updates"], manifests["updates"].facts)
    record |= _work_metrics([manifests["scores"].facts, manifests["updates"].facts])
    for table in ("rollouts", "verdicts", "bank", "routes", "weights", "updates"):
        if table in manifests:
            stage = manifests[table].origin.stage
            record[f"seconds_{stage}"] = manifests[table].cost.seconds
    record["seconds"] = sum(v for k, v in record.items() if k.startswith("seconds_"))
    record["tokens"] = int(manifests["rollouts"].cost.tokens)
    return record | _task_metrics(tables, tasks, judged)


def evaluation_metrics(evaluations: pa.Table) -> dict[str, Any]:
    """Return avg@k, pass@k and maj@k with 95% bootstrap intervals over questions, and more.

    `pass_at_1`, `pass_at_2`, `pass_at_4` and so on end with the answers that every question has;
    `distinct_answers` is the number of different predictions among so many. `pass_at_k` is of
    all answers that a question has. An answer that could not be judged counts as wrong
    (section 1) and predicts nothing; `unjudged_share` says how many.
    Every question counts the same, whichever task it is of. Where there are several tasks, each
    has the same numbers of its own questions, as in `accuracy/NAME`.
    """
    record = _answer_metrics(evaluations)
    tasks = pc.unique(evaluations["task"]).to_pylist()
    for task in tasks if len(tasks) > 1 else ():
        own = _answer_metrics(evaluations.filter(pc.equal(evaluations["task"], task)))
        record |= {f"{key}/{task}": value for key, value in own.items()}
    return record


def tasks_of(record: Mapping[str, Any]) -> list[str]:
    """Return the names of the tasks that have entries of their own in an evaluation's record."""
    return [key.partition("/")[2] for key in record if key.startswith("accuracy/")]


def _answer_metrics(evaluations: pa.Table) -> dict[str, Any]:
    groups = list(answers_by(evaluations, "group").values())
    tallies = [(len(group), sum(correct for _, correct in group)) for group in groups]
    fewest = min(n for n, _ in tallies)
    answers = list(zip(*(evaluations[name].to_pylist() for name in _PER_ANSWER), strict=True))
    per_question = {
        "": [float(np.mean([c for _, c in group])) for group in groups],
        "pass_at_k": [float(any(c for _, c in group)) for group in groups],
        **{f"pass_at_{k}": [pass_at_k(n, c, k) for n, c in tallies] for k in ks_up_to(fewest)},
        "maj_at_k": [majority_correct(group) for group in groups],
        "distinct_answers": [distinct_at_k([p for p, _ in group], fewest) for group in groups],
        "format_rate": _means(groups, [float(ok) for ok, _, _ in answers]),
        "truncated_share": _means(groups, [float(end == "length") for _, end, _ in answers]),
        "response_tokens": _means(groups, [float(tokens) for _, _, tokens in answers]),
    }
    record: dict[str, Any] = {}
    intervals = _bootstrap_each(list(per_question.values()))
    for name, interval in zip(per_question, intervals, strict=True):
        record[name or "accuracy"] = interval.mean
        record[f"{name}_low".removeprefix("_")] = interval.low
        record[f"{name}_high".removeprefix("_")] = interval.high
    record["questions"] = len(groups)
    record["rollouts"] = max(map(len, groups), default=0)
    errors = evaluations.num_rows - evaluations["error"].null_count
    record["verifier_errors"] = errors
    record["unjudged_share"] = errors / evaluations.num_rows
    return record


def _means(groups: Sequence[Sequence[object]], values: Sequence[float]) -> list[float]:
    """Return the mean of each question's values; values stand in the order of the groups."""
    ends = np.cumsum([len(group) for group in groups])
    return [float(np.mean(part)) for part in np.split(np.asarray(values), ends[:-1])]


def bootstrap(values: Sequence[float]) -> Interval:
    """Return the mean and its 95% percentile interval over resampled questions (seeded)."""
    return _bootstrap_each([values])[0]


def _bootstrap_each(measures: Sequence[Sequence[float]]) -> list[Interval]:
    """Return the intervals of several measures of the same questions, on the same resamples."""
    questions = len(measures[0])
    generator = np.random.Generator(np.random.Philox(derive_seed(0, "bootstrap", questions)))
    picks = generator.integers(0, questions, size=(_RESAMPLES, questions))
    tail = (1 - _LEVEL) / 2
    found = []
    for values in measures:
        array = np.asarray(values, dtype=np.float64)
        low, high = np.quantile(array[picks].mean(axis=1), [tail, 1 - tail])
        found.append(Interval(float(array.mean()), float(low), float(high)))
    return found


def majority_correct(answers: Answers) -> float:
    """Return 1 if the commonest prediction is right, ties split evenly; no prediction is wrong."""
    counts = Counter(prediction for prediction, _ in answers if prediction)
    if not counts:
        return 0.0
    most = max(counts.values())
    tied = [prediction for prediction, count in counts.items() if count == most]
    right = {prediction for prediction, correct in answers if correct}
    return sum(prediction in right for prediction in tied) / len(tied)


def answers_by(evaluations: pa.Table, key: Literal["group", "prompt_id"]) -> dict[Any, Answers]:
    """Return the answers to each question, by its place in the table or by its stable name."""
    found: dict[Any, list[tuple[str, bool]]] = {}
    for question, prediction, correct, error in zip(
        *(evaluations[name].to_pylist() for name in (key, "prediction", "correct", "error")),
        strict=True,
    ):
        # What could not be judged has no vote: a prediction of its own proves nothing.
        found.setdefault(question, []).append(("" if error is not None else prediction, correct))
    return dict(found)


def _judged(verdicts: pa.Table, left_out: bool) -> Mask:
    """Return which rollouts' verdicts count: all, if those with an error once counted as wrong."""
    if not left_out:
        return np.ones(verdicts.num_rows, dtype=bool)
    return np.asarray(pc.is_null(verdicts["error"]), dtype=bool)


def _sample_metrics(rollouts: pa.Table, verdicts: pa.Table, judged: Mask) -> dict[str, Any]:
    lengths = pc.list_value_length(rollouts["response_ids"]).to_numpy()
    reasons = rollouts["finish_reason"].to_pylist()
    return {
        "rollouts": rollouts.num_rows,
        "reward_mean": _mean(verdicts["reward"].to_numpy()[judged]),
        "correct_share": _mean(verdicts["correct"].to_numpy()[judged]),
        "format_rate": _mean(verdicts["format_ok"].to_numpy()[judged]),
        "verifier_errors": verdicts.num_rows - verdicts["error"].null_count,
        "truncated_share": reasons.count("length") / len(reasons),
        "response_tokens_mean": _mean(lengths),
        "response_tokens_max": int(lengths.max()),
        "duplicate_share": _duplicate_share(rollouts, lengths),
    }


def _task_metrics(
    tables: Mapping[str, pa.Table], tasks: Sequence[str], judged: Mask
) -> dict[str, Any]:
    names = tables["rollouts"]["task"]
    record: dict[str, Any] = {}
    for task in tasks:
        of_task = pc.equal(names, task)
        known = judged[of_task.to_numpy()]
        rollouts = tables["rollouts"].filter(of_task)
        verdicts, routes = tables["verdicts"].filter(of_task), tables["routes"].filter(of_task)
        lengths = pc.list_value_length(rollouts["response_ids"])
        own = {
            "rollouts": rollouts.num_rows,
            "reward_mean": _mean(verdicts["reward"].to_numpy()[known]),
            "correct_share": _mean(verdicts["correct"].to_numpy()[known]),
            "format_rate": _mean(verdicts["format_ok"].to_numpy()[known]),
            "verifier_errors": verdicts.num_rows - verdicts["error"].null_count,
            "truncated_share": _mean(pc.equal(rollouts["finish_reason"], "length").to_numpy()),
            "response_tokens_mean": _mean(lengths.to_numpy()),
            "share_sdpo": _mean(pc.equal(routes["route"], "sdpo").to_numpy()),
            "teacher_available": _mean(routes["teacher_available"].to_numpy()),
        }
        record |= {f"{key}/{task}": value for key, value in own.items()}
    return record


def _duplicate_share(rollouts: pa.Table, lengths: npt.NDArray[np.int64]) -> float:
    """Return the share of long responses that repeat the text given to another question.

    Within a group equal answers are natural, and so are equal short ones; across questions a long
    text that recurs is a policy that no longer reads its prompt.
    """
    texts, groups = rollouts["response_text"].to_pylist(), rollouts["group"].to_pylist()
    long = [bool(n >= _LONG_RESPONSE) for n in lengths]
    answered: dict[str, set[int]] = {}
    for text, group, counts in zip(texts, groups, long, strict=True):
        if counts:
            answered.setdefault(text, set()).add(group)
    repeated = sum(
        counts and len(answered[text]) > 1 for text, counts in zip(texts, long, strict=True)
    )
    return repeated / len(texts)


def _route_metrics(routes: pa.Table, settings: Mapping[str, Any]) -> dict[str, Any]:
    names = routes["route"].to_pylist()
    shares = {f"share_{r}": names.count(r) / len(names) for r in ("grpo", "sdpo", "mix", "none")}
    available = _mean(routes["teacher_available"].to_numpy())
    if settings["sources"] != ["sibling"] or settings["feedback_alone"]:
        found = routes["teacher_source"].to_pylist()
        sources = [*settings["sources"], *(["feedback"] if settings["feedback_alone"] else [])]
        shares |= {f"source_{name}": found.count(name) / len(found) for name in sources}
    return {
        **shares,
        "teacher_available": available,
        "distils": _asks(routes, settings["method"]),
        "silent_questions": _silent_questions(routes),
    }


def _silent_questions(routes: pa.Table) -> float:
    """Return the share of questions of which no rollout has a gradient."""
    heard: dict[int, bool] = {}
    columns = ("group", "route", "advantage", "teacher_available")
    for group, route, advantage, taught in zip(
        *(routes[name].to_pylist() for name in columns), strict=True
    ):
        by_reward = route in ("grpo", "mix") and advantage != 0
        by_teacher = route in ("sdpo", "mix") and taught
        heard[group] = heard.get(group, False) or by_reward or by_teacher
    return 1 - sum(heard.values()) / len(heard)


def _asks(routes: pa.Table, method: Method) -> bool:
    """Tell whether the method has a teacher, and still asks it."""
    if METHODS[method].distributes:
        return bool(pc.max(routes[CREDIT_LAMBDA]).as_py() > 0)
    return METHODS[method].has_teacher


def _feedback_metrics(
    tables: Mapping[str, pa.Table], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how much of the gold answers teachers are told; nothing where feedback is not used."""
    if not any(settings.get(name) for name in ("feedback", "feedback_alone")):
        return {}
    shares = feedback_gold_shares(tables)
    return {"feedback_gold_share": _mean(shares[~np.isnan(shares)])}


def _length_metrics(rollouts: pa.Table, routes: pa.Table, judged: Mask) -> dict[str, Any]:
    """Return mean lengths of responses that demonstrate, of all others, of right and wrong.

    Those that could not be judged are neither right nor wrong.
    """
    ids = routes["rollout_id"].to_pylist()
    lengths = pc.list_value_length(rollouts["response_ids"]).to_numpy()
    correct = np.asarray(routes["correct"].to_pylist(), dtype=bool)
    teachers = set(routes["teacher_rollout_id"].drop_null().to_pylist())
    demonstrating = np.asarray([name in teachers for name in ids], dtype=bool)
    return {
        "demonstrations": len(teachers),
        "demonstration_tokens_mean": _mean(lengths[demonstrating]),
        "other_tokens_mean": _mean(lengths[~demonstrating]),
        "correct_tokens_mean": _mean(lengths[correct]),
        "wrong_tokens_mean": _mean(lengths[~correct & judged]),
    }


def _teacher_metrics(teacher: pa.Table, weights: pa.Table) -> dict[str, Any]:
    jsd = teacher["jsd"].to_numpy()
    weight = weights["weight"].to_numpy()
    return {
        "taught_tokens": teacher.num_rows,
        "teacher_entropy_mean": _mean(teacher["entropy"].to_numpy()),
        "jsd_mean": _mean(jsd),
        **weight_metrics(weights),
        "off_path_share": off_path_share(weight, jsd, log_survival_of(teacher)),
    }


def weight_metrics(weights: pa.Table) -> dict[str, float | None]:
    """Return spread and maximum of a step's token weights, and how many tokens are really heard.

    That is (sum of w)^2 / sum of w^2: all of them where the weights are equal (section 15).
    """
    weight = weights["weight"].to_numpy()
    if not len(weight):
        return dict.fromkeys(("weight_std", "weight_max", "effective_tokens"))
    wide = weight.astype(np.float64)
    return {
        "weight_std": float(weight.std()),
        "weight_max": float(weight.max()),
        "effective_tokens": float(wide.sum() ** 2 / (wide @ wide)),
    }


def _credit_metrics(routes: pa.Table, weights: pa.Table, clip: float) -> dict[str, Any]:
    """Return how far a teacher changes advantages (section 13); None where it was not asked."""
    raw, factor = (weights[n].to_numpy().astype(np.float64) for n in ("raw_weight", "weight"))
    return {
        "credit_lambda": pc.max(routes[CREDIT_LAMBDA]).as_py(),
        "credit_change_mean": _mean(np.abs(factor - 1)),
        "credit_clipped_share": _mean((raw < 1 - clip) | (raw > 1 + clip)),
    }


def _update_metrics(updates: pa.Table, facts: Mapping[str, Any]) -> dict[str, Any]:
    frame = pl.DataFrame({name: updates[name].to_numpy() for name in ("tokens", "computed")})
    gaps = [gap for gap in updates["max_logprob_gap"].to_pylist() if gap is not None]
    clipped = [c for c in updates["clipped_fraction"].to_pylist() if c is not None]
    own = updates.filter(pc.is_valid(updates["max_logprob_gap"]))
    return {
        "loss": _mean(facts["loss"]),
        "grad_norm": _mean(facts["grad_norm"]),
        "learning_rate": facts["learning_rate"],
        "updates": len(facts["loss"]),
        "routed_tokens": sum(facts["tokens"]),
        "computed_tokens": int(frame.filter("computed")["tokens"].sum()),
        "logprob_gap_max": max(gaps, default=None),
        "logprob_gap_mean": _mean(gaps),
        "logprob_gap_token_mean": _token_mean(own, "mean_logprob_gap"),
        "engine_kl": _token_mean(own, "engine_kl"),
        "tis_cut_share": _token_mean(own, "tis_cut_fraction"),
        "clipped_fraction": _mean(clipped),
    }


def _work_metrics(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the tokens that passed through models, and those that plain batches would have cost.

    Steps made before they were counted have neither.
    """
    if not all("tokens_naive" in facts for facts in stages):
        return {}
    computed = sum(facts["tokens_computed"] for facts in stages)
    naive = sum(facts["tokens_naive"] for facts in stages)
    share = computed / naive if naive else None
    return {"tokens_computed": computed, "tokens_naive": naive, "work_share": share}


def _token_mean(updates: pa.Table, name: str) -> float | None:
    """Return the mean over tokens of a column of means over each rollout's tokens."""
    tokens = updates["tokens"].to_numpy().astype(np.float64)
    values = updates[name].to_numpy().astype(np.float64)
    return float(values @ tokens / tokens.sum()) if tokens.sum() else None


def _mean(values: npt.ArrayLike | pl.Series) -> float | None:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else None
