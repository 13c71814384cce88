"""Tests whose process does the work of a pool's workers leave no verifier processes behind."""

import functools
from collections.abc import Iterator

import pytest

from flows.workers import verdict_shards as shards
from pipeline.verification.pool import VerifierPool


@pytest.fixture(autouse=True)
def no_judges_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker's judges end with it; this process goes on, so they end with the test."""
    made: list[VerifierPool] = []
    kept = shards._pool.__wrapped__

    @functools.lru_cache
    def pool(bench: shards.Bench) -> VerifierPool:
        made.append(kept(bench))
        return made[-1]

    monkeypatch.setattr(shards, "_pool", pool)
    yield
    for one in made:
        one.close()
