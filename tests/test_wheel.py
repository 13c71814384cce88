"""The wheel is whole: installed outside the clone, it trains and shows what it trained."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.paths import PROJECT

PACKAGES = ("pipeline", "stages", "flows", "data")


def call(*command: object, folder: Path) -> str:
    """Run a command in a folder, unaware of this process's Python paths; return its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(folder: Path) -> Path:
    """Build the wheel and install it into a new environment; return the environment's bin folder.

    What it depends on is that of the environment of the tests, which is only put on the path: its
    .pth files, and with them the clone of an editable installation, count for nothing there.
    """
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(
        *(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", folder, PROJECT),
        folder=folder,
    )
    (wheel,) = folder.glob("srpo-*.whl")
    environment = folder / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    call(*pip, "--python", python, "install", "--quiet", "--no-deps", wheel, folder=folder)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = call(python, "-c", code, folder=folder)
    beside = [path for path in sys.path if path.endswith("site-packages")]
    (Path(place.strip()) / "dependencies.pth").write_text("\n".join(beside) + "\n")
    return environment / "bin"


@pytest.mark.campaign
def test_the_wheel_trains_outside_the_clone(tmp_path: Path) -> None:
    programs = install(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import json, {0}; print(json.dumps([m.__path__[0] for m in ({0},)]))"
    places = call(programs / "python", "-c", code.format(", ".join(PACKAGES)), folder=elsewhere)
    for package in map(Path, json.loads(places)):
        assert package.is_relative_to(tmp_path)
        assert (package / "py.typed").is_file()

    srpo = programs / "srpo"
    assert "srpo-paper" in call(srpo, "presets", folder=elsewhere)
    call(srpo, "train", "demo", "--run", "run", "--set", "run.steps=2", folder=elsewhere)
    assert (elsewhere / "run" / "steps" / "000001" / "metrics.json").is_file()
    call(srpo, "check", "run", folder=elsewhere)
    call(srpo, "view", "run", "--export", "pages", folder=elsewhere)
    assert list((elsewhere / "pages").rglob("*.html"))
    call(srpo, "compare", "run", "--out", "figures", folder=elsewhere)
    assert list((elsewhere / "figures").rglob("*.html"))

    metadata = call(
        programs / "python",
        "-c",
        "from importlib.metadata import distribution as d; print(*d('srpo').files, sep='\\n')",
        folder=elsewhere,
    )
    assert {"LICENSE", "NOTICE"} <= {Path(line).name for line in metadata.splitlines()}
