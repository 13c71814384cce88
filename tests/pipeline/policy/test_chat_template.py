"""Which chat template a folder has, and one message for each cause why it can't be used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PolicyError
from pipeline.policy import chat_template
from pipeline.policy.model_loading import open_tokenizer
from pipeline.policy.prompts import Prompts
from pipeline.policy.snapshots import keep_tokenizer, load_snapshot, save_snapshot
from pipeline.task import Message
from tests.builders.chat_templates import CHATML, FAMILIES, settings, vocabulary_of
from tests.builders.policies import EMA, open_on_cpu, tokenizer_of, write_tiny_policy

SHORT = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
TOOLS = "{% for m in messages %}tools {{ m.content }}<|im_end|>{% endfor %}"
NAMED = [{"name": "default", "template": SHORT}, {"name": "tool_use", "template": TOOLS}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer's folder without a template."""
    tokenizer = tokenizer_of(vocabulary_of(FAMILIES["chatml"]))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def configure(folder: Path, template: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def beside(folder: Path, template: Any) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def jinja(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def rendered(folder: Path, name: str | None = None) -> str:
    opened = Prompts(open_tokenizer(folder, name), settings(chat_template=name))
    return opened.render([Message("user", "q")])[0]


def refusal(folder: Path, name: str | None = None) -> str:
    with pytest.raises(PolicyError) as caught:
        open_tokenizer(folder, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


Put = Callable[[Path, Any], None]


@pytest.mark.parametrize("put", [configure, beside, jinja])
def test_where_it_may_stand(folder: Path, put: Put) -> None:
    put(folder, SHORT)
    assert rendered(folder) == "q<|im_end|>"


def test_the_newer_form_wins(folder: Path) -> None:
    beside(folder, "beside {{ messages[0].content }}")
    configure(folder, "config {{ messages[0].content }}")
    assert rendered(folder) == "config q"
    jinja(folder, "jinja {{ messages[0].content }}")
    assert rendered(folder) == "jinja q"


@pytest.mark.parametrize("put", [configure, beside])
def test_several_with_names(folder: Path, put: Put) -> None:
    put(folder, NAMED)
    assert rendered(folder) == "q<|im_end|>"
    assert rendered(folder, "tool_use") == "tools q<|im_end|>"
    assert refusal(folder, "rag") == (
        f"model.chat_template is rag, but those of {folder} are called default, tool_use"
    )


def test_names_as_keys(folder: Path) -> None:
    configure(folder, {entry["name"]: entry["template"] for entry in NAMED})
    assert rendered(folder) == "q<|im_end|>"
    assert rendered(folder, "tool_use") == "tools q<|im_end|>"


def test_files_with_names(folder: Path) -> None:
    jinja(folder, SHORT)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)
    assert rendered(folder) == "q<|im_end|>"
    assert rendered(folder, "tool_use") == "tools q<|im_end|>"


def test_names_without_a_default(folder: Path) -> None:
    configure(folder, NAMED[1:])
    assert "are called tool_use, and none default: pick one" in refusal(folder)
    assert rendered(folder, "tool_use") == "tools q<|im_end|>"


def test_a_name_where_there_are_none(folder: Path) -> None:
    jinja(folder, SHORT)
    assert "has one chat template, without a name" in refusal(folder, "tool_use")


@pytest.mark.parametrize("put", [configure, beside])
@pytest.mark.parametrize("entry", [[5], [{"name": "default"}], [["default", "x"]]])
def test_a_list_of_something_else(folder: Path, put: Put, entry: Any) -> None:
    put(folder, entry)
    assert "its chat_template is a list; expected entries with name and template" in refusal(folder)


@pytest.mark.parametrize("put", [configure, beside])
def test_a_name_that_comes_twice(folder: Path, put: Put) -> None:
    put(folder, [NAMED[0], NAMED[1] | {"name": "default"}])
    assert "two of its chat templates are called default; expected each name once" in refusal(
        folder
    )


@pytest.mark.parametrize("put", [configure, beside])
def test_an_empty_list_is_no_template(folder: Path, put: Put) -> None:
    put(folder, [])
    assert open_tokenizer(folder).chat_template is None


@pytest.mark.parametrize("put", [configure, beside, jinja])
def test_a_byte_order_mark_is_in_no_prompt(folder: Path, put: Put) -> None:
    put(folder, "\ufeff" + SHORT)
    assert rendered(folder) == "q<|im_end|>"


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/x.jinja"])
def test_a_template_of_another_encoding(folder: Path, name: str) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / name).write_bytes("é".encode("latin-1") + SHORT.encode())
    assert refusal(folder) == f"{folder / name}: not UTF-8 (byte 1); save the file as UTF-8"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (5, "is no text but of type int"),
        ([{"name": "default", "template": 5}], "is no text but of type int"),
        (" \n", "is an empty text"),
        ("x" * 300_000, "has 300,000 characters; at most 262,144 are run"),
        ("{{ 'x' * 2000000 }}", "makes more than 1,000,000 characters of a turn of 5"),
        ("{% set x = 'x' * 9999999999 %}", "takes more than a GiB to render a turn"),
        ("hello\n{% for m in messages %}", "is no Jinja template (line 2: Unexpected end of"),
        ("{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2, "takes more than 2 seconds"),
        # Slow in an assistant's turn alone, which a prompt may never have.
        (
            "{% for m in messages if m.role == 'assistant' %}"
            + "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 3,
            "takes more than 2 seconds to render a turn",
        ),
    ],
)  # fmt: skip
def test_one_message_for_each_cause(
    folder: Path, monkeypatch: pytest.MonkeyPatch, template: Any, said: str
) -> None:
    monkeypatch.setattr(chat_template, "TEMPLATE_SECONDS", 2)
    configure(folder, template)
    message = refusal(folder)
    assert said in message and str(folder) in message and len(message) < 300


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{{ messages | tojson(indent=2) }}",
        "{% for m in messages %}{{ m.content }}{% if true %}{% break %}{% endif %}{% endfor %}",
        "{{ strftime_now('%Y') }}{{ messages[0].content }}",
        "{{ raise_exception('no') if messages[0].role != 'user' }}{{ messages[0].content }}",
    ],
)
def test_what_transformers_offers_to_templates(folder: Path, template: str) -> None:
    jinja(folder, template)
    assert "q" in rendered(folder)


def test_a_file_beside_that_is_no_json(folder: Path) -> None:
    (folder / "chat_template.json").write_text("{")
    assert "chat_template.json: can't be read" in refusal(folder)


def test_a_run_keeps_the_one_that_was_picked(tmp_path: Path) -> None:
    """Snapshots and the tokenizer of a run have one template, without names."""
    source = tmp_path / "model"
    write_tiny_policy(source, 0, vocabulary_of(FAMILIES["chatml"]))
    (source / "chat_template.jinja").unlink()
    configure(source, NAMED)
    policy = open_on_cpu(source, chat_template="tool_use")
    assert policy.version != open_on_cpu(source).version
    prompt = policy.render([Message("user", "q")])
    assert prompt[0] == "tools q<|im_end|>"
    save_snapshot(policy, tmp_path / "snapshot", 0)
    section = settings(chat_template="tool_use")
    again = load_snapshot(tmp_path / "snapshot", section, EMA)
    assert again.render([Message("user", "q")]) == prompt
    keep_tokenizer(policy, tmp_path / "tokenizer")
    kept = Prompts(open_tokenizer(tmp_path / "tokenizer"), section)
    assert kept.render([Message("user", "q")]) == prompt
    assert CHATML not in kept.template
