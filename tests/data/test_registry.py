"""The table of tasks: shipped ones, a user's file, and what is said of a file that is no task."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data import registry
from pipeline.errors import DataError
from pipeline.task import Verdict
from tests.paths import PROJECT

TASK = '''"""Shouting: answers in capitals.

More."""
from dataclasses import dataclass
from pipeline.task import Message, Question, Verdict
VERIFIER = "shouting/1"
@dataclass
class Helper:
    text: str
def load(path, split):
    return [Question("1", (Message("user", "hi"),), "null")]
def verify(response, reference):
    return Verdict(float(Helper(response).text.isupper()), True)
'''

Writer = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a user's task file and returns its path."""

    def to_file(text: str) -> str:
        path = tmp_path / "shouting.py"
        path.write_text(text)
        return str(path)

    return to_file


def test_shipped_tasks_open_and_describe_themselves() -> None:
    names = ["arithmetic", "chains", "code", "code_share", "mathematics", "science_qa", "tool_use"]
    assert registry.task_names() == [*names, "word_problems"]
    for name in registry.task_names():
        assert registry.open_task(name).VERIFIER.startswith(f"{name}/")
        assert len(registry.describe(name)) > 20


@pytest.mark.parametrize("name", ["arithmetic", "science_qa", "tool_use"])
def test_the_digest_of_one_file_is_that_of_its_source(name: str) -> None:
    source = (PROJECT / f"data/{name}.py").read_bytes()
    assert registry.file_digest(name) == hashlib.sha256(source).hexdigest()


def test_the_digest_covers_the_package_that_judges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Writer
) -> None:
    helpers = {path.name for path in registry._helpers(b"from data.math_answers.golds import x")}
    folder = PROJECT / "data/math_answers"
    assert helpers == {path.name for path in folder.glob("*.py")} > {"reader.py", "equality.py"}
    copied = tmp_path / "data"
    shutil.copytree(folder, copied / "math_answers")
    monkeypatch.setattr(registry, "__file__", str(copied / "registry.py"))
    path = write(TASK + "from data.math_answers.golds import same_answers\n")
    before = registry.file_digest(path)
    with (copied / "math_answers/units.py").open("a") as file:
        file.write("#\n")
    assert registry.file_digest(path) != before
    assert registry.file_digest(path) != hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_the_digest_covers_the_task_whose_verifier_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Writer
) -> None:
    helpers = [path.name for path in registry._helpers((PROJECT / "data/chains.py").read_bytes())]
    assert sorted(helpers) == ["__init__.py", "stories.py", "tale.py", "word_problems.py"]
    (copied := tmp_path / "data").mkdir()
    shutil.copy(PROJECT / "data/word_problems.py", copied)
    monkeypatch.setattr(registry, "__file__", str(copied / "registry.py"))
    path = write(TASK[: TASK.index("def verify")] + "from data.word_problems import verify\n")
    before = registry.file_digest(path)
    with (copied / "word_problems.py").open("a") as file:
        file.write("#\n")
    assert registry.file_digest(path) != before


@pytest.mark.parametrize("name", registry.SHIPPED)
def test_every_shipped_task_has_hints(name: str) -> None:
    assert callable(registry.open_hint(name))
    assert registry.file_digest(name, "full") == registry.file_digest(name)


def test_the_digest_covers_the_hints_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copied = tmp_path / "data"
    shutil.copytree(PROJECT / "data/hints", copied / "hints")
    shutil.copytree(PROJECT / "data/math_answers", copied / "math_answers")
    monkeypatch.setattr(registry, "__file__", str(copied / "registry.py"))

    def digests() -> dict[str, tuple[str, str]]:
        return {
            name: (registry.file_digest(name), registry.file_digest(name, "hint"))
            for name in registry.HINTS
        }

    first = digests()
    assert all(full != hint for full, hint in first.values())
    for changed, tasks in (
        ("calculations", {"arithmetic", "chains", "mathematics", "word_problems"}),
        ("tool_hints", {"tool_use"}),
    ):
        before = digests()
        with (copied / f"hints/{changed}.py").open("a") as file:
            file.write("#\n")
        after = digests()
        assert {name for name in after if after[name] != before[name]} == tasks
        assert all(after[name][0] == before[name][0] for name in after)


def test_hints_of_a_users_task(write: Writer) -> None:
    path = write(TASK)
    with pytest.raises(DataError, match="has no hints"):
        registry.open_hint(path)
    path = write(TASK + "def hint(response, reference):\n    return f'Louder than {response}.'\n")
    assert registry.judge_with_hint(path, "hi", "null") == Verdict(
        0.0, True, feedback="Louder than hi."
    )
    assert registry.judge_with_hint(path, "HI", "null") == Verdict(1.0, True)
    assert registry.file_digest(path, "hint") == registry.file_digest(path)


def test_a_users_file_is_a_task(write: Writer) -> None:
    path = write(TASK)
    task = registry.open_task(path)
    assert task.VERIFIER == "shouting/1" and task.load(None, "train")[0].prompt_id == "1"
    assert registry.open_task(path) is task
    assert registry.judge(path, "HI", "null") == Verdict(1.0, True)
    assert registry.describe(path) == "Shouting: answers in capitals."
    assert registry.file_digest(path) == hashlib.sha256(TASK.encode()).hexdigest()
    assert "shouting" not in sys.modules


def test_a_changed_file_is_another_task(write: Writer) -> None:
    first = registry.open_task(write(TASK))
    second = registry.open_task(write(TASK.replace("shouting/1", "shouting/2")))
    assert (first.VERIFIER, second.VERIFIER) == ("shouting/1", "shouting/2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks VERIFIER, load, verify: a task module has"),
        (TASK.replace("VERIFIER", "VERSION"), "lacks VERIFIER:"),
        (TASK.replace('"shouting/1"', "1"), "lacks VERIFIER:"),
        (TASK.replace("def verify", "def check"), "lacks verify:"),
        (TASK + "load = 5\n", "lacks load:"),
        ("import no_such_library", "can't be imported: ModuleNotFoundError: No module named"),
        ("def f(:", "can't be imported: SyntaxError:"),
        ("1 / 0", "can't be imported: ZeroDivisionError:"),
        ("import sys; sys.exit(0)", "can't be imported: SystemExit: 0"),
    ],
)
def test_a_file_that_is_no_task_is_one_clear_line(write: Writer, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(DataError, match=message) as caught:
        registry.open_task(path)
    assert "shouting.py" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_tasks_are_one_clear_line() -> None:
    for function in (registry.open_task, registry.describe, registry.file_digest):
        with pytest.raises(
            DataError, match="there is no task 'chess': expected one of arithmetic,"
        ):
            function("chess")
        with pytest.raises(DataError, match=r"task file .*/absent\.py does not exist"):
            function("absent.py")


def test_a_file_may_lack_a_description_but_not_a_syntax(write: Writer) -> None:
    assert registry.describe(write("x = 1")) == "(no description)"
    with pytest.raises(DataError, match="is not a valid Python file"):
        registry.describe(write("def f(:"))


def test_judging_imports_no_library_of_another_task() -> None:
    code = (
        "import sys; from data import registry; "
        "[registry.describe(name) for name in registry.task_names()]; "
        "registry.judge('science_qa', '', '\"A\"'); registry.judge('tool_use', '', '[]'); "
        "print({'sympy', 'numpy', 'torch', 'math_verify', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
