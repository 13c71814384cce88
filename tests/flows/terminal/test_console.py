"""Terminals as people have them: ASCII, without colours, dumb, narrow; texts are no markup."""

import codecs
import io
import os
import pty
import re
import struct
import subprocess
import sys
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from flows.terminal import console
from flows.terminal.console import is_live, open_console, show_on_any_terminal
from pipeline.run.run import Run
from tests.flows.training.fake_session import FakeSession
from tests.paths import PROJECT

LIMIT_SECONDS = 120
ASCII = {
    "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"
}  # fmt: skip
COLOURS = re.compile(rb"\x1b\[[0-9;]*[34][0-9]m")


def environment(**values: str) -> dict[str, str]:
    dropped = ("LANG", "LC_ALL", "TERM", "COLUMNS", "NO_COLOR", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": str(PROJECT), **values}


def on_terminal(columns: int, *arguments: str, **values: str) -> tuple[int, bytes]:
    """Run a command on a terminal of so many columns; return its exit code and what it showed."""
    leader, follower = pty.openpty()
    ioctl(follower, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        env=environment(**values),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown, deadline = b"", time.monotonic() + LIMIT_SECONDS
    try:
        while time.monotonic() < deadline and (part := os.read(leader, 65536)):
            shown += part
    except OSError:  # the other side was closed
        pass
    os.close(leader)
    return process.wait(LIMIT_SECONDS), shown


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return FakeSession(tmp_path_factory.mktemp("runs") / "größe [red] :smile: β").run


COMMANDS = [
    ["train", "--help"],
    ["tasks"],
    ["presets"],
    ["presets", "srpo-paper"],
    ["runs", "PARENT"],
    ["audit", "RUN"],
    ["check", "RUN"],
    ["prune", "RUN", "--dry-run"],
    ["train", "demo", "--run", "RUN"],
    ["train", "no such → preset"],
]


@pytest.mark.slow
@pytest.mark.parametrize("terminal", ["xterm", "dumb", "pipe"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_ascii_is_enough_for_every_command(command: list[str], terminal: str, run: Run) -> None:
    names = {"RUN": f"{run.root}", "PARENT": f"{run.root.parent}"}
    arguments = [names.get(word, word) for word in command]
    if terminal == "pipe":
        whole = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=environment(**ASCII),
            capture_output=True,
        )
        code, shown = whole.returncode, whole.stdout + whole.stderr
    else:
        code, shown = on_terminal(40, *arguments, TERM=terminal, NO_COLOR="1", **ASCII)
    assert code in (0, 1, 2), shown
    assert b"Traceback" not in shown and b"UnicodeEncodeError" not in shown, shown
    assert shown and max(shown) < 128, shown
    assert not COLOURS.search(shown)


def test_signs_of_ours_have_ascii_ones_and_others_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    show_on_any_terminal()
    print("β → 2 … ≥ 1.5×, 漢, ⠋, 🙂, \udcff")
    sys.stdout.flush()
    assert written.getvalue() == rb"beta -> 2 ... >= 1.5x, \u6f22, *, \U0001f642, \xff" + b"\n"
    assert "é".encode("ascii", console._ERRORS) == rb"\xe9"
    assert codecs.lookup_error(console._ERRORS)


def test_a_name_that_is_no_utf8_can_be_shown_on_any_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    show_on_any_terminal()
    print("größe \udcff")
    sys.stdout.flush()
    assert written.getvalue() == "größe \\xff\n".encode()


def test_texts_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    open_console().print("runs/[red]a[/red] :smile: [/x]")
    assert capsys.readouterr().out == "runs/[red]a[/red] :smile: [/x]\n"


@pytest.mark.parametrize(("terminal", "live"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_is_not_redrawn(
    terminal: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert is_live(open_console()) == live


def test_a_listing_says_the_run_as_it_is_called(run: Run, tmp_path: Path) -> None:
    code, shown = on_terminal(200, "runs", f"{run.root.parent}", TERM="xterm", LC_ALL="C.UTF-8")
    assert code == 0
    assert "größe [red] :smile: β" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
