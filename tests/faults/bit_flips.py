"""Flips single bits of a run: does `srpo check` notice, and do those that read the file?"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.session.new_run import teacher_settings
from pipeline.check.check_run import check_run
from pipeline.errors import SrpoError
from pipeline.policy.snapshots import load_snapshot
from pipeline.run.run import Run
from pipeline.run.step_profiles import read_profile


@dataclass(frozen=True)
class Place:
    """One bit of one file of a run."""

    path: Path
    byte: int
    bit: int


def places(root: Path, number: int, seed: int) -> list[Place]:
    """Choose bits of a run: one of every file at least, the others by the files' sizes."""
    chosen = random.Random(seed)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]
    sizes = [path.stat().st_size for path in files]
    more = chosen.choices(files, sizes, k=max(0, number - len(files)))
    found = chosen.sample([*files, *more], number)
    return [
        Place(path, chosen.randrange(path.stat().st_size), chosen.randrange(8)) for path in found
    ]


@contextmanager
def flipped(place: Place) -> Iterator[None]:
    """Flip a bit for a block."""
    with place.path.open("r+b") as file:
        file.seek(place.byte)
        before = file.read(1)
        file.seek(place.byte)
        file.write(bytes([before[0] ^ 1 << place.bit]))
    try:
        yield
    finally:
        with place.path.open("r+b") as file:
            file.seek(place.byte)
            file.write(before)


def kind(root: Path, path: Path) -> str:
    """Name what kind of file this is."""
    parts = path.relative_to(root).parts
    if len(parts) == 1:
        return parts[0]
    if parts[0] in ("policy", "tokenizer"):
        return f"{parts[0]}/{path.name}"
    return path.name if parts[0] == "steps" else f"evaluations{path.suffix}"


def named_by_check(root: Path, path: Path) -> bool:
    """Tell whether `srpo check` says that this file is damaged."""
    try:
        findings = check_run(Run.open(root)).findings
    except SrpoError as error:
        return str(path) in str(error)
    return str(path) in {finding.path for finding in findings}


def refused_by_readers(root: Path, path: Path) -> bool:
    """Tell whether what training, audits and pages read the file with refuses it, by name."""
    try:
        _use(root, path)
    except SrpoError as error:
        return str(path) in str(error)
    return False


def _use(root: Path, path: Path) -> None:
    run = Run.open(root)
    parts = path.relative_to(root).parts
    if parts[0] == "tokenizer":
        run.tokenizer_path()
    elif parts[0] == "policy":
        load_snapshot(path.parent, run.config.model, teacher_settings(run.config))
    elif parts[0] == "evaluations":
        run.read("evaluations", int(path.stem))
    elif parts[0] == "steps" and path.name == "metrics.json":
        run.metrics(int(parts[1]))
    elif parts[0] == "steps" and path.name == "profile.json":
        read_profile(run, int(parts[1]))
    elif parts[0] == "steps":
        run.read(path.stem, int(parts[1]))
