"""Every number of docs/method.md is in the defaults and paper presets; nonsense is refused."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.field_types import Section
from pipeline.config.load import config_keys, load_config, validate_config
from pipeline.config.sections import (
    Config,
    DataSection,
    ModelSection,
    RouteSection,
    UpdateSection,
)
from pipeline.errors import ConfigError

BASE: dict[str, Any] = {"data": {"task": "arithmetic"}, "model": {"path": "demo"}}

# docs/method.md by section, the SRPO column of section 10 where the columns differ.
DEFAULTS = {
    "verify.success_threshold": 0.5,  # 1
    "route.demonstration": "first",  # 2
    "route.feedback": False,
    "route.max_teacher_prompt_length": 10240,
    "route.method": "srpo",  # 3
    "route.advantage_scale": "none",
    "route.teacher": "ema",  # 4
    "route.teacher_rate": 0.05,
    "route.trust_region_mix": 0.05,
    "route.top_k": 100,  # 5
    "update.divergence": "jsd",
    "update.jsd_alpha": 0.5,
    "update.sdpo_ratio_clip": 2.0,
    "weigh.beta": 1.0,  # 6
    "update.clip_low": 0.2,  # 7
    "update.clip_high": 0.28,
    "update.dual_clip": 3.0,
    "update.tis_clip": 2.0,
    "update.mix_lambda": 0.9,  # 9
    "generate.questions": 32,  # 10
    "generate.rollouts": 8,
    "route.mini_batch": None,  # all 32
    "update.learning_rate": 5e-6,
    "update.weight_decay": 0.01,
    "update.warmup_steps": 10,
    "update.adam_beta1": 0.9,
    "update.adam_beta2": 0.999,
    "update.adam_eps": 1e-8,
    "update.max_grad_norm": 1.0,
    "data.max_prompt_length": 2048,
    "generate.max_response_length": 8192,
    "evaluate.max_response_length": 8192,
    "generate.temperature": 1.0,
    "generate.top_p": 1.0,
    "generate.top_k": 0,
    "evaluate.rollouts": 16,
    "route.teacher_period": 20,
    "route.credit_lambda": 0.5,
    "route.credit_steps": 50,
    "weigh.credit_clip": 0.2,
    "evaluate.temperature": 0.6,
    "evaluate.top_p": 0.95,
    "evaluate.top_k": 0,
}

# What differs between the columns of section 10.
COLUMNS = {
    "grpo-paper": {
        "route.method": "grpo",
        "route.teacher": "live",
        "route.mini_batch": 8,
        "update.learning_rate": 1e-6,
        "weigh.beta": 0.0,
    },
    "rlsd-paper": {
        "route.method": "rlsd",
        "route.advantage_scale": "group_std",
        "route.sources": ["gold"],
        "route.teacher": "periodic",
        "route.mini_batch": 8,
        "update.learning_rate": 1e-6,
        "weigh.beta": 0.0,
    },
    "sdpo-paper": {"route.method": "sdpo", "update.learning_rate": 1e-5, "weigh.beta": 0.0},
    "srpo-paper": {},
}


def value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate_config({**BASE, **values}, "mine.toml")
    message = str(caught.value)
    assert message.startswith("mine.toml: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("key", "expected"), DEFAULTS.items())
def test_defaults_are_the_numbers_of_the_method(key: str, expected: object) -> None:
    found = value(validate_config(BASE, "test"), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("preset", COLUMNS)
def test_paper_presets_carry_their_column(preset: str) -> None:
    config = load_config(preset)
    expected = {**DEFAULTS, **COLUMNS[preset]}
    assert {key: value(config, key) for key in expected} == expected
    assert config.model.path == "Qwen/Qwen3-8B"
    assert config.model.chat_template_kwargs == {"enable_thinking": False}
    assert config.data.task == "science_qa"
    assert config.run.max_hours == 10.0


def field_of(key: str) -> FieldInfo:
    section, name, *inner = key.split(".")
    field = Config.section_type(section).model_fields[name]
    if not inner:
        return field
    kinds = [field.annotation, *get_args(field.annotation)]
    (kind,) = [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
    found: FieldInfo = kind.model_fields[inner[0]]
    return found


@pytest.mark.parametrize("key", config_keys())
def test_every_setting_is_described(key: str) -> None:
    assert field_of(key).description


@pytest.mark.parametrize(
    ("method", "beta"),
    [
        ("srpo", 1.0),
        ("grpo", 0.0),
        ("sdpo", 0.0),
        ("sdpo_incorrect_only", 0.0),
        ("sdpo_correct_only", 0.0),
        ("advantage_mix", 0.0),
        ("rlsd", 0.0),
    ],
)
def test_unset_beta_is_the_methods_own(method: str, beta: float) -> None:
    assert validate_config({**BASE, "route": {"method": method}}, "test").weigh.beta == beta


def test_srpo_without_weighting_is_a_setting() -> None:
    assert validate_config({**BASE, "weigh": {"beta": 0.0}}, "test").weigh.beta == 0.0


def test_a_resolved_configuration_resolves_to_itself() -> None:
    config = load_config("sdpo-paper")
    assert validate_config(config.model_dump(), "test") == config


def test_weights_belong_to_srpo_alone() -> None:
    message = refusal({"route": {"method": "sdpo"}, "weigh": {"beta": 0.5}})
    assert "weigh.beta is 0.5 but route.method is sdpo" in message


@pytest.mark.parametrize(
    "method", ["srpo", "sdpo", "sdpo_incorrect_only", "sdpo_correct_only", "advantage_mix"]
)
def test_a_group_of_one_has_no_siblings(method: str) -> None:
    message = refusal({"generate": {"rollouts": 1}, "route": {"method": method}})
    assert f"generate.rollouts is 1 but route.method {method}" in message


def test_a_group_of_one_is_allowed_for_grpo() -> None:
    config = validate_config(
        {**BASE, "generate": {"rollouts": 1}, "route": {"method": "grpo"}}, "test"
    )
    assert config.generate.rollouts == 1


def test_mini_batch_is_at_most_the_step() -> None:
    message = refusal({"generate": {"questions": 4}, "route": {"mini_batch": 5}})
    assert "route.mini_batch is 5" in message
    assert "generate.questions = 4" in message
    whole = {**BASE, "generate": {"questions": 4}, "route": {"mini_batch": 4}}
    assert validate_config(whole, "test").route.mini_batch == 4


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("run.steps", "10"),
        ("run.steps", 10.0),
        ("run.steps", 0),
        ("run.steps", True),
        ("run.seed", -1),
        ("run.max_hours", 0.0),
        ("route.teacher", "best"),
        ("route.method", "ppo"),
        ("route.teacher_rate", 1.5),
        ("route.top_k", 0),
        ("route.feedback", 1),
        ("generate.temperature", 0.0),
        ("generate.temperature", float("nan")),
        ("generate.top_p", 0.0),
        ("generate.top_p", 1.1),
        ("generate.top_k", -1),
        ("verify.success_threshold", -0.1),
        ("weigh.beta", -1.0),
        ("weigh.beta", float("inf")),
        ("update.divergence", "tv"),
        ("update.jsd_alpha", 0.0),
        ("update.jsd_alpha", 1.0),
        ("update.adam_beta2", 1.0),
        ("update.learning_rate", 0.0),
        ("update.clip_low", 1.5),
        ("update.dual_clip", 0.0),
        ("model.precision", "float16"),
        ("model.device", "tpu"),
    ],
)
def test_wrong_values_are_refused_by_name(key: str, wrong: object) -> None:
    section, name = key.split(".")
    message = refusal({section: {**BASE.get(section, {}), name: wrong}})
    assert f"{key} is " in message


def test_an_integer_is_a_fine_number() -> None:
    assert validate_config({**BASE, "update": {"dual_clip": 4}}, "test").update.dual_clip == 4.0


def test_every_wrong_setting_is_named_at_once() -> None:
    message = refusal({"run": {"steps": 0}, "route": {"top_k": "all"}})
    assert "run.steps" in message
    assert "route.top_k" in message


def test_unknown_keys_name_the_nearest() -> None:
    message = refusal({"update": {"learning_rat": 1e-3}})
    assert (
        "unknown key update.learning_rat; the nearest valid one is update.learning_rate" in message
    )


def test_unknown_sections_name_the_nearest() -> None:
    assert "unknown key rout; the nearest valid one is route" in refusal({"rout": {}})


def test_what_has_no_default_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"data is missing; model is missing"):
        validate_config({}, "mine.toml")
    with pytest.raises(ConfigError, match=r"model\.path is missing"):
        validate_config({**BASE, "model": {}}, "mine.toml")


@pytest.mark.parametrize(("section", "wrong"), [("route", 3), ("weigh", []), ("run", "fast")])
def test_a_section_must_be_a_table(section: str, wrong: object) -> None:
    assert section in refusal({section: wrong})


def test_configurations_are_frozen() -> None:
    config = validate_config(BASE, "test")
    with pytest.raises(ValidationError):
        config.run.steps = 1
    with pytest.raises(ValidationError):
        config.route = RouteSection()
    assert config.run.steps == 100


def test_sections_stand_alone() -> None:
    assert ModelSection(path="x").precision == "float32"
    assert DataSection(task="x").max_prompt_length == 2048
    assert UpdateSection().projection_mb == RouteSection().projection_mb == 256.0
