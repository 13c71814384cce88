"""Evidence for an alarm: which rollouts to look at, and one command that shows them."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.health import Finding

LARGEST = 5
Tables = Mapping[str, pa.Table]
Chooser = Callable[[Tables], list[str]]


def alarm_of(finding: Finding, tables: Tables, run: str) -> dict[str, Any]:
    """Return the alarm as the step's record keeps it.

    Args:
        tables: those of the finding's step, and the newest `evaluations` there are.
        run: folder of the run, for the command.
    """
    choose, condition = _EVIDENCE[finding.rule.evidence]
    evidence = choose(tables)[:LARGEST]
    if condition:
        command = f'srpo audit {run} --step {finding.step} --where "{condition}"'
    elif evidence:
        command = f"srpo audit {run} --rollout {evidence[0]}"
    else:
        command = f"srpo view {run}"
    return {
        "rule": finding.rule.name,
        "step": finding.step,
        "message": finding.message,
        "evidence": evidence,
        "command": command,
        "severe": finding.rule.severe,
    }


def _ids(table: pa.Table, mask: Any) -> list[str]:
    return list(table.filter(mask)["rollout_id"].to_pylist())


def _largest(table: pa.Table, values: Any) -> list[str]:
    """Return the rollouts with the largest values; those without one are left out."""
    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(-np.nan_to_num(numbers, nan=-np.inf), kind="stable")
    ids = table["rollout_id"].to_pylist()
    return [ids[i] for i in order[:LARGEST] if np.isfinite(numbers[i])]


def _lengths(tables: Tables) -> Any:
    return pc.list_value_length(tables["rollouts"]["response_ids"]).to_numpy()


def _format(tables: Tables) -> list[str]:
    return _ids(tables["verdicts"], pc.invert(tables["verdicts"]["format_ok"]))


def _evaluated_format(tables: Tables) -> list[str]:
    found = tables.get("evaluations")
    return [] if found is None else _ids(found, pc.invert(found["format_ok"]))


def _evaluated_wrong(tables: Tables) -> list[str]:
    found = tables.get("evaluations")
    return [] if found is None else _ids(found, pc.invert(found["correct"]))


def _longest(tables: Tables) -> list[str]:
    return _largest(tables["rollouts"], _lengths(tables))


def _shortest(tables: Tables) -> list[str]:
    return _largest(tables["rollouts"], -_lengths(tables))


def _truncated(tables: Tables) -> list[str]:
    return _ids(tables["rollouts"], pc.equal(tables["rollouts"]["finish_reason"], "length"))


def _surest(tables: Tables) -> list[str]:
    """Return the taught rollouts whose teacher is surest."""
    entropy = tables["teacher"]["entropy"].to_numpy()
    index = pc.run_end_encode(tables["teacher"]["rollout_id"].combine_chunks())
    names, ends = index.values.to_pylist(), index.run_ends.to_numpy()
    starts = np.r_[0, ends[:-1]].astype(int)
    means = {n: entropy[a:b].mean() for n, a, b in zip(names, starts, ends, strict=True)}
    return sorted(names, key=lambda name: (means[name], name))


def _wrong(tables: Tables) -> list[str]:
    return _ids(tables["verdicts"], pc.invert(tables["verdicts"]["correct"]))


def _demonstrations(tables: Tables) -> list[str]:
    """Return the shortest responses that demonstrate."""
    teachers = tables["routes"]["teacher_rollout_id"].drop_null().unique()
    lengths = _lengths(tables).astype(np.float64)
    among = pc.is_in(tables["rollouts"]["rollout_id"], teachers).to_numpy(zero_copy_only=False)
    return _largest(tables["rollouts"], np.where(among, -lengths, np.nan))


def _duplicates(tables: Tables) -> list[str]:
    """Return rollouts whose text is the commonest of the step."""
    texts = tables["rollouts"]["response_text"].to_pylist()
    commonest = Counter(texts).most_common(1)[0][0]
    return _ids(tables["rollouts"], pa.array([text == commonest for text in texts]))


def _loss(tables: Tables) -> list[str]:
    return _largest(tables["updates"], np.abs(tables["updates"]["loss_sum"].to_numpy()))


def _gap(tables: Tables) -> list[str]:
    gaps = tables["updates"]["max_logprob_gap"].to_pylist()
    return _largest(tables["updates"], [np.nan if gap is None else gap for gap in gaps])


def _failed(tables: Tables) -> list[str]:
    return _ids(tables["verdicts"], pc.is_valid(tables["verdicts"]["error"]))


_EVIDENCE: dict[str, tuple[Chooser, str]] = {
    "format": (_format, "not format_ok"),
    "evaluated_format": (_evaluated_format, ""),
    "evaluated_wrong": (_evaluated_wrong, ""),
    "longest": (_longest, ""),
    "shortest": (_shortest, ""),
    "truncated": (_truncated, "finish_reason = 'length'"),
    "surest": (_surest, ""),
    "wrong": (_wrong, "not correct and not teacher_available"),
    "demonstrations": (_demonstrations, ""),
    "duplicates": (_duplicates, ""),
    "largest_loss": (_loss, ""),
    "largest_gap": (_gap, "max_logprob_gap > 0.5"),
    "verifier_errors": (_failed, "error is not null"),
}
"""By name: how rollouts are chosen, and the condition that lists all of them."""
