"""Progress bars for commands, on terminals only; they go to stderr and leave nothing behind."""

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.terminal.console import is_live, open_console

Advance = Callable[[int, int], None]


@contextlib.contextmanager
def bars(*names: str) -> Iterator[list[Advance]]:
    """Show a bar per name as soon as its work begins, and yield the functions that move them.

    Each is told (done, total); time used and an estimate of what is left stand beside the bar.
    """
    console = open_console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = not is_live(console)
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        yield [_advance(progress, name) for name in names]


def _advance(progress: Progress, name: str) -> Advance:
    row = progress.add_task(name, total=1, visible=False, start=False)

    def advance(done: int, total: int) -> None:
        progress.start_task(row)
        progress.update(row, completed=done, total=total, visible=True)

    return advance
