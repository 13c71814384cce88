"""SIGKILL at random moments of demo runs, resumed each time: the campaign of tests/faults, in full.

    python -m benchmarks.kills --kills 200 --seed 0 [--first 0] [--folder DIR]
    python -m benchmarks.kills --kills 5 --others    5 kills each of stage, replay, evaluate, policy

Kill n is drawn from the seed and n alone, so `--first N --kills 1` repeats one of them. Each kill
becomes a line of DIR/kills.jsonl when it is over. A failure ends the campaign; the folder then
holds the run, its logs and its journals.
"""

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.rerun_kills import kill_commands
from tests.faults.train_kills import Campaign, Kill, as_line


def report(console: Console, kills: list[Kill]) -> None:
    """Print what the kills hit, and what they cost."""
    table = Table(title=f"{len(kills)} kills of {len({k.run for k in kills})} runs, per victim")
    for name in ("hit", "kills", "command went on", "ended in one line", "gone s, max"):
        table.add_column(name)
    for name in ("stages lost, max", "lost s, max", "updates replayed, max", "replay s, max"):
        table.add_column(name)
    for hit, number in sorted(Counter(kill.kind for kill in kills).items()):
        of = [kill for kill in kills if kill.kind == hit]
        table.add_row(
            hit,
            str(number),
            str(sum(k.ended == 0 for k in of)),
            str(sum(k.ended == 2 for k in of)),
            f"{max((k.gone or 0.0) for k in of):.1f}",
            str(max(len(k.lost) for k in of)),
            f"{max(k.lost_seconds for k in of):.2f}",
            str(max(k.replayed for k in of)),
            f"{max(k.replay_seconds for k in of):.2f}",
        )
    console.print(table)
    lost = [kill.lost_seconds + kill.replay_seconds for kill in kills]
    console.print(f"computed again per kill: median {statistics.median(lost):.2f} s")
    console.print(f"stages lost: {dict(Counter(len(kill.lost) for kill in kills))}")


def main() -> None:
    """Run a campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill")
    parser.add_argument("--folder", type=Path, help="an empty folder; unset: a temporary one")
    parser.add_argument("--others", action="store_true", help="commands other than train")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="kills-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.others:
        for cut in kill_commands(folder, options.seed, options.kills):
            print(f"{cut.name} killed after {cut.after:.1f} CPU s, gone after {cut.gone:.1f} s")
        return
    trainings(folder, options.seed, options.first, options.kills)


def trainings(folder: Path, seed: int, first: int, kills: int) -> None:
    """Kill trainings, and print a table of the outcomes."""
    done: list[Kill] = []
    campaign = Campaign(folder, seed)
    print(f"{folder}: an undisturbed command takes {campaign.work:.1f} CPU seconds", flush=True)
    try:
        for kill in campaign.kills(first, kills):
            done.append(kill)
            print(as_line(kill), flush=True)
            with (folder / "kills.jsonl").open("a", encoding="utf-8") as file:
                file.write(as_line(kill) + "\n")
    finally:
        campaign.close()
        if done:
            report(Console(width=120), done)


if __name__ == "__main__":
    main()
