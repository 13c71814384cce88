"""The page that `srpo compare --out` writes, opened from the disk in a browser."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.compare.comparison import compare_runs
from pipeline.compare.report import write_folder
from tests.builders.accuracy_runs import make_run
from tests.pipeline.viewer.conftest import Watched

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_in_any_width_and_light(
    width: int, scheme: str, tmp_path: Path, watched: Callable[..., Watched]
) -> None:
    runs = [
        make_run(tmp_path / f"run-{beta}", {0: 0.1, 4: 0.9}, weigh={"beta": beta})
        for beta in (0.5, 1.0)
    ]
    write_folder(compare_runs(runs, {}), tmp_path / "out")
    shown = watched(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown.page.goto((tmp_path / "out" / "index.html").as_uri())
    assert shown.errors == [] and shown.outside("file://") == []
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    loaded = "[...document.images].map(i => i.complete && i.naturalWidth > 0)"
    assert shown.page.evaluate(loaded) == [True] * 5
    ground = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 28)")
