"""Which tables and snapshots of a run may be removed, what keeps the others, what is lost then.

A teacher table is needed for three things: replaying `update`, to resume or to rebuild a state;
forks that begin at it or after it; audits of tokens. What resuming needs never goes: the newest
snapshot, and the tables since. What forks need stays while the forks are there.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError, StoreError
from pipeline.files.durable import (
    remove_file,
    remove_folder,
    remove_leftovers,
)
from pipeline.housekeeping.run_listing import find_runs
from pipeline.run.removal import PRUNABLE, Removal, removal
from pipeline.run.run import Run
from pipeline.run.step_layout import tables_before
from pipeline.run.step_records import Records
from pipeline.text import command

_REPLAYED = ("rollouts", "routes", "scores", "teacher", "weights")
"""What `update` reads."""


class Piece(NamedTuple):
    """A table of a step."""

    table: str
    step: int


@dataclass(frozen=True)
class Claim:
    """What a fork needs of a run: these tables, and the snapshot that its start is rebuilt from."""

    fork: Run
    pieces: frozenset[Piece]
    snapshot: int | None


@dataclass(frozen=True)
class PruningPlan:
    """What pruning would remove.

    Attributes:
        pieces: tables, with their bytes.
        snapshots: by number of steps done, with their bytes.
        claims: what forks need of the run.
        claimed: what would be removed as well if no fork needed it.
    """

    run: Run
    pieces: dict[Piece, int]
    snapshots: dict[int, int]
    claims: tuple[Claim, ...]
    claimed: frozenset[Piece]

    @property
    def bytes(self) -> int:
        """Return how many bytes that frees."""
        return sum(self.pieces.values()) + sum(self.snapshots.values())

    def lost_states(self) -> list[int]:
        """Return the states that could no longer be rebuilt."""
        before = _rebuildable(self.run, set(self.run.snapshots()), set())
        kept = set(self.run.snapshots()) - self.snapshots.keys()
        return sorted(before - _rebuildable(self.run, kept, set(self.pieces)))

    def lost_steps(self, table: str) -> list[int]:
        """Return the steps that lose a table."""
        return sorted(piece.step for piece in self.pieces if piece.table == table)


def plan_pruning(
    run: Run,
    tables: Sequence[str] = ("teacher",),
    before: int | None = None,
    keep_last: int | None = None,
    snapshots: bool = False,
) -> PruningPlan:
    """Return what may be removed from a run; nothing is changed.

    Args:
        before: only tables of steps before this one.
        keep_last: the newest steps whose tables stay.
        snapshots: snapshots as well, but the start, the best, the newest and those of forks.

    Raises:
        ConfigError: a table that can't be made anew.
        StoreError: a run beside this one can't be read, so nobody knows what it needs.
    """
    for name in tables:
        if name not in PRUNABLE:
            raise ConfigError(
                f"table {name} never goes: only {' and '.join(PRUNABLE)} can be made anew from "
                "those that stay"
            )
    done, covered = run.steps_done(), max(run.snapshots(), default=0)
    end = min(covered, done - (keep_last or 0), done if before is None else before)
    claims = tuple(claims_on(run))
    claimed = frozenset().union(*(claim.pieces for claim in claims))
    found = {
        Piece(table, step)
        for table in tables
        for step in run.steps_of(table)
        if step < end and run.owner(table, step) is run
    }
    free = sorted(found - claimed, key=lambda piece: (piece.step, piece.table))
    going = _snapshots_beyond(run, Records(run), 1, claims) if snapshots else []
    return PruningPlan(
        run=run,
        pieces={p: run.table_path(p.table, p.step).stat().st_size for p in free},
        snapshots={n: _size(run.own_snapshot_path(n)) for n in going},
        claims=claims,
        claimed=frozenset(found & claimed),
    )


def expect_sound_start(run: Run) -> None:
    """Refuse to go on if the newest snapshot, from which the run would resume, is not whole."""
    newest = max(run.snapshots(), default=0)
    try:
        run.expect_snapshot(newest)
    except StoreError:
        raise StoreError(
            f"{run.snapshot_path(newest)}: damaged, and it is what the run resumes from; nothing "
            f"was removed; {command('check', run.root)} says more"
        ) from None


def pruned_tables(run: Run) -> dict[Piece, Removal]:
    """Return the tables of a run's own folder that were removed on purpose, in order of flow."""
    found = {}
    for path in sorted(run.root.glob("steps/*/*.pruned.json")):
        table = path.name.removesuffix(".pruned.json")
        record = removal(path.with_name(f"{table}.arrow"))
        if record is not None and table in PRUNABLE and path.parent.name.isdecimal():
            found[Piece(table, int(path.parent.name))] = record
    return found


def remove(run: Run, piece: Piece, reason: str, archive: Path | None = None) -> None:
    """Remove a table: first its record is on the disk, then the table goes."""
    path, manifest = run.table_path(piece.table, piece.step), run.manifest(*piece)
    Removal(
        table=piece.table,
        step=piece.step,
        sha256=manifest.sha256,
        bytes=manifest.bytes,
        removed=datetime.now(UTC).isoformat(timespec="seconds"),
        reason=reason,
        archive=None if archive is None else str(archive.resolve()),
    ).write(path)
    remove_file(path)


def remove_snapshots(run: Run, states: Iterable[int]) -> None:
    """Remove snapshots, and what is left of those whose removal was cut short."""
    remove_leftovers(run.root / "policy")
    for steps_done in states:
        remove_folder(run.own_snapshot_path(steps_done))


def prune_on_schedule(run: Run) -> None:
    """Remove the teacher tables that `run.keep_teacher_tables` gives up, a snapshot taken."""
    keep = run.config.run.keep_teacher_tables
    if keep is None:
        return
    for piece in plan_pruning(run, keep_last=keep).pieces:
        remove(run, piece, f"run.keep_teacher_tables = {keep}")


def snapshots_in_excess(run: Run, records: Records) -> list[int]:
    """Return the snapshots that a training drops: those beyond `run.keep_snapshots`.

    Forks can have theirs rebuilt while all tables are there; once some are gone, those that forks
    start from stay.

    Raises:
        StoreError: a run beside this one can't be read, so nobody knows what it needs.
    """
    excess = _snapshots_beyond(run, records, run.config.run.keep_snapshots, ())
    steps = range(run.steps_done())
    if not excess or all(run.has(table, step) for table in PRUNABLE for step in steps):
        return excess
    needed = {claim.snapshot for claim in claims_on(run)}
    return [n for n in excess if n not in needed]


def claims_on(run: Run) -> Iterator[Claim]:
    """Yield what each fork of a run, and each fork of one, needs of it."""
    for fork in forks_of(run):
        assert fork.fork is not None
        start, end = fork.fork.start, fork.fork.end
        base = max((s for s in fork.snapshots() if s <= start), default=0)
        wanted = {Piece(table, step) for table in _REPLAYED for step in range(base, start)}
        upstream = tables_before(fork.fork.stage)
        wanted |= {Piece(table, step) for table in upstream for step in range(start, end)}
        own = _is_same_run(fork.snapshot_owner(base), run)
        pieces = frozenset(p for p in wanted if _is_same_run(fork.owner(p.table, p.step), run))
        yield Claim(fork, pieces, base if own else None)


def forks_of(run: Run) -> list[Run]:
    """Return the runs that descend from a run, of those beside it, its ancestors and in it.

    Raises:
        StoreError: a fork can't be read; whether it needs this run is then unknown.
    """
    places = {ancestor.root.resolve().parent for ancestor in [run, *_ancestors(run)]}
    inner = [p for p in run.root.iterdir() if p.is_dir()]
    roots = {r.resolve() for place in [*places, *inner] for r in find_runs(place)}
    found = []
    for root in sorted(roots - {run.root.resolve()}):
        try:
            other = Run.open(root)
        except StoreError as error:
            if _may_be_fork(root, run):
                raise StoreError(
                    f"{root} may be a fork of {run.root} and can't be read, so what it needs is "
                    f"unknown: mend it, or move it away ({error})"
                ) from None
            continue
        if any(_is_same_run(ancestor, run) for ancestor in _ancestors(other)):
            found.append(other)
    return found


def _may_be_fork(root: Path, run: Run) -> bool:
    try:
        fork = json.loads((root / "run.json").read_text(encoding="utf-8")).get("fork")
        if fork is None:
            return False
        parent = Path(os.path.normpath(root / fork["parent"]))
    except (ValueError, AttributeError, KeyError, TypeError):
        return True
    return parent == run.root.resolve() or not (parent / "run.json").exists()


def _ancestors(run: Run) -> list[Run]:
    return [] if run.parent is None else [run.parent, *_ancestors(run.parent)]


def _is_same_run(one: Run, other: Run) -> bool:
    return one.root.resolve() == other.root.resolve()


def _rebuildable(run: Run, snapshots: set[int], going: set[Piece]) -> set[int]:
    """Return the states that are kept, or follow from one that is by the tables that are left."""
    found: set[int] = set()
    for state in range(run.steps_done() + 1):
        replay = state - 1 in found and all(
            run.has(table, state - 1) and Piece(table, state - 1) not in going
            for table in _REPLAYED
        )
        if state in snapshots or replay:
            found.add(state)
    return found


def _snapshots_beyond(
    run: Run, records: Records, newest: int, claims: Sequence[Claim]
) -> list[int]:
    """Return the snapshots that are neither the start, the best, one of the newest nor a fork's."""
    own = run.own_snapshots()
    best = records.best(set(own))
    stay = {0, best, *own[-newest:], *(claim.snapshot for claim in claims)}
    return [n for n in own if n not in stay]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
