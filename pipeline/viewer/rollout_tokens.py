"""A rollout's tokens for its page: their colours, and both distributions at each position."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.rollout import RolloutRecord, TokenRecord, topk
from pipeline.audit.stored_logprobs import keeps_student, kept_TK
from pipeline.audit.token_texts import TokenTexts
from pipeline.run.run import Run
from pipeline.tables.schemas import CREDIT_LAMBDA
from pipeline.text import printable
from pipeline.viewer.heat_map import (
    QUANTITIES,
    Layer,
    Quantity,
    colour,
    css_class,
    first_shown,
)

MOST_TOKENS = 10_000
"""Most tokens in the map of one page; the response as text is always complete."""
MOST_PAIRS = 20_000
"""A page holds all K of every token up to this many pairs of log-probabilities."""
TOP = 5
"""Beyond that it holds the student's and the teacher's top 5 of each token."""

_VALUES = (
    "sampled_logprob", "old_logprob", "student_logprob", "teacher_logprob", "student_entropy",
    "teacher_entropy", "raw_weight", "weight", "credit", "survival", "reward_weight", "jsd", "loss",
    "share",
)  # fmt: skip
Top = tuple[int, float | None, float]
"""A kept token: its id, log s (None if not kept) and log q."""
_WHITESPACE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


def token_page(run: Run, record: RolloutRecord) -> dict[str, Any]:
    """Return what the template and the script need to show the tokens of a rollout."""
    tokens = record.tokens[:MOST_TOKENS]
    unused = "weight" if CREDIT_LAMBDA in (record.route or {}) else "credit"
    layers = [_layer(one, record, tokens) for one in QUANTITIES if one.key != unused]
    shown = first_shown(layers)
    first = next(one for one in layers if one.quantity.key == shown)
    kept, held, tops = _tops(run, record, len(tokens))
    ids = {token.id for token in tokens} | {entry[0] for top in tops for entry in top}
    return {
        "shown": shown,
        "layers": layers,
        "tokens": [
            (in_flow(token.text), css_class(first.quantity, level))
            for token, level in zip(tokens, first.levels, strict=True)
        ],
        "left_out": len(record.tokens) - len(tokens),
        "held": held,
        "kept": kept,
        "data": {
            "shown": shown,
            "route": record.route and record.route["route"],
            "layers": [one.to_dict() for one in layers],
            "ids": [token.id for token in tokens],
            "values": {name: _column(tokens, name) for name in _VALUES},
            "missing": record.not_recorded,
            "pieces": pieces(run, ids),
            "kept": kept,
            "held": held,
            "tops": tops,
            "tails": _tails(run, record, len(tokens)),
        },
    }


def all_kept(run: Run, rollout_id: str, position: int) -> dict[str, Any]:
    """Return all K ids at one position, in the form that the page's script reads.

    Raises:
        ConfigError: nothing is recorded there.
    """
    row = topk(run, rollout_id, position)
    student = row["student_logprobs"] or [None] * len(row["topk_ids"])
    columns = row["topk_ids"], student, row["teacher_logprobs"]
    return {
        "top": [[i, _known(s), _brief(q)] for i, s, q in zip(*columns, strict=True)],
        "pieces": {i: visible(text) for i, text in zip(row["topk_ids"], row["texts"], strict=True)},
    }


def in_flow(text: str) -> str:
    """Return a token's text as part of the response: line ends are marked and kept."""
    return printable(text, newlines=True).replace("\n", "↵\n") or "∅"


def visible(text: str) -> str:
    """Return a token's text on its own, with its white space made visible."""
    return printable(text.translate(_WHITESPACE)) or "∅"


def pieces(run: Run, ids: Iterable[int]) -> dict[int, str]:
    """Return the visible text of each token id."""
    texts = TokenTexts(run.tokenizer_path())
    return {token: visible(texts(token)) for token in sorted(ids)}


def _layer(quantity: Quantity, record: RolloutRecord, tokens: Sequence[TokenRecord]) -> Layer:
    missing = record.not_recorded.get(quantity.key, "")
    if quantity.key == "advantage":
        value: Any = None if record.route is None else record.route["advantage"]
        own = [value if one.credit is None else value * one.credit for one in tokens]
        return colour(quantity, own, "no routes, so no advantage", least_end=1.0)
    values = [getattr(token, quantity.key) for token in tokens]
    if quantity.key == "student_logprob" and all(value is None for value in values):
        values = [token.sampled_logprob for token in tokens]
    return colour(quantity, values, missing or "the step has no updates yet")


def _tops(run: Run, record: RolloutRecord, tokens: int) -> tuple[int, str, list[list[Top]]]:
    """Return K, how much of it is held (all, top or none), and (id, log s, log q) per token."""
    if record.not_recorded.get("teacher_top") or record.route is None:
        return 0, "none", []
    rows = run.read_rollout("teacher", record.step, record.rollout_id).slice(0, tokens)
    ids_TK, teacher_TK = kept_TK(rows, "topk_ids"), kept_TK(rows, "teacher_logprobs")
    kept = ids_TK.shape[1]
    student_TK = kept_TK(rows, "student_logprobs") if keeps_student(rows) else None
    everything = kept * rows.num_rows <= MOST_PAIRS or kept <= TOP
    known = [logs_TK for logs_TK in (student_TK, teacher_TK) if logs_TK is not None]
    chosen = [range(kept)] * len(ids_TK) if everything else _best(known)
    students = [[None] * kept] * len(ids_TK) if student_TK is None else student_TK
    tops = [
        [(int(ids[k]), _known(s[k]), _brief(q[k])) for k in picks]
        for picks, ids, s, q in zip(chosen, ids_TK, students, teacher_TK, strict=True)
    ]
    return kept, "all" if everything else "top", tops


def _best(logprobs: Sequence[npt.NDArray[np.floating]]) -> list[list[int]]:
    """Return, per position, the columns of the tokens likeliest under either distribution."""
    columns = [np.argpartition(-l_TK, TOP, axis=1)[:, :TOP] for l_TK in logprobs]
    return [sorted(set(row)) for row in np.concatenate(columns, axis=1).tolist()]


def _tails(run: Run, record: RolloutRecord, tokens: int) -> Mapping[str, list[float | None]]:
    if record.not_recorded.get("teacher_top") or record.route is None:
        return {}
    rows = run.read_rollout("teacher", record.step, record.rollout_id).slice(0, tokens)
    names = {"student": "student_tail", "teacher": "teacher_tail"}
    return {who: [_brief(v) for v in rows[name].to_pylist()] for who, name in names.items()}


def _column(tokens: Sequence[TokenRecord], name: str) -> list[float | None] | None:
    values = [getattr(token, name) for token in tokens]
    if all(value is None for value in values):
        return None
    return [_known(value) for value in values]


def _known(value: float | None) -> float | None:
    return None if value is None else _brief(value)


def _brief(value: float) -> float:
    """Round to the four digits that a page shows."""
    return float(f"{value:.4g}")
