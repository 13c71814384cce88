"""The page of methods side by side: their gradients, and two rollouts under all of them.

It is written by `srpo compare --gradients --out`, as files; the server has no such page, because
its numbers need the policy.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compare.side_by_side import (
    Effect,
    Floats,
    MethodGradient,
    Sample,
    SideBySide,
    parts_of,
)
from pipeline.errors import StoreError
from pipeline.files.durable import make_folder
from pipeline.text import number, percent, printable
from pipeline.viewer.heat_map import Layer, Quantity, colour, css_class
from pipeline.viewer.long_text import long_text
from pipeline.viewer.page import STATIC, Page
from pipeline.viewer.rollout_tokens import in_flow, visible

MOST_TOKENS = 2_000
"""Most tokens of a rollout in the page; the JSON has all."""
MOST_ROLLOUTS = 1_000
"""Most rollouts in the table of shares; the JSON has all."""

EFFECT = Quantity(
    "effect", "What the gradient does", "", "around", "size of the logits' gradient, by its sign"
)
_SCALE = (-16, -12, -8, -4, 0, 4, 8, 12, 16)


def expect_free(folder: Path) -> None:
    """Refuse a folder in which there is something.

    Raises:
        StoreError: there is.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder}: there is something already; choose another --out")


def write_side_by_side(found: SideBySide, folder: Path) -> Path:
    """Write the page and its static files; return the file to open.

    Raises:
        StoreError: the folder is not empty.
    """
    expect_free(folder)
    html = page_of(found)
    make_folder(folder)
    shutil.copytree(STATIC, folder / "static")
    (folder / "index.html").write_text(html, encoding="utf-8")
    return folder / "index.html"


def page_of(found: SideBySide) -> str:
    """Return the page's HTML."""
    shown = [_shown(found, index) for index in found.chosen()]
    return Page("/", exported=True).render(
        "side_by_side.html",
        step=found.step,
        policy_version=found.policy_version,
        rollouts=len(found.samples),
        tokens=sum(len(sample.token_ids) for sample in found.samples),
        warnings=[printable(warning) for warning in found.warnings],
        methods=[_method(found, place) for place in range(len(found.methods))],
        samples=[sample for sample, _ in shown],
        scale=[css_class(EFFECT, level) for level in _SCALE],
        shares=_shares(found),
        left_out=max(0, len(found.samples) - MOST_ROLLOUTS),
        data={
            "methods": [printable(method.label) for method in found.methods],
            "samples": [data for _, data in shown],
        },
    )


def _method(found: SideBySide, place: int) -> dict[str, Any]:
    """Return a method's row of both tables."""
    method = found.methods[place]
    return {
        "label": printable(method.label),
        "run": printable(method.run),
        "tokens": method.tokens,
        "loss": number(method.loss),
        "norm": number(method.norm),
        "cosines": ["-" if c is None else f"{c:.3f}" for c in found.cosines[place]],
        "parts": parts_of(found, method),
    }


def _shown(found: SideBySide, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the template and the script need to show one rollout under all methods."""
    sample = found.samples[index]
    pieces = [in_flow(text) for text in sample.texts[:MOST_TOKENS]]
    effects = [method.effects[index] for method in found.methods]
    signed = [_signed(effect)[:MOST_TOKENS] for effect in effects]
    own = [_layer(values) for values in signed]
    common = _split(_layer(np.concatenate(signed)), len(pieces))
    shares = [
        (method.shares(lambda e: e.loss_T)[index], method.shares(lambda e: e.size_T)[index])
        for method in found.methods
    ]
    rows = [
        {
            "label": printable(method.label),
            "route": effect.route,
            "learns": bool(effect.size_T.any()),
            "loss_share": percent(loss_share),
            "size_share": percent(size_share),
            "raised": int((effect.push_T > 0).sum()),
            "lowered": int((effect.push_T < 0).sum()),
            "strong": number(layer.strong),
            "tokens": [
                (piece, css_class(EFFECT, level))
                for piece, level in zip(pieces, layer.levels, strict=True)
            ],
        }
        for method, effect, (loss_share, size_share), layer in zip(
            found.methods, effects, shares, own, strict=True
        )
    ]
    texts = {
        "rollout_id": sample.rollout_id,
        "outcome": sample.outcome,
        "reward": number(sample.reward),
        "question": long_text(sample.question),
        "left_out": len(sample.texts) - len(pieces),
        "common": number(_layer(np.concatenate(signed)).strong),
        "rows": rows,
    }
    return texts, _data(sample, effects, own, common)


def _data(
    sample: Sample,
    effects: Sequence[Effect],
    own: Sequence[Layer],
    common: Sequence[list[int | None]],
) -> dict[str, Any]:
    return {
        "rollout_id": sample.rollout_id,
        "ids": sample.token_ids[:MOST_TOKENS],
        "pieces": [visible(text) for text in sample.texts[:MOST_TOKENS]],
        "rows": [
            {
                "own": [css_class(EFFECT, level) for level in layer.levels],
                "common": [css_class(EFFECT, level) for level in levels],
                "loss": _brief(effect.loss_T),
                "size": _brief(effect.size_T),
                "push": _brief(effect.push_T),
                "total": float(effect.size_T.sum()),
            }
            for effect, layer, levels in zip(effects, own, common, strict=True)
        ],
    }


def _signed(effect: Effect) -> Floats:
    """Return each token's size, below 0 where it becomes less likely."""
    return np.sign(effect.push_T) * effect.size_T


def _layer(values: Floats) -> Layer:
    return colour(EFFECT, values.tolist(), "")


def _split(layer: Layer, length: int) -> list[list[int | None]]:
    """Return the levels of each method's tokens, of those of all methods one after the other."""
    starts = range(0, len(layer.levels), length) if length else ()
    return [layer.levels[start : start + length] for start in starts]


def _shares(found: SideBySide) -> list[dict[str, Any]]:
    """Return each rollout's part of every method's gradients, for the table of all."""
    parts = [method.shares(lambda e: e.size_T) for method in found.methods]
    return [
        {
            "rollout_id": sample.rollout_id,
            "outcome": sample.outcome,
            "cells": [
                {
                    "route": method.effects[i].route,
                    "share": percent(shares[i]),
                    "sign": _sign(method, i),
                }
                for method, shares in zip(found.methods, parts, strict=True)
            ],
        }
        for i, sample in enumerate(found.samples[:MOST_ROLLOUTS])
    ]


def _sign(method: MethodGradient, index: int) -> str:
    push = float(method.effects[index].push_T.sum())
    return "▲" if push > 0 else "▼" if push < 0 else ""


def _brief(values: Floats) -> list[float]:
    """Round to the four digits that a page shows."""
    return [float(f"{value:.4g}") for value in values[:MOST_TOKENS].tolist()]
