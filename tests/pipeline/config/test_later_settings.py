"""Settings that are added later leave tables, versions and folders alone at their default."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from pipeline.config.field_types import Later, Section
from pipeline.config.load import load_config, validate_config
from pipeline.config.sections import Config
from pipeline.tables.manifest import flat
from tests.golden.keep_runs import KEPT


class Inner(Section):
    old: int = 1
    new: Later[int] = Field(2, gt=0)


class Outer(Section):
    inner: Inner = Inner()
    whole: Later[Inner] = Inner()
    named: dict[str, Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ({}, {"inner": {"old": 1}, "named": {}}),
        ({"inner": {"new": 2}, "whole": {"old": 1}}, {"inner": {"old": 1}, "named": {}}),
        ({"inner": {"new": 3}}, {"inner": {"old": 1, "new": 3}, "named": {}}),
        ({"whole": {"new": 3}}, {"inner": {"old": 1}, "named": {}, "whole": {"old": 1, "new": 3}}),
        ({"named": {"a": {}}}, {"inner": {"old": 1}, "named": {"a": {"old": 1}}}),
    ],
)
def test_only_later_settings_at_their_default_are_left_out(
    given: dict[str, Any], recorded: dict[str, Any]
) -> None:
    settings = Outer.model_validate(given)
    assert settings.recorded() == recorded
    assert Outer.model_validate(settings.recorded()) == settings


def test_a_later_setting_keeps_its_limits() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Inner(new=0)


ADDED_UNMARKED = {
    *("model.cpu_offload", "run.keep_teacher_tables", "run.prefect_seconds", "run.stall_seconds")
}
"""Settings that no stage reads, younger than the kept runs and older than `Later`."""


@pytest.mark.parametrize("path", sorted(KEPT.glob("*/*/run.json")), ids=lambda p: p.parent.name)
def test_a_new_setting_is_marked_later(path: Path) -> None:
    """One that is not would be in all new records, and shut out folders such as this old one."""
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    recorded = flat(config)
    today = flat(validate_config(config, "kept").recorded())
    assert today.keys() - recorded.keys() == ADDED_UNMARKED
    assert {key: today[key] for key in recorded} == recorded


def test_todays_settings_stay_in_records() -> None:
    config = load_config("demo")
    recorded = config.recorded()
    assert Config.model_fields.keys() - recorded.keys() == {"warmstart"}
    left_out = {
        f"{name}.{key}"
        for name in recorded
        for key in getattr(config, name).model_dump().keys() - recorded[name].keys()
    }
    of_model = (
        *("base_dtype", "chat_template", "extra_stop_tokens", "lora", "prompt_time"),
        *("stop_tokens", "system_role"),
    )
    of_route = (
        *("sources", "bank_max_age", "feedback_alone", "templates", "teacher_period"),
        *("credit_lambda", "credit_steps"),
    )
    assert left_out == {
        *(f"model.{key}" for key in of_model),
        "data.mixture",
        "data.on_bad_row",
        "data.drop_test_duplicates",
        "verify.feedback",
        "verify.unfinished_thinking",
        *(f"route.{key}" for key in of_route),
        "weigh.survival",
        "weigh.credit_clip",
    }
