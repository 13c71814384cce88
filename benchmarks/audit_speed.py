"""Speed and memory of the commands that read a run, measured side by side.

Each command is a process of its own, timed from start to end; its peak memory is what the kernel
reports (ru_maxrss, which counts mapped pages of the tables that it touched). "inside" is the time
in the command's function, after Python and the libraries are loaded. Figures are medians; on a busy
machine look at the CPU seconds. Pages are fetched from a fresh `srpo view`: the first one with
nothing loaded yet, then others. `srpo check` and `sha256sum` read the same files in turn; all files
are read once before, so that both find them in the page cache.

    python benchmarks/big_run.py RUN && python benchmarks/audit_speed.py RUN [--rounds 3]
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

SRPO = (sys.executable, "-m", "flows.cli")
INSIDE = """
import sys, time
import polars, pyarrow, pipeline.audit.listing, pipeline.audit.rollout
from flows.cli import app
started = time.perf_counter()
app(sys.argv[1:], standalone_mode=False)
print(time.perf_counter() - started, file=sys.stderr)
"""
"""Runs a command as `srpo` does, and prints how long it took once everything was loaded."""

LIST_SECONDS, PAGE_SECONDS, PEAK_MB, CHECK_SHARE = 1.0, 0.5, 500.0, 0.7
WAIT_SECONDS = 60


class Result(NamedTuple):
    """Seconds of the clock and of the CPU, peak memory of one process, and what it wrote."""

    seconds: float
    cpu: float
    peak_mb: float
    out: str
    err: str


class Line(NamedTuple):
    """One line of the report: a value, its unit and its limit."""

    name: str
    value: float
    unit: str
    limit: float | None
    at_least: bool = False

    @property
    def text(self) -> str:
        """Return the line as it is printed."""
        limit, verdict = "", ""
        if self.limit is not None:
            holds = self.value >= self.limit if self.at_least else self.value <= self.limit
            limit = f"{'>=' if self.at_least else '<='} {self.limit:g}"
            verdict = "ok" if holds else "MISSED"
        return f"{self.name:58}{self.value:9.3g} {self.unit:5}{limit:>9}  {verdict}"


def measured(arguments: list[str]) -> Result:
    """Run a process to its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        texts = out.read().decode(), err.read().decode()
    if process.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: exit code {process.returncode}: {texts[1] or texts[0]}")
    return Result(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, *texts)


def repeated(arguments: list[str], rounds: int) -> list[Result]:
    """Run a process several times."""
    return [measured(arguments) for _ in range(rounds)]


def seconds_of(results: list[Result]) -> float:
    """Return the median of the seconds."""
    return statistics.median(result.seconds for result in results)


def audits(run: Path, rollout_id: str, rounds: int) -> list[Line]:
    """Measure `srpo audit`: listing, filtering, counting, one rollout."""
    ways = {
        "list routes": [],
        "one route": ["--route", "sdpo"],
        "filter": ["--where", "route = 'sdpo' and divergence > 0.056"],
        "filter by weights": ["--where", "weight_std > 0.7", "--sort=-weight_max"],
        "one step as JSON": ["--step", "2", "--format", "json"],
    }
    lines = []
    for name, options in ways.items():
        whole = repeated([*SRPO, "audit", str(run), *options], rounds)
        inside = repeated([sys.executable, "-c", INSIDE, "audit", str(run), *options], rounds)
        spent = statistics.median(float(result.err.split()[-1]) for result in inside)
        peak = max(result.peak_mb for result in whole)
        cpu = statistics.median(result.cpu for result in whole)
        lines += [
            Line(f"audit, {name}: process", seconds_of(whole), "s", LIST_SECONDS),
            Line(f"audit, {name}: process, CPU", cpu, "s", None),
            Line(f"audit, {name}: inside", spent, "s", LIST_SECONDS),
            Line(f"audit, {name}: peak", peak, "MB", PEAK_MB),
        ]
    shown = repeated([*SRPO, "audit", str(run), "--rollout", rollout_id], rounds)
    peak = max(result.peak_mb for result in shown)
    lines.append(Line("audit, one rollout: process", seconds_of(shown), "s", None))
    return [*lines, Line("audit, one rollout: peak", peak, "MB", PEAK_MB)]


def pages(run: Path, rollout_ids: list[str]) -> list[Line]:
    """Measure the pages of a server that has just started."""
    server = subprocess.Popen(
        [*SRPO, "view", str(run), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0].rstrip("/")
        base = f"{address}/rollouts"
        first, *others = [fetched(f"{base}/{quote(i)}/") for i in [*rollout_ids, *rollout_ids]]
        step = fetched(f"{address}/steps/{step_of(rollout_ids[0])}/")
        overview = fetched(f"{address}/")
    finally:
        server.send_signal(signal.SIGINT)
        _, _, usage = os.wait4(server.pid, 0)
        server.returncode = 0
    return [
        Line("view, first rollout's page", first, "s", PAGE_SECONDS),
        Line(f"view, {len(others)} others': median", statistics.median(others), "s", PAGE_SECONDS),
        Line(f"view, {len(others)} others': slowest", max(others), "s", PAGE_SECONDS),
        Line("view, page of a step", step, "s", None),
        Line("view, page of the run", overview, "s", None),
        Line("view: peak of the server", usage.ru_maxrss / 1024, "MB", PEAK_MB),
    ]


def fetched(address: str) -> float:
    """Fetch a page and return the seconds it took."""
    started = time.perf_counter()
    with urllib.request.urlopen(address, timeout=WAIT_SECONDS) as answer:
        answer.read()
    return time.perf_counter() - started


def step_of(rollout_id: str) -> str:
    """Return the step of a rollout, as URLs write it."""
    return str(int(rollout_id.split("-")[0]))


def checks(run: Path, rounds: int) -> list[Line]:
    """Measure `srpo check` and `sha256sum` over the same files, in turn."""
    files = [str(path) for path in sorted(run.rglob("*")) if path.is_file()]
    size = sum(os.path.getsize(path) for path in files) / 1e6
    measured(["sha256sum", *files])
    pairs = [
        (measured(["sha256sum", *files]), measured([*SRPO, "check", str(run)]))
        for _ in range(rounds)
    ]
    share = statistics.median(digest.seconds / check.seconds for digest, check in pairs)
    check = [pair[1] for pair in pairs]
    return [
        Line(
            f"sha256sum of {size:,.0f} MB", size / seconds_of([p[0] for p in pairs]), "MB/s", None
        ),
        Line("check", size / seconds_of(check), "MB/s", None),
        Line("check: share of sha256sum's speed", share, "", CHECK_SHARE, at_least=True),
        Line("check: peak", max(result.peak_mb for result in check), "MB", PEAK_MB),
    ]


def taught_rollouts(run: Path, count: int) -> list[str]:
    """Return rollouts that have a teacher, from several steps."""
    found = []
    for path in sorted(run.glob("steps/*/teacher.json")):
        found += list(json.loads(path.read_text())["index"])[: max(1, count // 5)]
    return found[:count]


def main() -> None:
    """Measure everything and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run as benchmarks/big_run.py makes it")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each command")
    parser.add_argument("--only", choices=["audit", "view", "check"], help="measure these alone")
    arguments = parser.parse_args()
    ids = taught_rollouts(arguments.run, 10)
    parts = {
        "audit": lambda: audits(arguments.run, ids[0], arguments.rounds),
        "view": lambda: pages(arguments.run, ids),
        "check": lambda: checks(arguments.run, arguments.rounds),
    }
    for name, measure in parts.items():
        if arguments.only in (None, name):
            for line in measure():
                print(line.text, flush=True)


if __name__ == "__main__":
    main()
