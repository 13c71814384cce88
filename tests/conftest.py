"""Fixtures shared by all tests: policies small enough to be opened in milliseconds.

    tiny_folder     path of a Hugging Face folder: a random Qwen3 of 1 layer, V = 100 (read only!)
    tiny_policy     factory of fresh policies over it: tiny_policy(teacher="ema", rate=0.5, …)
    demo_policy     factory of fresh policies over the shipped demo policy, same arguments
    prefect_api     environment of commands that talk to the one Prefect server that tests share
    api_here        the same, for this process as well
    srpo            srpo("train", "demo", …): a command in this process, its exit code and words
    own_server      own_server(root): have a server of `root` come up sooner than from nothing

The tiny tokenizer knows every printable ASCII character as one token of its own (and "\\n"), so
texts round-trip; its chat template is ChatML. A policy a test got is its own: change it freely.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from flows import cli
from flows.prefect_api.server import CLIENT_SETTINGS
from pipeline.config.sections import ModelSection, TeacherKind
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import open_policy
from tests.paths import PROJECT
from tests.servers import leave_former, prepared, shared

OpenPolicy = Callable[..., Policy]
OwnServer = Callable[[Path], Path]
Srpo = Callable[..., tuple[int, str, str]]

PAD, START, END, UNKNOWN = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Prefect reads them once, when whichever test is first imports it.
for name, value in CLIENT_SETTINGS.items():
    os.environ.setdefault(name, value)

# The same examples at every run, and no clock: two cores are shared with other work.
settings.register_profile("srpo", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("srpo")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch on one thread: tiny networks gain nothing from two, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny random policy; shared by the session, never write to it."""
    folder = tmp_path_factory.mktemp("tiny") / "policy"
    tokenizer = _tokenizer()
    _model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_policy(tiny_folder: Path) -> OpenPolicy:
    """Return a factory of fresh tiny policies (see `_factory`)."""
    return _factory(tiny_folder)


@pytest.fixture(scope="session")
def demo_policy() -> OpenPolicy:
    """Return a factory of fresh copies of the shipped demo policy (see `_factory`)."""
    return _factory(Path(str(files("data") / "demo" / "policy")))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shared server: that of all workers, where there are several."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def prefect_api(servers: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a command: this process's, with the shared server's address."""
    with shared(servers) as found:
        yield {**os.environ, "PYTHONPATH": str(PROJECT), **found}


@pytest.fixture
def api_here(prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Have this process talk to the shared server too; return what `prefect_api` does."""
    leave_former()
    for name, value in prefect_api.items():
        monkeypatch.setenv(name, value)
    return prefect_api


@pytest.fixture
def srpo(
    api_here: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Srpo:
    """Return a function that runs a command and gives its exit code, its output and its errors."""
    # It would wait for clients of servers that earlier tests ended, and then end this process.
    monkeypatch.setattr(cli, "_leave", sys.exit)

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return called


@pytest.fixture(scope="session")
def own_server(servers: Path, prefect_api: dict[str, str]) -> OwnServer:
    """Return `prepared`, over what the shared server had at its start."""
    return partial(prepared, fresh=servers)


def _factory(folder: Path) -> OpenPolicy:
    def build(
        teacher: TeacherKind = "ema", rate: float = 0.05, mix: float = 0.05, **model: Any
    ) -> Policy:
        """Open a policy; `model` are settings of the section model besides path and device."""
        section = ModelSection(path=str(folder), device="cpu", **model)
        return open_policy(str(folder), section, TeacherSettings(kind=teacher, rate=rate, mix=mix))

    return build


def _tokenizer() -> PreTrainedTokenizerFast:
    names = [PAD, START, END, UNKNOWN, "\n", *map(chr, range(32, 127))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([PAD, START, END])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, unk_token=UNKNOWN
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return a random network whose logits spread enough for distributions to differ."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)
