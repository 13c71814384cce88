"""The section `data`: one task as ever, or a mixture; what is refused."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import load_config, validate_config
from pipeline.config.sections import Config
from pipeline.errors import ConfigError

TEXT = """
[model]
path = "demo"

[data.mixture.chemistry]
task = "science_qa"
path = "/data/chemistry"
weight = 2

[data.mixture.arithmetic]
"""


def mixed(*overrides: str, tmp_path: Path, text: str = TEXT) -> Config:
    file = tmp_path / "mix.toml"
    file.write_text(text)
    return load_config(str(file), overrides)


def test_entries_are_ordered_by_name_and_called_as_their_task_unless_they_say(
    tmp_path: Path,
) -> None:
    data = mixed(tmp_path=tmp_path).data
    assert data.mixed == ("arithmetic", "chemistry") and data.title == "arithmetic + chemistry"
    found = {name: (e.task, e.path, e.weight) for name, e in data.sources.items()}
    assert found == {
        "arithmetic": ("arithmetic", None, 1.0),
        "chemistry": ("science_qa", "/data/chemistry", 2.0),
    }


def test_a_resolved_mixture_is_read_again_as_it_is(tmp_path: Path) -> None:
    config = mixed(tmp_path=tmp_path)
    assert validate_config(config.model_dump(), "again") == config


def test_a_run_of_one_task_is_recorded_as_ever() -> None:
    data = load_config("demo").data
    assert data.recorded() == {"task": "arithmetic", "path": None, "max_prompt_length": 128}
    assert data.mixed == () and list(data.sources) == ["arithmetic"]


def test_overrides_reach_into_entries(tmp_path: Path) -> None:
    data = mixed(
        "data.mixture.chemistry.weight=0.5",
        "data.mixture.arithmetic.task=mine.py",
        "data.mixture.more.task=tool_use",
        tmp_path=tmp_path,
    ).data
    assert [(n, e.task, e.weight) for n, e in data.sources.items()] == [
        ("arithmetic", "mine.py", 1.0),
        ("chemistry", "science_qa", 0.5),
        ("more", "tool_use", 1.0),
    ]
    alone = mixed("data.mixture=none", "data.task=arithmetic", tmp_path=tmp_path).data
    assert alone == load_config("demo", ["data.max_prompt_length=2048"]).data


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.mixture.arithmetic.weight=0", "data.mixture.arithmetic.weight is 0: .*greater than"),
        ("data.mixture.arithmetic.weight=-1", "data.mixture.arithmetic.weight is -1: "),
        ("data.mixture.arithmetic.weight=NaN", "data.mixture.arithmetic.weight is NaN: "),
        ("data.mixture.arithmetic.weight=much", 'arithmetic.weight is "much": '),
        ("data.mixture.arithmetic.wieght=1", "unknown key data.mixture.arithmetic.wieght"),
        ("data.mixture.a/b.task=arithmetic", "the name 'a/b': expected at most 40 letters"),
        ("data.mixture.arithmetic=3", "data.mixture.arithmetic is 3: "),
        ("data.task=tool_use", "data.task and data.mixture are both given: leave one out"),
        ("data.path=/data", "data.path and data.mixture are both given: leave one out"),
        ("data.mixture=none", "data.task is missing$"),
        ('data.mixture={"arithmetic": {}}', "data.mixture has 1 tasks, expected two or more"),
    ],
)
def test_refused(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        mixed(override, tmp_path=tmp_path)
    assert "\n" not in str(refused.value)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    text = TEXT + '[data.mixture.chemistry]\ntask = "tool_use"\n'
    with pytest.raises(ConfigError, match=r"not valid TOML: .*chemistry.* twice"):
        mixed(tmp_path=tmp_path, text=text)


@pytest.mark.parametrize("values", [[], [{"task": "arithmetic"}], "arithmetic", 3])
def test_anything_but_tables_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.mixture is .*: expected a table for each task"):
        validate_config({"data": {"mixture": values}, "model": {"path": "demo"}}, "x")
