"""Sealed records: every changed byte is found, even one that means nothing in JSON."""

from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.files.sealed_json import MAX_BYTES, read_sealed, write_sealed

RECORD = {"name": "ü\n<b>", "values": [1, 2.5, None, True], "inner": {"b": 1e-9, "a": {}}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "record.json", RECORD)
    return tmp_path / "record.json"


def test_a_record_comes_back_with_its_digest(path: Path) -> None:
    record = read_sealed(path)
    assert len(record.pop("digest")) == 64
    assert record == RECORD
    assert list(record) == list(RECORD)


def test_every_flipped_bit_is_found_and_the_file_named(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            broken = bytearray(whole)
            broken[place] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(StoreError, match=r"record\.json: "):
                read_sealed(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + " ",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"name"', '"name": 1, "name"'),
        lambda text: text.replace("2.5", "2.50"),
        lambda text: text.replace("ü", "\\u00fc"),
        lambda text: text[:-1],
        lambda text: text[: len(text) // 2],
    ],
)
def test_another_text_of_the_same_value_is_found(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreError, match=r"changed since|not valid JSON"):
        read_sealed(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"digest": "x"}', "changed since it was written"),
        ('{"digest": NaN}', "changed since it was written"),
        ('{"a": "\\ud800", "digest": ""}', "changed since it was written"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(StoreError, match=rf"record\.json: {problem}"):
        read_sealed(tmp_path / "record.json")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "record.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(StoreError, match="no record of a run is larger"):
        read_sealed(tmp_path / "record.json")
