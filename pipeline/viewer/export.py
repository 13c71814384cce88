"""The same pages as static files: a folder to open from a disk or put on any web server."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import StoreError
from pipeline.run.run import Run
from pipeline.viewer.page import PLOTLY, STATIC, Kind, Runs, runs_by_name
from pipeline.viewer.page_registry import KINDS

Progress = Callable[[int, int], None]
Elsewhere = Callable[[int], None]


def export(
    runs: Sequence[Run], folder: Path, progress: Progress, elsewhere: Elsewhere | None = None
) -> int:
    """Write the pages of these runs under `folder`; return how many.

    Of very large runs it writes the rollouts of some steps only (`exported_steps`).

    Args:
        folder: missing or empty; its index.html, written last, is the page to open.
        progress: called with pages written and pages in all.
        elsewhere: has `export_pages` done for all of so many pages; None: they are written here.

    Raises:
        StoreError: there is something in the folder already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder}: there is something already; choose another folder to export")
    pages = len(_listed(runs))
    shutil.copytree(STATIC, folder / "static", dirs_exist_ok=True)
    shutil.copyfile(PLOTLY, folder / "static" / "plotly.min.js")
    if elsewhere is not None:
        elsewhere(pages - 1)  # the last one says that all are there
    first = 0 if elsewhere is None else pages - 1
    export_pages(runs, folder, first, pages, lambda done: progress(first + done, pages))
    return pages


def export_pages(
    runs: Sequence[Run],
    folder: Path,
    first: int,
    last: int,
    written: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the pages [first, last) of an export; the last of all is the one to open.

    Args:
        written: told how many are written.
    """
    shown = runs_by_name(runs)
    for done, (kind, parameters) in enumerate(_listed(runs)[first:last], start=1):
        _write(kind, shown, parameters, folder)
        written(done)


def _listed(runs: Sequence[Run]) -> list[tuple[Kind, tuple[str, ...]]]:
    """Return all pages in the order in which they are written."""
    shown = runs_by_name(runs)
    return [(kind, parameters) for kind in KINDS for parameters in kind.pages(shown)][::-1]


def _write(kind: Kind, runs: Runs, parameters: tuple[str, ...], folder: Path) -> None:
    place = folder / unquote(kind.page(*parameters).path).strip("/")
    if not place.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{place}: a page outside {folder}; the run's tables hold such a name")
    html = kind.html(runs, *parameters, exported=True)
    place.mkdir(parents=True, exist_ok=True)
    (place / "index.html").write_text(html, encoding="utf-8")
