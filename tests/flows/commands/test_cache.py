"""`srpo cache` without a store; clearing is tests/pipeline/remote/test_mirror_sync."""

import sys
from pathlib import Path

import pytest

from flows.cli import main


def said(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str:
    monkeypatch.setattr(sys, "argv", ["srpo", "cache", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def test_runs_are_listed_by_their_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    runs = tmp_path / "cache" / "s3" / "bucket" / "runs"
    for name, size in (("first", 300_000), ("first/evaluations/0a", 100_000), ("second", 0)):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_bytes(b"." * size)
        (runs / name).with_name(f".{Path(name).name}.mirror").touch()
    (runs / ".mistyped.mirror").touch()
    assert said(monkeypatch) == 0
    lines = [line.split(": ") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == [
        "s3://bucket/runs/first",
        "s3://bucket/runs/first/evaluations/0a",
        "s3://bucket/runs/second",
        f"{tmp_path}/cache",
    ]
    assert lines[2][1] == "0 bytes" and lines[3][1].endswith(" in all")
    assert said(monkeypatch, "s3://bucket/runs/second") == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_a_folder_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(monkeypatch, tmp_path, "--clear") == 2
    assert "only runs at URLs are cached" in capsys.readouterr().err
