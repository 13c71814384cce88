"""Presets, TOML files and dotted overrides: what they mean, and the one line when they err."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import config_keys, load_config, preset_names, preset_text
from pipeline.config.sections import Config
from pipeline.errors import ConfigError

SHIPPED = {f"{method}-paper" for method in ("srpo", "grpo", "sdpo", "rlsd")}
SHIPPED |= {
    "demo",
    "demo-grpo",
    "demo-sdpo",
    "demo-rlsd",
    "smollm2",
    "smoke-science-qa",
    "smoke-tool-use",
}
MINIMAL = '[data]\ntask = "arithmetic"\n[model]\npath = "demo"\n'


@pytest.fixture
def minimal(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    return str(path)


def refusal(source: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def overridden(source: str, override: str) -> Any:
    section, name = override.partition("=")[0].strip().split(".")[:2]
    return getattr(getattr(load_config(source, [override]), section), name)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    config = load_config(name, ["data.path=somewhere"])
    assert isinstance(config, Config)
    assert preset_text(name).startswith("#")


def test_the_presets_that_ship() -> None:
    assert set(preset_names()) >= SHIPPED
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize("name", ["demo", "demo-grpo", "demo-sdpo", "demo-rlsd"])
def test_the_demo_keeps_its_tail_bucket(name: str) -> None:
    config = load_config(name)
    assert config.route.method == {"demo": "srpo"}.get(name, name.removeprefix("demo-"))
    assert config.model.path == "demo"
    demo = files("data") / "demo" / "policy" / "config.json"
    assert config.route.top_k < json.loads(demo.read_text())["vocab_size"]


@pytest.mark.parametrize("name", ["smoke-science-qa", "smoke-tool-use"])
def test_smoke_presets_run_three_small_steps(name: str) -> None:
    config = load_config(name)
    assert (config.run.steps, config.generate.questions, config.generate.rollouts) == (3, 4, 8)
    assert config.model.path == "random"


def test_a_file_is_read(minimal: str) -> None:
    config = load_config(minimal)
    assert (config.data.task, config.model.path) == ("arithmetic", "demo")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps=7", 7),
        ("run.steps = 7", 7),
        (" run.steps=7 ", 7),
        ("update.learning_rate=1e-4", 1e-4),
        ("update.dual_clip=none", None),
        ("run.max_hours=none", None),
        ("run.max_hours=null", None),
        ("run.max_hours=2", 2.0),
        ("route.feedback=true", True),
        ("route.method=sdpo", "sdpo"),
        ('route.method="sdpo"', "sdpo"),
        ("data.path=none", None),
        ("data.path=a=b", "a=b"),
        ('data.path="a,b"', "a,b"),
        ("data.path='a,b'", "a,b"),
        ("data.path='none'", "none"),
        ("data.path='a' b", "'a' b"),  # no quoted text
        ("data.task=123", "123"),  # a name stays text even if it looks like a number
        ("model.path=true", "true"),
        ("model.chat_template_kwargs.enable_thinking=false", {"enable_thinking": False}),
        ('model.chat_template_kwargs={"a": 1}', {"a": 1}),
    ],
)
def test_overrides(minimal: str, override: str, expected: object) -> None:
    found = overridden(minimal, override)
    assert found == expected
    assert type(found) is type(expected)


def test_texts_need_no_quotes(minimal: str) -> None:
    assert overridden(minimal, "data.path=folder with spaces") == "folder with spaces"


def test_the_last_override_counts(minimal: str) -> None:
    assert load_config(minimal, ["run.steps=7", "run.steps=8"]).run.steps == 8


def test_overrides_reach_what_a_preset_sets() -> None:
    config = load_config("grpo-paper", ["route.mini_batch=16", "model.path=Qwen/Qwen3-4B"])
    assert (config.route.mini_batch, config.model.path) == (16, "Qwen/Qwen3-4B")
    assert config.update.learning_rate == 1e-6
    assert config.model.chat_template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize("override", ["run.steps", "steps=3", "=3", "", "run.steps:3"])
def test_malformed_overrides(minimal: str, override: str) -> None:
    message = refusal(minimal, override)
    assert repr(override) in message
    assert "expected section.key=value" in message


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("update.learning_rte=1", "update.learning_rte", "update.learning_rate"),
        ("rout.method=grpo", "rout.method", "route.method"),
        ("generate.rolouts=4", "generate.rolouts", "generate.rollouts"),
    ],
)
def test_unknown_overrides(minimal: str, override: str, unknown: str, nearest: str) -> None:
    expected = f"unknown key {unknown}; the nearest valid one is {nearest}"
    assert expected in refusal(minimal, override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.steps=many", "run.steps"),
        ("run.steps=3.5", "run.steps"),
        ("run.steps=none", "run.steps"),
        ("route.feedback=1", "route.feedback"),
        ("data.task=none", "data.task"),
        ("generate.rollouts=[1]", "generate.rollouts"),
    ],
)
def test_overrides_of_the_wrong_type(minimal: str, override: str, key: str) -> None:
    assert f"{key} is " in refusal(minimal, override)


@pytest.mark.parametrize("override", ["run.steps.fast=1", "data.task.name=x"])
def test_overrides_below_a_plain_setting(minimal: str, override: str) -> None:
    """A deeper key of something that is no table is a clear line too, set before or not."""
    key = ".".join(override.split(".")[:2])
    assert key in refusal(minimal, override)


@pytest.mark.parametrize(
    "text", ["[data\n", "x = \n", "[run]\nsteps = 1\nsteps = 2\n", "run = nan!\n"]
)
def test_malformed_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    message = refusal(str(path))
    assert message.startswith(f"{path}: not valid TOML")


@pytest.mark.parametrize("name", ["mine.toml", "MINE.TOML"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_toml_as_windows_writes_it(
    tmp_path: Path, minimal: str, name: str, end: str, mark: bytes
) -> None:
    path = tmp_path / "other" / name
    path.parent.mkdir()
    path.write_bytes(mark + MINIMAL.replace("\n", end).encode())
    assert load_config(str(path)) == load_config(minimal)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
def test_toml_in_utf_16(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(MINIMAL.encode(encoding))
    assert "UTF-16; save it as UTF-8" in refusal(str(path))


def test_toml_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe[data]")
    assert str(path) in refusal(str(path))


def test_overrides_into_a_section_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("run = 3\n" + MINIMAL, encoding="utf-8")
    assert "run" in refusal(str(path), "run.steps=3")


def test_unknown_keys_in_a_file_name_file_key_and_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL + "[updat]\nlearning_rate = 1.0\n[weigh]\nbet = 1.0\n")
    message = refusal(str(path))
    assert message.startswith(f"{path}: ")
    assert "unknown key updat; the nearest valid one is update" in message
    assert "unknown key weigh.bet; the nearest valid one is weigh.beta" in message


@pytest.mark.parametrize("source", ["srpo-papr", "missing.toml", "", "."])
def test_neither_file_nor_preset(source: str) -> None:
    message = refusal(source)
    assert "neither a TOML file nor a preset" in message
    assert "srpo-paper" in message


def test_the_nearest_preset_is_suggested() -> None:
    assert "did you mean srpo-paper?" in refusal("srpo-papr")


def test_keys_are_all_dotted_and_unique() -> None:
    keys = config_keys()
    assert len(set(keys)) == len(keys)
    assert {"run.steps", "weigh.beta", "evaluate.every"} <= set(keys)
    assert {key.split(".")[0] for key in keys} == set(Config.model_fields)


def test_an_override_below_a_text_is_one_clear_line(minimal: str) -> None:
    message = refusal(minimal, "data.task.name=x")
    assert message == ("--set 'data.task.name=x': task is \"arithmetic\", not a table of settings")


def test_a_time_may_be_one_of_toml(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    text = '[data]\ntask = "arithmetic"\n[model]\npath = "demo"\nprompt_time = '
    for written, read in (("2026-11-30T08:00:00", "T08:00:00"), ("2026-11-30", "T00:00:00")):
        path.write_text(text + written)
        assert load_config(str(path)).model.prompt_time == "2026-11-30" + read
    path.write_text(text + "2026-11-30T08:00:00Z")
    with pytest.raises(ConfigError, match="has a time zone; expected a local time without one"):
        load_config(str(path))
