"""All measurements of speed and memory, one table: `make bench`.

    python -m benchmarks [--quick] [--write docs/PERFORMANCE.md] [--peer FOLDER] …

Against TRL (`against_trl`), against ourselves at other sizes (`scaling`), and at a large vocabulary
(`vocabulary_memory`).
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.against_trl import add_arguments, trl_lines
from benchmarks.report import markdown, show, write
from benchmarks.scaling import PLOT, scaling_lines
from benchmarks.vocabulary_memory import memory_lines


def main() -> None:
    """Measure everything, print one table, write it into a page if one is named."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        plot = PLOT if arguments.write else Path(scratch) / PLOT.name
        parts = [
            trl_lines(arguments),
            scaling_lines(arguments.quick, plot),
            memory_lines(arguments.quick),
        ]
    lines = [line for found, _ in parts for line in found]
    notes = [note for _, said in parts for note in said]
    show(lines, notes)
    if arguments.write:
        write(arguments.write, markdown(lines, notes))


if __name__ == "__main__":
    main()
