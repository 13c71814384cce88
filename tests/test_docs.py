"""The documents agree with the code: generated pages, links, and the functions that are named."""

import importlib
import json
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

from tests.golden.golden_run import make_run
from tests.paths import PROJECT

PAGES = [
    PROJECT / "README.md",
    *sorted((PROJECT / "docs").glob("*.md")),
    PROJECT / "benchmarks/README.md",
]
METHOD = (PROJECT / "docs/method.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:pipeline|stages|flows|data)[\w.]*):([\w.]+)`", METHOD)))


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(PROJECT / "docs/generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    files = [t.partition("#")[0] for t in targets if "://" not in t and not t.startswith("#")]
    assert [t for t in files if not (page.parent / t).exists()] == []


@pytest.mark.parametrize(("module", "name"), NAMED, ids=":".join)
def test_functions_named_by_the_method_exist(module: str, name: str) -> None:
    found = reduce(getattr, name.split("."), importlib.import_module(module))
    assert callable(found)


def test_the_method_names_functions_and_tests_that_exist() -> None:
    assert len(NAMED) > 30
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (PROJECT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)\(", tests))
    assert set(re.findall(r"\btest_\w+(?=`)", METHOD)) - defined == set()
    files = re.findall(r"`(tests/[\w/]+\.py)", METHOD)
    assert [f for f in files if not (PROJECT / f).exists()] == []


def test_every_key_of_metrics_and_facts_is_described(tmp_path: Path) -> None:
    session = make_run(tmp_path, {})
    try:
        record = json.loads(session.run.metrics_path(0).read_text(encoding="utf-8"))
        facts = {
            table: session.run.manifest(table, 0).facts
            for table in ("rollouts", "verdicts", "routes", "weights", "updates")
        }
    finally:
        session.close()
    page = (PROJECT / "docs/tables.md").read_text(encoding="utf-8")
    described = page.partition("## metrics.json")[2]
    assert re.findall(r"^\| `(\w+)` ", described, re.MULTILINE) == list(record)
    rows = page.partition("### facts")[2].partition("## metrics.json")[0]
    assert {key for found in facts.values() for key in found} <= set(re.findall(r"`(\w+)`", rows))
