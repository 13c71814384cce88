"""Texts that try to do something to a terminal come out as what they are."""

import os
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import command, encodable, go_on, joined_lines, printable, state_word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, äöü €, 漢字, 🙂", "plain, äöü €, 漢字, 🙂"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("private \ue000", "private \\ue000"),
        ("tag \U000e0041", "tag \\ue0041"),
        ("a\nb\tc\rd\x00", "a\\nb\\tc\\rd\\x00"),
        ("[bold]no markup[/bold]", "[bold]no markup[/bold]"),
    ],
)
def test_what_acts_or_hides_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_ends_are_kept_on_request_and_carriage_returns_never() -> None:
    assert printable("a\n\tb\r", newlines=True) == "a\n\tb\\r"


def test_long_texts_are_cut_and_the_rest_counted() -> None:
    assert printable("x" * 100_000, 10) == "x" * 10 + "… (99,990 more characters)"
    assert printable("x" * 10, 10) == "x" * 10


@given(st.text(st.characters(exclude_categories=[]), max_size=50))
def test_no_character_that_acts_is_left(text: str) -> None:
    shown = printable(text)
    assert {unicodedata.category(c)[0] for c in shown} <= set("LMNPSZ")
    assert "\u2028" not in shown
    shown.encode("utf-8")


def test_lone_surrogates_can_be_encoded() -> None:
    assert encodable("a\ud800b").encode() == b"a?b"
    assert encodable("ä") == "ä"


NAMES = [
    "runs/plain-1",
    "my runs/the first",
    "two  spaces",
    'it\'s "quoted"',
    "$HOME `id` $(id) !x",
    "-run",
    "~",
    "~user/run",
    "läuft/日本/🙂",
    "*?[a]{b}",
    "a;b&c|d>e#f",
    "back\\slash",
    "line\nend\ttab",
    "esc\x1b[31m",
    "soft\u00adhyphen\u202e",
    "tag\U000e0041",
    "not-utf8-\udcff",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_command_can_be_pasted(name: str) -> None:
    path = Path(name)
    printed = command("evaluate", path, "--set", f"data.path={name}")
    assert printable(printed) == printed
    words = f"srpo() {{ printf '%s\\0' \"$@\"; }}; {printed}".encode()
    utf8 = {**os.environ, "LC_ALL": "C.UTF-8"}
    found = subprocess.run(["bash", "-c", words], check=True, capture_output=True, env=utf8).stdout
    read = [word.decode("utf-8", "surrogateescape") for word in found.split(b"\0")[:-1]]
    found_path = f"./{path}" if name == "-run" else f"{path}"
    assert read == ["evaluate", found_path, "--set", f"data.path={name}"]


def test_plain_paths_are_not_quoted() -> None:
    assert go_on(Path("runs/a-1")) == "srpo train --resume --run runs/a-1"
    assert command("evaluate", state_word(Path("runs/a b"), 3)) == "srpo evaluate 'runs/a b@3'"


def test_lines_become_one_and_spaces_in_a_path_stay() -> None:
    assert joined_lines("a  b:\n   what\r\n\n  was  wrong\n") == "a  b: what was  wrong"
