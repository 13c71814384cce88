"""The documents agree with the code: generated pages, links, commands, and all that is named."""

import ast
import functools
import importlib
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli import app
from pipeline.config.load import config_keys, preset_names
from tests.golden.golden_run import make_run
from tests.paths import PROJECT

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
    PROJECT / "benchmarks/README.md",
]
METHOD = (PROJECT / "docs/method.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:pipeline|stages|flows|data)[\w.]*):([\w.]+)`", METHOD)))

CLI: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = CLI.commands
PLACEHOLDERS = {"N": "1", "RUN@N": "run@1", "…": "", "PRESET|FILE.toml": "demo"}
"""Words in the pages' commands that stand for others, and what to parse in their place."""
USERS_OWN = {"capitals.py", "mine.py", "pipeline.py", "data.py", "FILE.py"}
"""Python files that pages name as examples of what users write."""
OTHERS_NAMES = {"IPCTrainerWeightTransferEngine", "padding_idx"}
"""Names in other projects that pages cite."""


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


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """Return the lines of code blocks, fenced or indented, without prompts."""
    indented = re.findall(r"^ {4}(?:\$ )?(\S.*)$", text, re.M)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    return indented + [line for block in fenced for line in block.splitlines()]


def inline(text: str) -> list[str]:
    """Return the code within sentences, each piece on one line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose)]


def built(text: str) -> str:
    """Return a page without the sections and rows of what it says is not built yet."""
    sections = [s for s in text.split("\n## ") if "**Not built yet**: this section" not in s]
    lines = [line for section in sections for line in section.splitlines()]
    return "\n".join(line for line in lines if "**not built yet**" not in line)


def without_remark(line: str) -> str:
    """Return the command of a line, without the remark to its right."""
    return re.split(r"\s{3,}|\s+# ", line, maxsplit=1)[0]


def problem(command: str, whole: bool = True) -> str:
    """Say what today's command line refuses in a command, which is parsed and not run.

    Args:
        whole: whether required arguments must be there; a mention in a sentence may omit them.
    """
    words = [PLACEHOLDERS.get(w, w) for w in shlex.split(re.sub(r"[\[\]]", "", command))[1:]]
    name, *rest = [word for word in words if word]
    if name == "COMMAND" or name.startswith("--"):
        return ""
    if name not in COMMANDS:
        return f"{command}: no such command"
    settings = [value for option, value in itertools.pairwise(rest) if option == "--set"]
    if unknown := [s for s in settings if not is_setting(s.partition("=")[0])]:
        return f"{command}: no such setting {unknown}"
    preset = re.fullmatch(r"[a-z][a-z-]+", rest[0]) if name == "train" and rest else None
    if preset and rest[0] not in preset_names():
        return f"{command}: no such preset"
    try:
        COMMANDS[name].make_context(name, rest)
    except typer.TyperException as error:
        if whole or type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
            return f"{command}: {error}"
    return ""


def is_setting(key: str) -> bool:
    mixture = re.fullmatch(r"data\.mixture\.\w+\.(task|path|weight)", key)
    return key in config_keys() or mixture is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_parse(page: Path) -> None:
    """Blocks hold whole commands; sentences may name one without its arguments."""
    lines = [without_remark(line) for line in blocks(text_of(page))]
    found = [problem(line) for line in lines if line.startswith("srpo ")]
    codes = [code for code in inline(text_of(page)) if code.startswith("srpo ")]
    found += [problem(code, whole=False) for code in codes]
    assert [line for line in found if line] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_of_the_help_parse(name: str) -> None:
    text = COMMANDS[name].help or ""
    examples = re.findall(r"Example: (srpo .*?)(?: > \S+\.toml)?$", text, re.M)
    assert examples
    assert [line for e in examples if (line := problem(without_remark(e)))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_the_pages_name_exist(page: Path) -> None:
    sections = {key.partition(".")[0] for key in config_keys()}
    named = re.findall(r"`([a-z]+\.[a-z_.]+[a-z_])(?: ?=[^`]*)?`", built(text_of(page)))
    keys = [key for key in named if key.partition(".")[0] in sections]
    files = (".py", ".json")
    assert [k for k in keys if not is_setting(k) and not k.endswith(files)] == []


def test_make_targets_that_the_pages_name_exist() -> None:
    rules = re.findall(r"^([a-z-]+):", text_of(PROJECT / "Makefile"), re.M)
    codes = [c for page in PAGES for c in [*blocks(text_of(page)), *inline(text_of(page))]]
    targets = [m[1] for code in codes if (m := re.match(r"make ([a-z-]+)", code))]
    assert len(targets) > 20
    assert set(targets) - set(rules) == set()


def test_extras_that_the_pages_install_exist() -> None:
    project = tomllib.loads(text_of(PROJECT / "pyproject.toml"))["project"]
    install = r"install -e '\.\[(\w[\w-]*)\]'"
    named = {extra for page in PAGES for extra in re.findall(install, text_of(page))}
    assert named and named - set(project["optional-dependencies"]) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_pages_name_exist(page: Path) -> None:
    """A path starts at the root, at a package or at the page; a bare name is any file's."""
    roots = [PROJECT, PROJECT / "pipeline", PROJECT / "flows", page.parent]
    paths = set(re.findall(r"`([\w./-]+\.py)(?:::\w+)?`", text_of(page)))
    lost = [p for p in paths if not any((root / p).exists() for root in roots)]
    rooms = ("pipeline", "stages", "flows", "data", "benchmarks", "tests")
    known = {p.name for room in rooms for p in (PROJECT / room).rglob("*.py")}
    assert sorted(p for p in lost if p not in USERS_OWN and p not in known) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_the_pages_name_exist(page: Path) -> None:
    """`pipeline.x.y` may be a module or a name in one; `python -m` takes modules alone."""
    text = text_of(page)
    packages = "pipeline|stages|flows|benchmarks"
    for module in re.findall(rf"-m ((?:{packages})[\w.]*\w)", text):
        assert importlib.util.find_spec(module) is not None, module
    for name in re.findall(rf"`((?:{packages})(?:\.\w+)+)`", text):
        parts = name.split(".")
        files = [PROJECT.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
        depth = sum(file.is_dir() or file.with_suffix(".py").exists() for file in files)
        reduce(getattr, parts[depth:], importlib.import_module(".".join(parts[:depth])))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_benchmarks_have_the_options_that_exist_and_those_required(page: Path) -> None:
    codes = [*map(without_remark, blocks(text_of(page))), *inline(text_of(page))]
    pattern = re.compile(r"python (?:-m )?benchmarks[./](\w+)(?:\.py)?\b(.*)")
    for match in filter(None, map(pattern.match, codes)):
        source = text_of(PROJECT / "benchmarks" / f"{match[1]}.py")
        options = set(re.findall(r"--[a-z-]+", match[2]))
        known = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source))
        required = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"[^)]*required=True', source))
        assert options <= known and required <= options, match[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_the_pages_give_in_code_are_in_the_code(page: Path) -> None:
    if page.name == "ROADMAP.md":  # it says what was, too
        return
    codes = inline(built(text_of(page)))
    names = [code for code in codes if re.fullmatch(r"[A-Za-z_][\w.]*", code)]
    last = {name.rpartition(".")[2] for name in names if not name.isupper()}
    assert sorted(last - words_of_the_code() - OTHERS_NAMES) == []


@functools.cache
def words_of_the_code() -> set[str]:
    rooms = ("pipeline", "stages", "flows", "data", "benchmarks", "deploy", "tests")
    kinds = {".py", ".js", ".css", ".toml", ".yaml", ".json"}
    files = [p for room in rooms for p in (PROJECT / room).rglob("*") if p.suffix in kinds]
    files += [PROJECT / "pyproject.toml", PROJECT / "prefect.yaml", PROJECT / "docs/generate.py"]
    return {word for file in files for word in re.findall(r"\w+", text_of(file))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_constants_are_where_the_pages_say(page: Path) -> None:
    for constant, path in re.findall(r"`([A-Z_]{4,})`\s+in\s+`([\w/]+\.py)`", text_of(page)):
        assert re.search(rf"^{constant}\b", text_of(PROJECT / path), re.M), (constant, path)
