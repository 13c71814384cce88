"""Which tasks there are: the shipped ones by name, a user's own by the path of one Python file.

Idea: a task is a module (see pipeline/task.py), so a registry is no more than a table of module
names. Modules are imported when they are opened: a run pays for its own task's libraries only, and
listing the tasks imports none of them.
"""

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import cast

from data.gold_wording import GOLDS, Gold
from pipeline.errors import DataError
from pipeline.task import Feedback, Task, Verdict
from pipeline.text import encodable, printable

SHIPPED = {
    "arithmetic": "data.arithmetic",
    "chains": "data.chains",
    "code": "data.code",
    "code_share": "data.code_share",
    "mathematics": "data.mathematics",
    "science_qa": "data.science_qa",
    "tool_use": "data.tool_use",
    "word_problems": "data.word_problems",
}
HINTS = {
    "arithmetic": "data.hints.arithmetic_hints",
    "chains": "data.hints.word_problem_hints",
    "mathematics": "data.hints.mathematics_hints",
    "science_qa": "data.hints.science_hints",
    "tool_use": "data.hints.tool_hints",
    "word_problems": "data.hints.word_problem_hints",
}
"""Where hints are worded that came after the task: its file, which runs digest, stays as it was."""
WITHOUT_FILES = frozenset({"arithmetic"})
"""Shipped tasks that make their questions themselves: a path given to one is a mistake."""

Hint = Callable[[str, str], str | None]
Judge = Callable[[str, str, str], Verdict]

_PACKAGE = re.compile(rb"^\s*(?:from|import)\s+data\.(\w+)", re.MULTILINE)
_VERIFIER_OF = re.compile(rb"^from data\.(\w+) import verify$", re.MULTILINE)
_HINT_MODULE = re.compile(rb"^(?:from )?data\.hints\.(\w+)", re.MULTILINE)


def task_names() -> list[str]:
    """Return the names of the shipped tasks."""
    return sorted(SHIPPED)


def open_task(name: str) -> Task:
    """Return a task.

    Args:
        name: a shipped task's name, or the path of a Python file that holds VERIFIER, load, verify.

    Raises:
        DataError: there is no such task, it can't be imported, or it lacks a part.
    """
    if name not in SHIPPED:
        return _checked(_import_file(_source(name)), name)
    try:
        return _checked(importlib.import_module(SHIPPED[name]), name)
    except ImportError as error:
        raise DataError(
            f"task {name} can't be imported: {error}; install what is missing"
        ) from error


def gold_wording(name: str) -> Gold | None:
    """Return the function that words a task's gold answers for a teacher; None: it offers none.

    A user's own module offers them by a function `gold(reference: str) -> str`. What that raises,
    or returns instead of a text, is a `DataError`.
    """
    if name in SHIPPED:
        return GOLDS.get(name)
    wording = getattr(open_task(name), "gold", None)
    return None if wording is None else partial(_worded, name, wording)


def _worded(name: str, wording: Callable[[str], object], reference: str) -> str:
    """Return what a user's function makes of a gold answer."""
    try:
        text = wording(reference)
    except Exception as error:
        reason = f"raised {type(error).__name__}: {_one_line(error)}"
        raise DataError(f"task {name}: gold({printable(reference, 60)!r}) {reason}") from error
    if not isinstance(text, str) or not text.strip() or encodable(text) != text:
        raise DataError(
            f"task {name}: gold({printable(reference, 60)!r}) returned "
            f"{printable(repr(text), 60)}, expected a text that is not blank"
        )
    return text


def describe(name: str) -> str:
    """Return the first line of a task's docstring, without importing the task."""
    path = _source(name)
    try:
        text = ast.get_docstring(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError) as error:
        raise DataError(f"task {path} is not a valid Python file: {_one_line(error)}") from error
    return text.splitlines()[0] if text else "(no description)"


def open_hint(name: str) -> Hint:
    """Return what words the hints of a task: `hint(response, reference)`.

    Raises:
        DataError: the task has none, or can't be opened.
    """
    module = importlib.import_module(HINTS[name]) if name in HINTS else open_task(name)
    hint = getattr(module, "hint", None)
    if not callable(hint):
        raise DataError(
            f"task {name} has no hints: expected hint(response, reference) in it (docs/tasks.md), "
            'or verify.feedback = "full"'
        )
    return cast(Hint, hint)


def file_digest(name: str, feedback: Feedback = "full") -> str:
    """Return the SHA-256 of the source that decides a task's verdicts, which run records keep.

    That is the task's own file, the shipped task's whose `verify` it takes, and what it takes from
    packages in `data`, such as math_answers; with hints also the modules that word them. Other
    modules in `data` itself read rows, and what they read has digests of its own.
    """
    source = _source(name).read_bytes()
    digest = hashlib.sha256(source)
    hints = _hint_sources(name) if feedback == "hint" else []
    for path in [*_helpers(source), *hints]:
        text = path.read_bytes()
        digest.update(f"\n{path.parent.name}/{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def _hint_sources(name: str) -> list[Path]:
    """Return the modules of `data.hints` that word a task's hints; none: its own file does."""
    folder = Path(__file__).parent / "hints"
    found: list[Path] = []
    waiting = [HINTS[name].encode()] if name in HINTS else []
    while waiting:
        for module in _HINT_MODULE.findall(waiting.pop()):
            path = folder / f"{module.decode()}.py"
            if path not in found:
                found.append(path)
                waiting.append(path.read_bytes())
    return sorted(found)


def _helpers(source: bytes) -> list[Path]:
    """Return the task whose verifier a module takes, and all packages' modules, however deep."""
    data, found = Path(__file__).parent, set[Path]()
    tasks = [data / f"{name.decode()}.py" for name in _VERIFIER_OF.findall(source)]
    tasks = [path for path in tasks if path.is_file()]
    waiting = [source, *(path.read_bytes() for path in tasks)]
    while waiting:
        for name in _PACKAGE.findall(waiting.pop()):
            folder = data / name.decode()
            if folder.is_dir() and folder not in found:
                found.add(folder)
                waiting += [path.read_bytes() for path in folder.glob("*.py")]
    return sorted([*tasks, *(path for folder in found for path in folder.glob("*.py"))])


def judge(name: str, response: str, reference: str) -> Verdict:
    """Open a task, once per process, and verify a response: what child processes run."""
    return _opened(name).verify(response, reference)


def judge_with_hint(name: str, response: str, reference: str) -> Verdict:
    """Verify a response, with the task's hint as the feedback on what has not the full reward."""
    verdict = judge(name, response, reference)
    # Whatever else a verifier returns is refused by the process that called this.
    if not isinstance(verdict, Verdict) or verdict.error or verdict.reward == 1:
        return verdict
    return replace(verdict, feedback=_opened_hint(name)(response, reference))


def open_with_hint(name: str) -> None:
    """Open a task and its hints, once per process."""
    _opened(name)
    _opened_hint(name)


def judging(feedback: Feedback) -> tuple[Judge, Callable[[str], object]]:
    """Return what child processes judge by, and what prepares them for it."""
    return (judge_with_hint, open_with_hint) if feedback == "hint" else (judge, open_task)


@lru_cache(maxsize=8)
def _opened_hint(name: str) -> Hint:
    return open_hint(name)


@lru_cache(maxsize=8)
def _opened(name: str) -> Task:
    """Return a task that was opened before by the same name, or open it."""
    return open_task(name)


def _source(name: str) -> Path:
    """Return the source file of a task."""
    if name in SHIPPED:
        spec = importlib.util.find_spec(SHIPPED[name])
        if spec is None or spec.origin is None:
            raise DataError(f"task {name} is not installed: there is no module {SHIPPED[name]}")
        return Path(spec.origin)
    if not name.endswith(".py"):
        raise DataError(
            f"there is no task {name!r}: expected one of {', '.join(task_names())}, or the path of "
            "a Python file that ends in .py"
        )
    path = Path(os.path.expanduser(name)).resolve()
    if not path.is_file():
        raise DataError(f"task file {path} does not exist")
    return path


def _import_file(path: Path) -> ModuleType:
    """Run a user's task file as a module under a private name that depends on path and content."""
    digest = hashlib.sha256(f"{path}\n".encode() + path.read_bytes()).hexdigest()
    private = f"_srpo_task_{digest[:16]}"
    if private in sys.modules:
        return sys.modules[private]
    spec = importlib.util.spec_from_file_location(private, path)
    if spec is None or spec.loader is None:
        raise DataError(f"task file {path} can't be imported: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up here while and after it runs.
    sys.modules[private] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # The file is the user's: whatever it raises is a fault of the data, named with its file.
        del sys.modules[private]
        raise DataError(f"task file {path} can't be imported: {_one_line(error)}") from error
    return module


def _checked(module: ModuleType, name: str) -> Task:
    """Return a module as a task if it has all parts of one."""
    missing = [part for part in ("load", "verify") if not callable(getattr(module, part, None))]
    verifier = getattr(module, "VERIFIER", None)
    if not isinstance(verifier, str) or not verifier:
        missing.insert(0, "VERIFIER")
    if missing:
        raise DataError(
            f"task {name} lacks {', '.join(missing)}: a task module has VERIFIER (a text), "
            "load(path, split) and verify(response, reference)"
        )
    return cast(Task, module)


def _one_line(error: BaseException) -> str:
    """Return an error's type and message as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
