"""Prompts: the same at every rendering, and no turn of a conversation lost on the way."""

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import PolicyError
from pipeline.policy.prompts import Prompts, folded
from pipeline.task import Message
from tests.builders.chat_templates import FAMILIES, family_tokenizer, settings

ASKED = [Message("system", "Be brief."), Message("user", "2 + 2?")]
FOLDED = [Message("user", "Be brief.\n\n2 + 2?")]


def prompts(template: str, **model: Any) -> Prompts:
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = template
    return Prompts(tokenizer, settings(**model))


def of(name: str, **model: Any) -> Prompts:
    return Prompts(family_tokenizer(name), settings(**model))


# --- what is outside the record --------------------------------------------------------------

DATED = "{{ strftime_now(form) }} {{ messages[0].content }}"
USER = [Message("user", "x")]


def test_the_time_is_that_of_the_settings() -> None:
    found = prompts(
        DATED, prompt_time="2024-02-29T12:34:56", chat_template_kwargs={"form": "%d %B %Y"}
    )
    assert found.takes_time
    assert found.render(USER)[0] == "29 February 2024 x"


def test_unset_it_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    found = prompts(DATED, chat_template_kwargs={"form": "%Y-%m-%dT%H:%M:%S.%f"})
    first = found.render(USER)[0]
    time.sleep(1.1)
    assert found.render(USER)[0] == first == f"{found.time.isoformat()}.000000 x"


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A machine in another time zone."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Pacific/Auckland"
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


@pytest.mark.parametrize("form", ["%s", "%c %Z%z", "100%%s %s", "%A %j"])
def test_the_zone_of_the_machine_is_not_in_it(form: str, request: pytest.FixtureRequest) -> None:
    found = prompts(DATED, prompt_time="2024-02-29T12:34:56", chat_template_kwargs={"form": form})
    here = found.render(USER)[0]
    request.getfixturevalue("elsewhere")
    assert found.render(USER)[0] == here
    if form == "100%%s %s":
        assert here == "100%s 1709210096 x"


@pytest.mark.parametrize(
    "template",
    [
        "{{ range(100000) | random }} {{ messages[0].content }}",
        "{{ lipsum(2) }} {{ messages[0].content }}",
    ],
)
def test_chance_is_the_same_every_time(template: str) -> None:
    random.seed(1)
    first = prompts(template).render(USER)[0]
    expected = random.random()
    random.seed(1)
    assert random.random() == expected  # nobody else's chance is touched
    assert prompts(template).render(USER)[0] == first


def test_addresses_in_memory_are_refused() -> None:
    with pytest.raises(PolicyError, match="with its address in memory"):
        prompts("{{ messages[0].get }}{{ messages[0].content }}").render(USER)
    said = [Message("user", "<x at 0x7f0012345678>")]
    assert of("chatml").render(said)[0].startswith("<|im_start|>user\n<x at 0x7f")


def test_there_is_nothing_else_to_take() -> None:
    names = ("now", "datetime", "time", "environ", "os", "request", "config")
    template = "".join(f"{{{{ {name} is defined }}}} " for name in names)
    found = prompts(template + "{{ messages[0].content }}").render(USER)[0]
    assert found == "False " * len(names) + "x"


@pytest.mark.parametrize("given", ["yesterday", "2024-02-30", "2024-01-01T00:00:00+02:00"])
def test_what_is_no_time(given: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        settings(prompt_time=given)
    assert settings(prompt_time="2024-02-29").prompt_time == "2024-02-29T00:00:00"


# --- system turns -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_templates_that_know_no_system_turn(name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        of(name).render(ASKED)
    assert "the chat template refuses turns of system, user: " in str(caught.value)
    assert 'set model.system_role = "fold"' in str(caught.value)
    assert of(name, system_role="fold").render(ASKED) == of(name).render(FOLDED)


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_works_for_all(name: str) -> None:
    text, _ = of(name, system_role="fold").render(ASKED)
    assert "Be brief.\n\n2 + 2?" in text
    assert of(name, system_role="fold").render(ASKED[1:]) == of(name).render(ASKED[1:])


def test_folding() -> None:
    many = [
        Message("system", "A"), Message("system", "B"), Message("user", "C"),
        Message("assistant", "D"), Message("system", "E"), Message("user", "F"),
    ]  # fmt: skip
    assert folded(many) == [
        Message("user", "A\n\nB\n\nC"), Message("assistant", "D"), Message("user", "E\n\nF")
    ]  # fmt: skip
    assert folded([Message("system", " \n"), Message("user", "A")]) == [Message("user", "A")]
    with pytest.raises(PolicyError, match="no user turn follows"):
        folded([Message("user", "A"), Message("system", "B")])


NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


def test_a_system_turn_is_not_dropped() -> None:
    """The template says nothing, and the task's instructions would be gone."""
    with pytest.raises(PolicyError, match=r"leaves out the system turn.*system_role = .fold"):
        prompts(NO_SYSTEM).render(ASKED)
    assert prompts(NO_SYSTEM, system_role="fold").render(ASKED)[0] == "user: Be brief.\n\n2 + 2?\n"
    assert prompts(NO_SYSTEM).render(ASKED[1:])[0] == "user: 2 + 2?\n"


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content }}", "hello", "{{ messages[-1].text }}"]
)
def test_nor_is_the_users(template: str) -> None:
    with pytest.raises(PolicyError, match=r"leaves out the .*user turn.*it needs another template"):
        prompts(template).render(ASKED)


def test_templates_may_change_texts() -> None:
    changed = "{% for m in messages %}{{ m.content | trim | upper }} {% endfor %}"
    assert prompts(changed).render(ASKED)[0] == "BE BRIEF. 2 + 2? "


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only\nthis') }}", "refuses turns of system, user: only this"),
        ("{{ messages[9].content.x }}", "fails on turns of system, user: UndefinedError: "),
        ("{{ 1 // 0 }}", "fails on turns of system, user: ZeroDivisionError: "),
        ("{{ strftime_now(1) }}", "fails on turns of system, user: TypeError: "),
        ("{{ ''.__class__ }}{{ ''.__class__.x }}", "fails on turns of system, user: SecurityError"),
    ],
)
def test_a_template_that_raises(template: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        prompts(template).render(ASKED)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "system_role" not in str(caught.value)


# --- what a template makes nothing of ---------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_open_answers_as_they_show_them(name: str) -> None:
    missing = ["<|channel|>final<|message|>"] if name == "gpt-oss" else []
    assert [note for note in of(name).notes() if "opens an answer without" in note] == [
        f"the chat template opens an answer without {text!r}, which stands before other answers: "
        "responses have to write it"
        for text in missing
    ]


def test_a_template_without_a_header_for_the_answer() -> None:
    chatml = FAMILIES["chatml"].template
    without = chatml[: chatml.index("{% if add_generation_prompt %}")]
    assert "opens an answer without '<|im_start|>assistant'" in prompts(without).notes()[0]


def test_an_empty_think_block_before_answers_is_no_header() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert prompts(template).notes() == []


def test_settings_that_a_template_does_not_know() -> None:
    template = "{{ enable_thinking }} {{ messages[0].content }}"
    assert prompts(template, chat_template_kwargs={"enable_thinking": False}).notes() == []
    assert prompts(template, chat_template_kwargs={"enable_thinkin": False}).notes() == [
        "the chat template knows no enable_thinkin (model.chat_template_kwargs)"
    ]


@pytest.mark.parametrize("tag", ["[THINK]", "<seed:think>", "<thinking>"])
def test_think_blocks_of_other_names_are_told(tag: str) -> None:
    template = FAMILIES["chatml"].template + tag
    assert prompts(template).notes() == [
        f"the chat template has {tag}: only what is between <think> and </think> is thinking here"
    ]


@pytest.mark.parametrize(
    ("opening", "opens"),
    [
        ("<think>", True),
        ("<think>\n", True),
        ("<think>\nOkay, ", True),
        ("<think>\n\n</think>\n\n", False),
        ("<think>so</think>Then ", False),
        ("", False),
    ],
)
def test_a_header_opens_a_think_block_with_words_in_it_or_without(
    opening: str, opens: bool
) -> None:
    found = prompts(
        "{{ messages[0].content }}{% if add_generation_prompt %}|" + opening + "{% endif %}"
    )
    for text in ("x", "Begin with <think> and think"):
        prompt = found.render([Message("user", text)])[0]
        assert found.opens_thinking(prompt) is opens
