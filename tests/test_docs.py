"""The documents agree with the code: generated pages, links, and the functions that are named."""

import ast
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
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s:#]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / file if file else page, anchor) for file, anchor in links]
    assert [(t.name, a) for t, a in targets if t.suffix == ".md" and a not in anchors_of(t)] == []


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page (equal headings: the first)."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = [h.replace("`", "") for h in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_messages_quoted_for_inputs_are_in_the_code() -> None:
    texts = "\n".join(text for path in _modules() for text in _texts(ast.parse(path.read_text())))
    rows = re.findall(r"^\|.*\|([^|]*)\|$", (PROJECT / "docs/INPUTS.md").read_text(), re.M)
    quoted = [quote for cell in rows for quote in re.findall(r"`([^`]+)`", cell)]
    parts = [part.strip() for quote in quoted for part in quote.split("…")]
    assert len(quoted) > 10
    assert [part for part in parts if part not in texts] == []


def _modules() -> list[Path]:
    rooms = ("pipeline", "stages", "flows", "data")
    return [path for room in rooms for path in (PROJECT / room).rglob("*.py")]


def _texts(module: ast.Module) -> list[str]:
    """Return all texts of a module; what an f-string fills in is …"""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            values = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
            found.append("".join(str(value) for value in values))
    return found


def test_cited_sections_of_the_method_exist() -> None:
    sections = {int(n) for n in re.findall(r"^## (\d+)\. ", METHOD, re.M)}
    assert sections == set(range(1, 16))
    cited = r"docs/method\.md, sections? ((?:\d+(?:, | and | to )?)+)"
    found = [n for _, text in _tracked() for group in re.findall(cited, text) for n in _ints(group)]
    assert len(found) > 30
    assert set(found) - sections == set()


def _ints(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _tracked() -> list[tuple[str, str]]:
    """Return path and text of the product's files: code, tests and pages."""
    rooms = ("pipeline", "stages", "flows", "data", "tests", "benchmarks", "docs")
    paths = [p for room in rooms for p in sorted((PROJECT / room).rglob("*"))]
    kept = [p for p in paths if p.suffix in {".py", ".md", ".toml", ".html", ".css"}]
    files = [*kept, PROJECT / "README.md"]
    return [(str(p.relative_to(PROJECT)), p.read_text(encoding="utf-8")) for p in files]


# Files whose text is digested or stored, so that it stays; and a benchmark's page.
_OLD_NAMES = {
    "data/science_qa.py": "a task's source is part of the digest of a run",
    "pipeline/tables/schemas.py": "columns' descriptions are stored in the tables",
    "docs/PERFORMANCE.md": "says that a benchmark looks for its peer's scripts there",
}


def test_the_product_refers_to_no_file_outside_the_repository() -> None:
    outside = re.compile(r"\b(?:METHOD|DESIGN|HOUSE|STYLE|FIELD|PLATFORM)\.md|\.\./shared")
    product = [
        (name, text) for name, text in _tracked() if not name.startswith(("tests/", "benchmarks/"))
    ]
    assert {name for name, text in product if outside.search(text)} == set(_OLD_NAMES)


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
