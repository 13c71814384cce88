"""The shape of the house (docs/architecture.md): which room may import which, and more."""

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from pipeline.config.load import load_config, preset_names
from tests.paths import PROJECT

PACKAGES = ("pipeline", "stages", "flows", "data")
MODULES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))
BESIDE = sorted(
    path for folder in ("docs", "benchmarks") for path in (PROJECT / folder).glob("*.py")
)
PICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PIPES = (
    "pipeline/verification/pool.py",
    "pipeline/verification/child.py",
    "pipeline/vllm/collective.py",
)
"""Modules that pickle into a pipe or socket to their own children; nothing of it reaches a disk."""

LONGEST_FILE, LONGEST_FUNCTION = 600, 100
"""Beyond these a file or a function surely has a seam; below them its meaning decides."""

STUDY_BYTES = 5_000_000
"""Of all rows and figures: who clones the code clones them."""

ALLOWED = {
    "pipeline": {"pipeline"},
    "data": {"data", "pipeline"},
    "stages": {"stages", "pipeline"},
    "flows": {"flows", "stages", "data", "pipeline"},
}
"""What each package may import of the four."""

FLAT = ""
"""Modules that lie in a package itself, in no room."""
ROOMS = {
    "pipeline": (
        *(FLAT, "health", "twin", "machine", "config", "verification", "distributed", "remote"),
        *("forward", "files", "tables", "policy", "run", "sampling", "stage", "vllm", "audit"),
        *("compare", "study", "check", "housekeeping", "viewer"),
    ),
    "flows": (
        *(
            "prefect_api",
            "workers",
            "session",
            "warmstart",
            "training",
            "reruns",
            "terminal",
            "commands",
            FLAT,
            "study",
        ),
    ),
}
"""The rooms of a package from low to high: a room imports from those before it only."""

SAME_NAME = {
    "evaluate.py": "the stage; the work of the command; the command",
    "policy.py": "the policy; the command that exports one",
    "replay.py": "the work of the command; the command",
    "server_process.py": "Prefect's server; vLLM's server",
    "stage.py": "a stage whose package has more modules; the command that reruns one",
}
"""Basenames that occur more than once, with what each is; the rooms tell them apart."""


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, wherever in it, relative ones resolved."""
    package = path.relative_to(PROJECT).parent.parts
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> tuple[str, str]:
    """Return the package of a module and its room; FLAT: it lies in the package itself."""
    package, *inner = path.relative_to(PROJECT).parts
    return package, inner[0] if len(inner) > 1 else FLAT


def targets(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield what a module imports of ours: the dotted name, and the room of its module."""
    for name in imported(path):
        for module in (name, name.rpartition(".")[0]):
            if (file := PROJECT / (module.replace(".", "/") + ".py")).is_file():
                yield name, room_of(file)


def stage_of(path: Path) -> str:
    """Return which stage a module of `stages` belongs to."""
    return path.relative_to(PROJECT / "stages").parts[0].removesuffix(".py")


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_modules_were_found() -> None:
    names = {name_of(path) for path in MODULES}
    assert {"pipeline/run/run.py", "stages/weigh.py", "flows/session/session.py"} <= names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_import_direction(path: Path) -> None:
    package = path.relative_to(PROJECT).parts[0]
    ours = {name.split(".")[0] for name in imported(path)} & set(PACKAGES)
    assert ours <= ALLOWED[package]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_downwards(path: Path) -> None:
    package, room = room_of(path)
    if package not in ROOMS:
        return
    order = ROOMS[package]
    above = {
        name
        for name, target in targets(path)
        if target[0] == package and order.index(target[1]) > order.index(room)
    }
    assert above == set()


def test_every_room_has_its_place() -> None:
    rooms = {room_of(path) for path in MODULES}
    assert {room for package, room in rooms if package == "pipeline"} == set(ROOMS["pipeline"])
    assert {room for package, room in rooms if package == "flows"} == set(ROOMS["flows"])


def test_basenames_differ_where_rooms_do_not_tell_them_apart() -> None:
    names = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert {name for name, count in names.items() if count > 1} == set(SAME_NAME)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not inside functions or for types either: who reads one would have to know the other."""
    names = {".".join(p.relative_to(PROJECT).with_suffix("").parts): p for p in MODULES}
    TopologicalSorter(
        {
            name: {m for found in imported(path) for m in (found, found.rpartition(".")[0])}
            & names.keys()
            for name, path in names.items()
        }
    ).prepare()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_flows_import_prefect(path: Path) -> None:
    if path.is_relative_to(PROJECT / "flows"):
        return
    assert "prefect" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.is_relative_to(PROJECT / "stages")], ids=name_of
)
def test_stages_do_not_import_each_other(path: Path) -> None:
    stages = {name.split(".")[1] for name in imported(path) if name.startswith("stages.")}
    assert stages <= {stage_of(path)}


@pytest.mark.parametrize("path", sorted((PROJECT / "pipeline/twin").glob("*.py")), ids=name_of)
def test_the_twin_imports_nothing_that_it_checks(path: Path) -> None:
    ours = {name for name in imported(path) if name.split(".")[0] in PACKAGES}
    assert {name for name in ours if not name.startswith("pipeline.twin")} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(parsed(path))


@pytest.mark.parametrize("path", [*MODULES, *BESIDE], ids=name_of)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST_FILE


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_stay_short(path: Path) -> None:
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(path)}
    assert {name: n for name, n in lengths.items() if n >= LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_functions_are_described(path: Path) -> None:
    """Nested functions and protocol stubs of one line aside, a public name has a docstring."""
    top = [node for node in parsed(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    bare = [n.name for n in top if not n.name.startswith("_") and not ast.get_docstring(n)]
    assert bare == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_pickled_and_no_remote_code_is_trusted(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert name_of(path) in PIPES or not roots & {
        "pickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
        "marshal",
    }
    calls = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.Call)]
    trusts = [k.value for c in calls for k in c.keywords if k.arg == "trust_remote_code"]
    assert all(isinstance(v, ast.Constant) and v.value is False for v in trusts)
    opened = [
        c for c in calls if ast.unparse(c.func).endswith((".from_pretrained", ".from_config"))
    ]
    assert len(trusts) == len(opened)  # unsaid, transformers asks at a terminal
    torch_io = {"torch.save", "torch.load"}
    assert not [c for c in calls if ast.unparse(c.func) in torch_io]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    assert load_config(name).run.steps > 0


def test_the_study_stays_small() -> None:
    files = [path for path in (PROJECT / "docs/study").rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) <= STUDY_BYTES


def test_the_packages_are_listed_one_by_one() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sorted(wheel["packages"]) == sorted(PACKAGES)


def test_imports_are_found_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is checked: relative imports and those inside functions don't hide."""
    monkeypatch.setitem(globals(), "PROJECT", tmp_path)
    path = tmp_path / "stages" / "route" / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import pipeline.run.run\n"
        "def f():\n    import prefect.flows\n"
        "    from ..weigh import run\n    from . import scores\n"
    )
    assert set(imported(path)) == {
        "pipeline.run.run",
        "prefect.flows",
        "stages.weigh.run",
        "stages.route.scores",
    }
    assert stage_of(path) == "route"
