"""Hostile model folders: one line, nothing of theirs is run, nobody is asked anything."""

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config.sections import ModelSection
from pipeline.errors import PolicyError
from pipeline.policy import chat_template
from pipeline.policy.policy import TeacherSettings
from pipeline.policy.snapshots import open_policy
from pipeline.task import Message

Spoil = Callable[[Path], object]
CODE = "open({!r}, 'w').write('run')\n"


def edit(name: str, **changes: Any) -> Spoil:
    """Change keys of a JSON file of the folder."""

    def spoil(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **changes}))

    return spoil


def put(name: str, content: bytes) -> Spoil:
    """Write a file of the folder."""
    return lambda folder: (folder / name).write_bytes(content)


def template(text: str) -> Spoil:
    """Give it another chat template."""
    return put("chat_template.jinja", text.encode())


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def header(text: bytes, length: int | None = None) -> Spoil:
    size = len(text) if length is None else length
    return put("model.safetensors", size.to_bytes(8, "little") + text + b"\0" * 64)


MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
LYING = b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}'
BAD: dict[str, Spoil] = {
    "custom-model": edit("config.json", model_type="evil", auto_map=MAP),
    "adapter": put("adapter_config.json", b'{"base_model_name_or_path": "../evil"}'),
    "config-not-json": put("config.json", b"{"),
    "config-list": put("config.json", b"[]"),
    "config-deep": put("config.json", b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "huge-hidden": edit("config.json", hidden_size=10**6, intermediate_size=10**6),
    "absurd-hidden": edit("config.json", hidden_size=10**12),
    "many-layers": edit("config.json", num_hidden_layers=10**9),
    "many-words": edit("config.json", vocab_size=10**10),
    "negative": edit("config.json", hidden_size=-1),
    "text-size": edit("config.json", hidden_size="64; import os"),
    "other-shape": edit("config.json", intermediate_size=7),
    "few-words": edit("config.json", vocab_size=10),
    "header-length": header(b"{}", 2**62),
    "header-text": header(b"hello"),
    "header-offsets": header(LYING),
    "header-empty": header(b"{}"),
    "empty-weights": put("model.safetensors", b""),
    "nan-weight": not_finite,
    "tokenizer-not-json": put("tokenizer.json", b"{"),
    "tokenizer-odd": put("tokenizer.json", b'{"version": "9", "model": {"type": "Evil"}}'),
    "eos-outside": edit("generation_config.json", eos_token_id=10**9),
    "eos-negative": edit("generation_config.json", eos_token_id=[-1]),
    "template-loop": template("{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2),
    "template-memory": template("{% set x = 'x' * 9999999999 %}{{ x }}"),
    "template-long": template("x" * 300_000),
    "template-broken": template("{% broken"),
    "template-output": template("{{ 'x' * 9000000 }}"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo policy with code and a pickle beside it, which write `canary` when run."""
    monkeypatch.setattr(chat_template, "TEMPLATE_SECONDS", 3)
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked a question"))
    copied = tmp_path / "policy"
    shutil.copytree(str(files("data") / "demo" / "policy"), copied)
    code = CODE.format(str(tmp_path / "canary"))
    for name in ("evil.py", "modeling_evil.py", "sitecustomize.py"):
        (copied / name).write_text(code)
    pickle = b"cposix\nsystem\n(S'touch " + str(tmp_path / "canary").encode() + b"'\ntR."
    (copied / "pytorch_model.bin").write_bytes(pickle)
    return copied


def opened(folder: Path) -> Any:
    section = ModelSection(path=str(folder), device="cpu")
    return open_policy(str(folder), section, TeacherSettings(kind="live", rate=0.05, mix=0.05))


@pytest.mark.parametrize("name", BAD)
def test_hostile_folders(folder: Path, tmp_path: Path, name: str) -> None:
    BAD[name](folder)
    with pytest.raises(PolicyError) as caught:
        opened(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 800 and str(folder) in message
    assert not (tmp_path / "canary").exists()


def test_only_a_pickle(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match="without weights"):
        opened(folder)
    assert not (tmp_path / "canary").exists()


def test_a_known_architecture_needs_no_custom_code(folder: Path, tmp_path: Path) -> None:
    edit("config.json", auto_map=MAP)(folder)
    own = {"AutoTokenizer": ["evil.T", None]}
    edit("tokenizer_config.json", tokenizer_class="Evil", auto_map=own)(folder)
    assert opened(folder).vocabulary > 0
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('touch canary') }}",
        "{{ 1 // 0 }}",
        "{{ messages[7].content.x.y }}",
        "{% for m in messages %}{{ m.content + 1 }}{% endfor %}",
    ],
)
def test_templates_that_err_or_try_to_escape(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    template(text)(folder)
    policy = opened(folder)
    with pytest.raises(PolicyError, match=r"the chat template (refuses|fails on) turns of user"):
        policy.render([Message("user", "q")])
    assert not (tmp_path / "canary").exists()
