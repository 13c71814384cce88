"""Memory and time of opening a policy and of keeping a snapshot, by number of ranks.

    python -m benchmarks.ranks_memory [--quick] [--ranks 1 2 4]

A random policy of 60M parameters with its EMA teacher and AdamW's state. Memory is the growth of
a rank's private memory (RssAnon, sampled every 2 ms) to its peak; freed memory goes back to the
system at once (a run keeps it), and pages of files that are read don't count. Each number of ranks
opens the same model folder, writes a snapshot, whose bytes must equal those of the others, and
opens that. The largest rank counts. Linux only.
"""

import argparse
import ctypes
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.fixture import write_fixture
from benchmarks.vocabulary_memory import make_state
from pipeline.config.sections import ModelSection
from pipeline.distributed import ranks
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import load_snapshot, open_policy, save_snapshot

NETWORK = {
    "vocab_size": 32_768,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 11,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
QUICK = {**NETWORK, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
LIVE = TeacherSettings(kind="live", rate=0.0, mix=0.0)
TEACHER = TeacherSettings(kind="ema", rate=0.05, mix=0.05)
SECTION = ModelSection(path="x", device="cpu")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GIVEN_BACK_FROM = 1 << 16
_LOOK_SECONDS = 0.002


class Watch:
    """Samples this process's private memory until it is told to stop."""

    def __init__(self) -> None:
        self._start, self._peak = _own_mb(), 0.0
        self._begun = time.perf_counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(_LOOK_SECONDS):
            self._peak = max(self._peak, _own_mb())

    def end(self) -> tuple[float, float]:
        """Return the growth at its peak, MB, and the seconds that passed."""
        self._done.set()
        self._thread.join()
        return max(self._peak, _own_mb()) - self._start, time.perf_counter() - self._begun


_watches: list[Watch] = []


def _own_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def begin(_: Any) -> None:
    """Start sampling memory, on every rank."""
    _watches.append(Watch())


def end(_: Any) -> tuple[float, float]:
    """Stop sampling memory, on every rank."""
    return _watches.pop().end()


def allocate_state(policy: Policy) -> None:
    """Make AdamW allocate its state, on every rank."""
    make_state(policy.optimizer)


def work(folder: Path, again: bool) -> dict[str, tuple[float, float]]:
    """Open and write, or open again, as rank 0; return the largest rank's figures for each."""
    found: dict[str, tuple[float, float]] = {}

    @contextmanager
    def measured(name: str) -> Iterator[None]:
        ranks.together(begin, None)
        yield
        parts = ranks.together(end, None)
        found[name] = (max(mb for mb, _ in parts), max(seconds for _, seconds in parts))

    snapshot = folder / f"snapshot-{ranks.size()}"
    if again:
        with measured("opening a snapshot"):
            load_snapshot(snapshot, SECTION, TEACHER)
        return found
    with measured("opening a model folder"):
        policy = open_policy(str(folder / "model"), SECTION, TEACHER)
    ranks.together(allocate_state, policy)
    with measured("writing a snapshot"):
        save_snapshot(policy, snapshot, 1)
    return found


def child(folder: Path, again: bool) -> None:
    """Be one of the ranks."""
    torch.set_num_threads(1)
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        ctypes.CDLL(None).mallopt(option, _GIVEN_BACK_FROM)
    with ranks.joined():
        if ranks.rank():
            ranks.follow()
            return
        (folder / "found.json").write_text(json.dumps(work(folder, again)))


def launch(folder: Path, count: int) -> dict[str, tuple[float, float]]:
    """Measure with `count` ranks; a snapshot is opened in fresh processes."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="memory",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(str(folder)),
    )
    found: dict[str, tuple[float, float]] = {}
    for options in ([], ["--again"]):
        command = ("-m", "benchmarks.ranks_memory", "--child", str(folder), *options)
        elastic_launch(config, sys.executable)(*command)
        found |= json.loads((folder / "found.json").read_text())
    return found


def same_bytes(folder: Path, counts: Sequence[int]) -> bool:
    """Return whether the snapshots are equal for every number of ranks."""
    digests = [
        json.loads((folder / f"snapshot-{count}" / "state.json").read_text())["sha256"]
        for count in counts
    ]
    return all(digest == digests[0] for digest in digests)


def measure(folder: Path, network: dict[str, int], counts: Sequence[int]) -> None:
    """Measure every number of ranks and print the table."""
    write_fixture(
        folder / "model", network, prompts=1, prompt_tokens=2, completion_tokens=2, correct=[1]
    )
    model = open_policy(str(folder / "model"), SECTION, LIVE).model
    parameters = sum(p.numel() for p in model.parameters())
    found = {count: launch(folder, count) for count in counts}
    table = Table("", *(f"{count} rank{'s' * (count > 1)}, MB each" for count in counts), "seconds")
    for name in found[counts[0]]:
        memory = [f"{found[count][name][0]:,.0f}" for count in counts]
        seconds = " / ".join(f"{found[count][name][1]:.1f}" for count in counts)
        table.add_row(name, *memory, seconds)
    print(f"{parameters:,} parameters; in float32 a model is {parameters * 4 / 2**20:,.0f} MB")
    Console().print(table)
    print(f"equal bytes: {'yes' if same_bytes(folder, counts) else 'NO'}")


def main() -> None:
    """Measure, or be one of the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small policy, to try it out")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.again)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), QUICK if options.quick else NETWORK, options.ranks)


if __name__ == "__main__":
    main()
