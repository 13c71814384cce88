"""Where the weighted divergence stands, by prefix survival S: of a run, and of forks of it.

For each run: shares of the sum of w * jsd over its steps by S, the largest weight, and how many of
the taught tokens are really heard, (sum of w)^2 / sum of w^2, as a mean over steps. The first line
is of the tokens themselves.

    srpo replay RUN --from weigh --until weigh --steps 0:40 \\
        --set weigh.survival=weight,unnormalised,hand_over --fork FORKS
    python -m benchmarks.off_path RUN FORKS/* [--picture FILE.png]    the picture needs chromium
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.run.metrics import weight_metrics
from pipeline.run.run import Run
from pipeline.survival import OFF_PATH, log_survival_of

Floats = npt.NDArray[np.float64]

EDGES = (0.9, 0.5, OFF_PATH)
BUCKETS = ("S ≥ 0.9", "0.5 to 0.9", "0.1 to 0.5", "S < 0.1")
COLOURS = ("#1b6e8c", "#6fb1c7", "#f0b775", "#c8553d")
_STYLE = """
body { margin: 0; font: 15px system-ui, sans-serif; color: #222; background: white; }
#picture { width: 860px; padding: 18px; }
.row { display: flex; align-items: center; margin: 7px 0; }
.name { width: 130px; } .sum { width: 70px; text-align: right; color: #555; }
.bar { flex: 1; display: flex; height: 26px; background: #eee; }
.bar span { color: white; font-size: 12px; line-height: 26px; text-align: center;
  overflow: hidden; }
.legend { margin: 12px 0 0 130px; } .legend i { display: inline-block; width: 12px; height: 12px; }
.legend span { margin-right: 18px; }
"""


class Line(NamedTuple):
    """One line of the table.

    Attributes:
        parts: sums by bucket, over the whole that the first run has.
        heard: tokens really heard, over the taught ones.
    """

    name: str
    parts: Floats
    weight_max: float
    heard: float


def by_survival(values: Floats, survival: Floats) -> Floats:
    """Return the sum of the values in each bucket of S."""
    bucket = np.searchsorted(-np.array(EDGES), -survival, side="left")
    return np.bincount(bucket, weights=values, minlength=len(BUCKETS))


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """Return a line of the tokens, and one of each run, over the steps that all of them have."""
    steps = sorted(set.intersection(*(set(run.steps_of("weights")) for run in runs)))
    tokens = np.zeros(len(BUCKETS))
    lines = []
    for run in runs:
        parts, largest, heard = np.zeros(len(BUCKETS)), 0.0, []
        for step in steps:
            teacher, weights = run.read("teacher", step), run.read("weights", step)
            if not teacher.num_rows:
                continue
            survival = np.exp(log_survival_of(teacher))
            weighted = weights["weight"].to_numpy().astype(np.float64) * teacher["jsd"].to_numpy()
            parts += by_survival(weighted, survival)
            found = weight_metrics(weights)
            largest = max(largest, found["weight_max"] or 0.0)
            heard.append((found["effective_tokens"] or 0.0) / teacher.num_rows)
            tokens += by_survival(np.ones(len(survival)), survival) if run is runs[0] else 0.0
        lines.append(Line(run.config.weigh.survival, parts, largest, float(np.mean(heard))))
    whole = lines[0].parts.sum()
    shares = [line._replace(parts=line.parts / whole) for line in lines]
    return [Line("tokens", tokens / tokens.sum(), 1.0, 1.0), *shares]


def table(lines: Sequence[Line]) -> str:
    """Return the lines as a table of markdown."""
    heads = ["", *BUCKETS, "in all", "largest w", "tokens really heard"]
    rows = [
        [
            line.name,
            *(f"{part:.1%}" for part in (*line.parts, line.parts.sum())),
            f"{line.weight_max:.2f}",
            f"{line.heard:.0%}",
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def draw(lines: Sequence[Line], file: Path) -> None:
    """Photograph the lines as bars, in headless chromium."""
    from playwright.sync_api import sync_playwright

    rows = []
    for line in lines:
        spans = "".join(
            f'<span style="width:{100 * part:.2f}%;background:{colour}">'
            f"{f'{part:.0%}' if part >= 0.04 else ''}</span>"
            for part, colour in zip(line.parts, COLOURS, strict=True)
        )
        rows.append(
            f'<div class="row"><div class="name">{line.name}</div><div class="bar">{spans}</div>'
            f'<div class="sum">{line.parts.sum():.0%}</div></div>'
        )
    legend = "".join(
        f'<span><i style="background:{colour}"></i> {name}</span>'
        for name, colour in zip(BUCKETS, COLOURS, strict=True)
    )
    body = f'<div id="picture">{"".join(rows)}<div class="legend">{legend}</div></div>'
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 900, "height": 400})
        page.set_content(f"<style>{_STYLE}</style>{body}")
        page.locator("#picture").screenshot(path=file)
        browser.close()


def main() -> None:
    """Read the runs and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    chosen = parser.parse_args()
    lines = lines_of([Run.open(path) for path in chosen.runs])
    print(table(lines))
    if chosen.picture:
        draw(lines, chosen.picture)


if __name__ == "__main__":
    main()
