"""Fuzz the readers of outside input: they may raise our own errors only, and never crash.

    python -m benchmarks.fuzz --run RUN --minutes 10

Good inputs are mutated (bits, bytes, cuts, copies, numbers), from a seed. Mutated records are
sealed again, and so are manifests of mutated tables, so that the reader has to cope and not the
digest. Tables are read in a child process, since a wrong offset can crash it.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from data import science_qa, tool_use
from pipeline.audit.listing import samples, where
from pipeline.audit.rollout import rollout_record
from pipeline.config.load import load_config, preset_names, preset_text
from pipeline.errors import SrpoError
from pipeline.files.durable import digest_of, file_digest, json_text
from pipeline.files.sealed_json import write_sealed
from pipeline.run.run import Run
from pipeline.tables.manifest import Manifest

TARGETS = ("configuration", "set", "dataset", "where", "manifest", "run.json", "table")

Target = Callable[[bytes], object]
_ODD = (b"\x00", b"\xff", b"\xed\xa0\x80", b"9" * 400, b"-1", b"nan", b"[" * 200, b"\n", b'"')
_ODD_VALUES = (None, True, -1, 2**63, 1e308, "", "../../x", "\x1b[2J", [], {}, [[]], {"a": []})
_EXPRESSIONS = (
    "route = 'sdpo' and divergence > 0.2", "reward in (0, 1)", "prompt_id like '%a%'",
    "step between 1 and 2 or not correct", "length(reason) > 3", "cast(reward as integer) = 1",
    "sum(reward) > 1", "(select 1)", "reward / 0 > 1", "regexp_like(reason, '(a+)+$')",
)  # fmt: skip
_ROWS = (
    b'{"idx": 1, "dataset": "d", "prompt": "q", "system": "s", "answer": "A"}\n{"prompt": "q"}\n',
    b'{"prompt": "q", "answer": [{"Action": "a", "Action_Input": {"x": [1, 2.5, null]}}]}\n',
)
_OVERRIDES = (
    b"run.steps=3", b"model.chat_template_kwargs.a=true", b'vllm.urls=["http://h:1"]',
    b"update.learning_rate=1e-5", b"data.task=x.py", b"update.dual_clip=none",
)  # fmt: skip


@dataclass
class Tally:
    """Outcomes of one target's cases; `failures` are inputs (or signals) with their errors."""

    cases: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, target: Target, content: bytes) -> None:
        """Try one input."""
        self.cases += 1
        try:
            target(content)
        except SrpoError as error:
            self.refused += 1
            if "\n" in str(error):
                self.failures.append(f"two lines: {error!r}"[:300])
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}; input {content[:200]!r}"[:500])


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the content with one to eight random changes."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at, length = chance.randrange(len(made) + 1), chance.randint(1, 16)
        kind = chance.randrange(6)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            made[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            del made[at : at + length]
        elif kind == 3:
            made[at:at] = chance.choice(_ODD)
        elif kind == 4:
            made[at:at] = made[chance.randrange(len(made) + 1) :][:length]
        elif chance.random() < 0.2:
            del made[at:]
    return bytes(made)


def altered(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with one part removed or replaced by something odd."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: altered(value[key], chance)}
    return chance.choice(_ODD_VALUES)


class Readers:
    """The targets, over scratch files and an existing run."""

    def __init__(self, run: Path, scratch: Path) -> None:
        self.run, self.scratch = run, scratch
        self.table_root = scratch / "tables"
        shutil.copytree(run, self.table_root)
        self.frame: pl.LazyFrame = samples(Run.open(run)).collect().lazy()
        self.tables = sorted((self.table_root / "steps" / "000000").glob("*.arrow"))
        self.originals = {path: path.read_bytes() for path in self.tables}

    def _file(self, name: str, content: bytes) -> Path:
        path = self.scratch / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def config(self, content: bytes) -> None:
        """A configuration file."""
        load_config(str(self._file("mine.toml", content)))

    def override(self, content: bytes) -> None:
        """A --set."""
        load_config("demo", [content.decode(errors="surrogateescape")])

    def rows(self, content: bytes) -> None:
        """A dataset of either kind."""
        folder = self._file("set/test.json", content).parent
        science_qa.load(str(folder), "test") if len(content) % 2 else tool_use.load(
            str(folder), "test"
        )

    def where(self, content: bytes) -> None:
        """An expression of --where."""
        where(self.frame, content.decode(errors="replace"))

    def manifest(self, content: bytes) -> None:
        """A table's record."""
        Manifest.read(self._file("manifest.json", content))

    def record(self, content: bytes) -> None:
        """A run's record, and what a reader of the run asks for first."""
        self._file("other/run.json", content)
        run = Run.open(self.scratch / "other")
        run.steps_done(), run.steps_of("rollouts"), run.identity

    def table(self, content: bytes, path: Path) -> None:
        """A table whose manifest agrees with these bytes; read in full and in pieces."""
        path.write_bytes(content)
        beside = path.with_suffix(".json")
        whole = json.loads(beside.read_text())
        changed = {"bytes": len(content), "sha256": file_digest(path)}
        record = {k: v for k, v in {**whole, **changed}.items() if k != "digest"}
        write_sealed(beside, record)
        try:
            run = Run.open(self.table_root)
            rollout = "000000-0000-00"
            for read in (
                lambda: run.read(path.stem, 0).to_pylist(),
                lambda: run.read_rollout(path.stem, 0, rollout).to_pylist(),
                lambda: samples(run, [0], ["response_text", "weight_mean"]).collect(),
                lambda: rollout_record(run, rollout),
            ):
                read()
        finally:
            path.write_bytes(self.originals[path])
            beside.write_text(json_text(whole))


def sealed(record: dict[str, Any], chance: random.Random) -> bytes:
    """Return an altered record whose digest is right nevertheless."""
    changed = altered({k: v for k, v in record.items() if k != "digest"}, chance)
    if not isinstance(changed, dict):
        return json.dumps(changed).encode()
    try:
        return json_text({**changed, "digest": digest_of(changed)}).encode()
    except ValueError:
        return json.dumps(changed).encode()


def cases(readers: Readers, chance: random.Random) -> dict[str, Callable[[], tuple[Target, bytes]]]:
    """Return a maker of the next case for each target, by name."""
    configs = [preset_text(name).encode() for name in preset_names()]
    manifests = sorted(readers.run.glob("steps/*/*.json")) + sorted(
        readers.run.glob("eval*/*.json")
    )
    records = {
        path: json.loads(path.read_text()) for path in [readers.run / "run.json", *manifests]
    }

    def of_record(target: Target, paths: Sequence[Path]) -> tuple[Target, bytes]:
        path = chance.choice(paths)
        if chance.random() < 0.3:
            return target, mutated(path.read_bytes(), chance)
        return target, sealed(records[path], chance)

    def of_table() -> tuple[Target, bytes]:
        path = chance.choice(readers.tables)
        content = mutated(readers.originals[path], chance)
        return partial(readers.table, path=path), content

    return {
        "configuration": lambda: (readers.config, mutated(chance.choice(configs), chance)),
        "set": lambda: (readers.override, mutated(chance.choice(_OVERRIDES), chance)),
        "dataset": lambda: (readers.rows, mutated(chance.choice(_ROWS), chance)),
        "where": lambda: (
            readers.where, mutated(chance.choice(_EXPRESSIONS).encode(), chance)
        ),
        "manifest": lambda: of_record(readers.manifest, manifests),
        "run.json": lambda: of_record(readers.record, [readers.run / "run.json"]),
        "table": of_table,
    }  # fmt: skip


def fuzz_one(run: Path, name: str, seconds: float, seed: str) -> None:
    """Fuzz one target in this process; print the tally after every case, as a line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        make = cases(Readers(run, Path(folder)), random.Random(seed))[name]
        tally, end = Tally(), time.monotonic() + seconds
        while time.monotonic() < end:
            tally.run(*make())
            if name == "table" or tally.cases % 50 == 0:
                print(json.dumps([tally.cases, tally.refused, tally.failures[:20]]), flush=True)


def fuzz(run: Path, name: str, seconds: float, seed: str) -> Tally:
    """Fuzz one target in child processes; one that dies or hangs is a failure and is replaced."""
    total, end, child = Tally(), time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        child += 1
        arguments = ["--run", str(run), "--only", name, "--seconds", str(left)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fuzz", *arguments, "--seed", f"{seed}-{child}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=left + 120,
        )
        lines = done.stdout.splitlines()
        counted, refused, failures = json.loads(lines[-1]) if lines else (0, 0, [])
        total.cases, total.refused = total.cases + counted, total.refused + refused
        total.failures += failures
        if done.returncode != 0:
            total.failures.append(f"child {child} ended with {done.returncode} after {counted}")
    return total


def main() -> None:
    """Fuzz for some minutes and print the figures; exit code 1 if there were failures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--run", type=Path, required=True, help="a short run, which is copied")
    parser.add_argument("--only", choices=TARGETS, help="this reader, in this process")
    parser.add_argument("--seconds", type=float, default=10.0, help="with --only")
    asked = parser.parse_args()
    if asked.only is not None:
        fuzz_one(asked.run, asked.only, asked.seconds, asked.seed)
        return
    console = Console()
    table = Table("reader", "cases", "refused", "accepted", "anything else", box=None)
    failures = []
    for name in TARGETS:
        tally = fuzz(asked.run, name, 60 * asked.minutes / len(TARGETS), asked.seed)
        accepted = max(tally.cases - tally.refused - len(tally.failures), 0)
        numbers = (tally.cases, tally.refused, accepted, len(tally.failures))
        table.add_row(name, *(f"{number:,}" for number in numbers))
        failures += [f"{name}: {text}" for text in tally.failures]
    console.print(table)
    for failure in failures[:40]:
        console.print(ascii(failure), markup=False, highlight=False)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
