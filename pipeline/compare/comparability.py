"""How runs differ (names, settings, lineage), and why some can't be compared.

Whatever comes from a run (folder names, paths, settings) is untrusted text: it is shown without
control characters and cut to a readable length.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import SrpoError
from pipeline.run.run import Run
from pipeline.tables.manifest import flat
from pipeline.text import printable

_LABEL_SETTINGS, _TEXT = 3, 40
_DIGEST = 12


def telling_names(folders: Sequence[Path]) -> list[str]:
    """Return the end of each folder's path, the shortest that tells all of them apart.

    All have equally many parts, as in srpo/3, srpo/4 and grpo/3. Equal folders have equal names.

    Args:
        folders: absolute paths.
    """
    parts = [folder.parts[1:] or ("run",) for folder in folders]
    lengths = range(1, max(map(len, parts), default=0) + 1)
    enough = (n for n in lengths if len({own[-n:] for own in parts}) == len(set(parts)))
    length = next(enough, 1)
    return ["/".join(own[-length:]) for own in parts]


def runs_by_folder(runs: Sequence[Run]) -> dict[str, Run]:
    """Key runs by their folders' names, with as much of the paths as tells them apart.

    Raises:
        SrpoError: a run is given twice.
    """
    folders = [run.root.resolve() for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise SrpoError(f"{folder} is given twice; give each run once")
    return dict(zip(map(printable, telling_names(folders)), runs, strict=True))


def setting_text(value: Any) -> str:
    """Return a setting's value as people read it; of a long one, its end."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    text = printable(f"{value:g}" if isinstance(value, float) else str(value))
    return text if len(text) <= _TEXT else f"…{text[1 - _TEXT :]}"


def settings_of(run: Run) -> dict[str, Any]:
    """Return the settings that make a method, by dotted key: all but `run.*`."""
    return flat(run.config.model_dump(exclude={"run"}))


def lineage(run: Run) -> list[Any]:
    """Return what is equal in runs of one row: settings, forks, and their ancestors' settings."""
    own = settings_of(run)
    if run.fork is None or run.parent is None:
        return [own]
    return [own, [run.fork.stage, run.fork.start, run.fork.end], *lineage(run.parent)]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """Name rows, given one run of each: route.method, and settings that differ within a method."""
    settings = [settings_of(run) for run in runs]
    return [_label(run, own, settings) for run, own in zip(runs, settings, strict=True)]


def _label(run: Run, own: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> str:
    rivals = [other for other in settings if other["route.method"] == own["route.method"]]
    keys = differing(rivals)
    parts = [str(own["route.method"])]
    parts += [f"{key}={setting_text(own.get(key))}" for key in keys[:_LABEL_SETTINGS]]
    if len(keys) > _LABEL_SETTINGS:
        parts.append(f"and {len(keys) - _LABEL_SETTINGS} more")
    if run.fork is not None:
        parts.append(f"fork at {run.fork.stage} of step {run.fork.start}")
    return ", ".join(parts)


def differing(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ between the mappings, in their order."""
    keys = dict.fromkeys(key for own in values for key in own)
    return [key for key in keys if any(own.get(key) != values[0].get(key) for own in values)]


def unlike(runs: Mapping[str, Run]) -> list[str]:
    """Say in what the runs, given by name, are not like with like."""
    found = []
    for area, facts in _AREAS.items():
        values = {name: facts(run) for name, run in runs.items()}
        texts = [f"{key} {_holders(values, key)}" for key in differing(list(values.values()))]
        if texts:
            found.append(f"not like with like: runs differ in {area}: {'; '.join(texts)}")
    return found


def _holders(values: Mapping[str, Mapping[str, Any]], key: str) -> str:
    names: dict[str, list[str]] = {}
    for name, own in values.items():
        names.setdefault(setting_text(own.get(key)), []).append(name)
    return " or ".join(f"{value} ({', '.join(holders)})" for value, holders in names.items())


def _task(run: Run) -> dict[str, Any]:
    code, questions = (str(run.record.get(f"{n}_digest") or "") for n in ("task", "questions"))
    return {
        **flat(run.config.data.model_dump(exclude={"max_prompt_length"}), "data"),
        "code of the task": code[:_DIGEST],
        "questions": questions[:_DIGEST],
    }


def _evaluation(run: Run) -> dict[str, Any]:
    settings = run.config.evaluate.model_dump(exclude={"batch_size"})
    threshold = {"verify.success_threshold": run.config.verify.success_threshold}
    return {**{f"evaluate.{key}": value for key, value in settings.items()}, **threshold}


def _hardware(run: Run) -> dict[str, Any]:
    known = run.record.get("hardware") or {}
    return {key: known.get(key) for key in ("machine", "device", "gpu", "threads")}


def _start(run: Run) -> dict[str, Any]:
    return {"model.path": run.config.model.path}


_AREAS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "task": _task,
    "evaluation": _evaluation,
    "hardware": _hardware,
    "the model at the start": _start,
}
