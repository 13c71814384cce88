"""`srpo cache`: the disk space that runs at URLs take on this machine, and how to free it."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import FOLDER


def cache(
    folder: Annotated[
        Path | None,
        typer.Argument(help="URL of a run, or of what holds runs; default: all.", **FOLDER),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Free the space of their tables and weights.")
    ] = False,
) -> None:
    """List what is cached of runs at URLs, and how much disk space it takes.

    Cleared files stay in the store; the next command that reads one fetches it again. A run that a
    command is writing to is left alone.

    Example: srpo cache s3://bucket/runs --clear
    """
    from pipeline.errors import ConfigError
    from pipeline.remote import mirror_sync
    from pipeline.remote.mirror_paths import cache_folder, is_mirrored, run_path
    from pipeline.text import size

    if folder is not None and not is_mirrored(folder):
        raise ConfigError(f"{folder}: a folder of this machine; only runs at URLs are cached")
    place = folder or cache_folder()
    for path, taken in sorted(mirror_sync.mirrors(place).items()):
        root, note = run_path(path), ""
        if clear:
            cleared = mirror_sync.clear(root)
            note = ", cleared" if cleared else ", left alone: a command is writing to it"
        print(f"{root}: {size(taken)}{note}")
    left = "left " if clear else ""
    print(f"{place}: {size(sum(mirror_sync.mirrors(place).values()))} {left}in all")
