"""A warm start as a whole: its folder and record, kills, what it refuses."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.warmstart import work
from flows.warmstart.learning import StepResult
from flows.warmstart.work import Outcome, warm_start
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.files.sealed_json import read_sealed
from tests.builders.policies import open_on_cpu
from tests.conftest import OpenPolicy, Srpo
from tests.flows.warmstart.small_starts import SETTINGS, small_config
from tests.paths import PROJECT

LORA = ("model.lora.rank=4", "model.base_dtype=bfloat16")
KILLED = """
import os, signal, sys
from pathlib import Path
from flows.warmstart import work
from tests.flows.warmstart.small_starts import small_config
work.SAVE_EVERY = 2
def die(done, result):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
work.warm_start(small_config(*sys.argv[3:]), Path(sys.argv[1]), die)
"""


def quiet(done: int, result: StepResult) -> None:
    """Show nothing."""


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[Path, Outcome]]:
    """Warm starts that nothing disturbed, by their settings."""
    made = {}
    for name, settings in (("full", ()), ("lora", LORA)):
        out = tmp_path_factory.mktemp(name) / "policy"
        made[settings] = out, warm_start(small_config(*settings), out, quiet)
    return made


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a state after every second step."""
    monkeypatch.setattr(work, "SAVE_EVERY", 2)


def test_the_folder_is_a_model_and_says_how_it_was_made(
    whole: dict[tuple[str, ...], tuple[Path, Outcome]], demo_policy: OpenPolicy
) -> None:
    out, outcome = whole[()]
    assert not out.with_name("policy.unfinished").exists()
    record = read_sealed(out / "warmstart.json")
    assert record["sha256"] == {n: d for n, d in digests(out).items() if n != "warmstart.json"}
    assert record["config"]["warmstart"]["steps"] == 5
    assert record["versions"]["torch"] and record["hardware"]["threads"] == 1
    assert (record["examples"], record["teacher_examples"]) == (20, 6)
    assert 3 <= record["teacher_examples_with_other_words"] <= 6
    assert [StepResult(**step) for step in record["steps"]] == outcome.steps
    assert outcome.steps[-1].loss < outcome.steps[0].loss
    assert outcome.policy_version == record["policy_version"]
    assert record["policy_version"].startswith("000005-")
    made, start = open_on_cpu(out), demo_policy(teacher="live")
    assert made.prompts.template == start.prompts.template and made.stops == start.stops
    assert any(
        not bool((a == b).all())
        for a, b in zip(made.model.parameters(), start.model.parameters(), strict=True)
    )


def test_with_adapters_the_folder_is_an_adapter(
    whole: dict[tuple[str, ...], tuple[Path, Outcome]], demo_policy: OpenPolicy
) -> None:
    out, _ = whole[LORA]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 4)
    assert read_sealed(out / "warmstart.json")["base_sha256"]["model.safetensors"]
    assert not (out / "model.safetensors").exists() and not (out / "optimizer.safetensors").exists()
    lora = {"rank": 4, "adapter": str(out)}
    made = demo_policy(teacher="live", lora=lora, base_dtype="bfloat16")
    moved = [t for name, t in made.trainable().items() if name.endswith("lora_B")]
    assert moved and all(float(t.detach().abs().max()) > 0 for t in moved)


@pytest.mark.parametrize(
    ("settings", "step", "first"),
    [((), 1, 1), ((), 3, 3), ((), 5, 5), (LORA, 4, 3)],
    ids=["full-1", "full-3", "full-5", "lora-4"],
)
def test_killed_and_gone_on_with_it_has_the_same_bytes(
    tmp_path: Path,
    whole: dict[tuple[str, ...], tuple[Path, Outcome]],
    settings: tuple[str, ...],
    step: int,
    first: int,
) -> None:
    """Step 4 is killed before its state is kept, so the third is made again."""
    out = tmp_path / "policy"
    code = [sys.executable, "-c", KILLED, str(out), str(step), *settings]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(code, cwd=PROJECT, env=env, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not out.exists()
    seen: list[int] = []
    outcome = warm_start(small_config(*settings), out, lambda n, _: seen.append(n))
    assert seen == list(range(first, 6))
    assert digests(out) == digests(whole[settings][0])
    assert outcome == whole[settings][1]
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_killed_while_it_keeps_a_state_or_cleans_up(
    tmp_path: Path,
    whole: dict[tuple[str, ...], tuple[Path, Outcome]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, config = tmp_path / "policy", small_config()

    def failing(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("save_snapshot", "write_weights", "remove_folder"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(work, place, failing)
            warm_start(config, out, quiet)
    assert warm_start(config, out, quiet) == whole[()][1]
    assert digests(out) == digests(whole[()][0])
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def interrupted(config: Config, out: Path) -> Path:
    """Stop a warm start after its third step; return the folder of its states."""

    def stop(done: int, result: StepResult) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_start(config, out, stop)
    return out.with_name(f"{out.name}.unfinished")


def test_other_settings_and_other_data_do_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "policy"
    states = interrupted(small_config(), out)
    assert sorted(p.name for p in states.iterdir()) == ["000002", "000002.json", "begun.json"]
    with pytest.raises(ConfigError, match=r"begun with other settings: warmstart.learning_rate is"):
        warm_start(small_config("warmstart.learning_rate=1e-4"), out, quiet)
    with monkeypatch.context() as patch:
        patch.setattr("data.word_problems._FORMS", ("{text}",) * 4)
        with pytest.raises(StoreError, match="was begun with other examples_digest"):
            warm_start(small_config(), out, quiet)
    (states / "000002" / "model.safetensors").write_bytes(b"0" * 8)
    with pytest.raises(StoreError, match=r"model\.safetensors"):
        warm_start(small_config(), out, quiet)
    shutil.rmtree(states)
    assert len(warm_start(small_config(), out, quiet).steps) == 5


def test_a_taken_folder_and_a_task_without_solutions_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    out.mkdir()
    with pytest.raises(StoreError, match="policy: there is something already; choose another"):
        warm_start(small_config(), out, quiet)
    for unnamed in (Path("."), Path("/"), Path("..")):
        with pytest.raises(StoreError, match=r"^[./]+: there is something already"):
            warm_start(small_config(), unnamed, quiet)
    out.rmdir()
    with pytest.raises(DataError, match="none of its 2,048 training questions has a worked"):
        warm_start(small_config("data.task=arithmetic", "data.path=none"), out, quiet)
    assert list(tmp_path.iterdir()) == []


def test_the_command_shows_steps_and_says_how_to_go_on(tmp_path: Path, srpo: Srpo) -> None:
    out = tmp_path / "policy"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    code, said, error = srpo("warmstart", "demo", "--out", out, *settings)
    assert code == 0, error
    lines = said.splitlines()
    assert [line.split("  ")[0] for line in lines[:5]] == [f"step {n}/5" for n in range(1, 6)]
    assert "20 worked solutions, 6 of them behind the teacher's prompt" in lines[5]
    assert f"{out / 'warmstart.json'}" in lines[6]
    assert lines[7].startswith("train it: srpo train demo --set data.task=word_problems ")
    assert lines[7].endswith(f" --set model.path={out}")
    code, _, error = srpo("warmstart", "demo", "--out", out, *settings)
    assert code == 2 and "there is something already" in error
    code, _, error = srpo("warmstart", "demo", "--out", tmp_path / "other")
    assert code == 2 and "none of its 2,048 training questions has a worked solution" in error
