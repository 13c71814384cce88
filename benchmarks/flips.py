"""Flip one bit at a time in many places of a finished run, and count which readers notice.

    python -m benchmarks.flips RUN [--flips 500] [--seed 0]

RUN is copied first. Every file is hit at least once, the others by their size. A flip counts as
found if `srpo check` names the file, and as refused if what training, audits and pages read it with
stops with an error that names it.
"""

import argparse
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.faults.bit_flips import flipped, kind, named_by_check, places, refused_by_readers


def main() -> None:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console, started = Console(), time.monotonic()
    tried, found, refused = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="srpo-flips-") as folder:
        root = Path(shutil.copytree(arguments.run, Path(folder) / "run"))
        for place in track(places(root, arguments.flips, arguments.seed), "flips", console=console):
            name = kind(root, place.path)
            tried[name] += 1
            with flipped(place):
                if named_by_check(root, place.path):
                    found[name] += 1
                else:
                    console.print(f"check does not name {place}", markup=False)
                if refused_by_readers(root, place.path):
                    refused[name] += 1
                else:
                    console.print(f"readers do not refuse {place}", markup=False)
    table = Table("file", "flips", "named by check", "refused by readers", box=None)
    for name, number in sorted(tried.items()):
        table.add_row(name, *map(str, (number, found[name], refused[name])))
    table.add_row("all", *map(str, (tried.total(), found.total(), refused.total())))
    console.print(table)
    console.print(f"{time.monotonic() - started:.0f} s, seed {arguments.seed}", highlight=False)


if __name__ == "__main__":
    main()
