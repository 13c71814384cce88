"""GGUF files become model folders: the weights they hold, the same bytes each time, or one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import PolicyError
from pipeline.files.durable import file_digest
from pipeline.policy import gguf_model as module
from pipeline.policy.gguf_model import SEAL, gguf_source
from pipeline.policy.model_folder import model_folder
from pipeline.policy.model_loading import load_pretrained
from pipeline.policy.tokenizer_loading import PROBE
from tests.builders.gguf_files import HEADS, TOKENS, tiny_llama, write_gguf
from tests.conftest import Srpo
from tests.paths import PROJECT

pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a cache of its own."""
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes tiny.gguf with some settings of its header."""

    def written(settings: dict[str, Any] | None = None, **options: Any) -> Path:
        file = tmp_path / "tiny.gguf"
        write_gguf(file, tiny_llama(), settings, **options)
        return file

    return written


def refusal(file: Path) -> str:
    with pytest.raises(PolicyError) as caught:
        model_folder(str(file))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"model.path {file}: ")
    return message


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_the_one_that_was_written(tmp_path: Path, tied: bool) -> None:
    written = tiny_llama(tied=tied)
    write_gguf(tmp_path / "tiny.gguf", written)
    model, _ = load_pretrained(str(tmp_path / "tiny.gguf"))
    expected = dict(written.named_parameters())
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    ids = torch.tensor([[5, 77, 130, 9]])
    assert torch.equal(model(input_ids=ids).logits, written(input_ids=ids).logits)


def test_quantised_blocks_have_their_values(write: Callable[..., Path]) -> None:
    """Q8_0, 32 values a block: d = max|x| / 127 as float16, and x is round(x / d) times d."""
    folder = model_folder(str(write(quantised=True)))
    name = "model.layers.1.mlp.up_proj.weight"
    given = tiny_llama().state_dict()[name].numpy().reshape(-1, 32)
    exact = np.abs(given).max(axis=1, keepdims=True) / 127
    expected = np.round(given / exact) * exact.astype(np.float16).astype(np.float32)
    found = load_file(folder / "model.safetensors")[name]
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy().reshape(-1, 32), expected)
    assert 0 < np.abs(found.numpy().reshape(-1, 32) - given).max() < 0.51 * exact.max()


def test_the_folder_is_a_model_folder_that_says_what_it_is_of(write: Callable[..., Path]) -> None:
    file = write(quantised=True)
    folder = model_folder(str(file))
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json", SEAL),
    }
    source = gguf_source(folder)
    assert source["sha256"] == file_digest(file)
    assert source["types"] == {"F32": 5, "Q8_0": 15}  # 2 norms a layer and one; 7 matrices and one
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 20000.0 and config["head_dim"] == 64 // HEADS
    assert "title" not in (folder / "config.json").read_text()
    ids = json.loads((folder / "generation_config.json").read_text())
    assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (1, 2, 2)


def test_two_conversions_have_the_same_bytes(
    write: Callable[..., Path], cached: Path, tmp_path: Path
) -> None:
    def digests() -> dict[str, str]:
        module._dequantised.cache_clear()
        folder = model_folder(str(tmp_path / "tiny.gguf"))
        return {path.name: file_digest(path) for path in folder.iterdir()}

    write()
    first = digests()
    shutil.rmtree(cached)
    assert digests() == first


def test_it_is_made_once(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write()
    folder = model_folder(str(file))
    assert f"dequantising it once, to {folder}" in capsys.readouterr().err
    monkeypatch.setattr(module, "_make", lambda *_: pytest.fail("made again"))
    module._dequantised.cache_clear()
    copied = file.with_name("named-otherwise")
    shutil.copy(file, copied)
    assert model_folder(str(file)) == folder == model_folder(str(copied))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["a byte", "a file", "the seal", "half"])
def test_a_damaged_folder_is_made_anew(write: Callable[..., Path], damage: str) -> None:
    file = write()
    folder = model_folder(str(file))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    weights = folder / "model.safetensors"
    if damage == "a byte":
        weights.write_bytes(before[weights.name][:-1] + b"x")
    elif damage == "half":
        weights.write_bytes(before[weights.name][: len(before[weights.name]) // 2])
    else:
        (folder / (SEAL if damage == "the seal" else "tokenizer.json")).unlink()
    module._dequantised.cache_clear()
    assert model_folder(str(file)) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_killed_conversion_left_is_replaced(
    write: Callable[..., Path], cached: Path
) -> None:
    file = write()
    folder = model_folder(str(file))
    left = cached / f".{folder.name}.tmp"
    folder.rename(left)
    (left / "half.safetensors").write_bytes(b"half")
    module._dequantised.cache_clear()
    assert not (model_folder(str(file)) / "half.safetensors").exists() and not left.exists()


@pytest.mark.slow
def test_processes_that_need_it_at_once_wait_for_the_first(
    write: Callable[..., Path], cached: Path
) -> None:
    file = write()
    code = (
        "import sys; from pipeline.policy.model_folder import model_folder; "
        "print(model_folder(sys.argv[1]))"
    )
    environment = {**os.environ, "SRPO_CACHE": str(cached.parent)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(file)],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    assert len({out for out, _ in ended}) == 1
    assert sum("dequantising it once" in err for _, err in ended) == 1
    assert {path.name for path in cached.iterdir()} == {".lock", Path(ended[0][0].strip()).name}


def test_doctor_says_what_a_gguf_file_holds(write: Callable[..., Path], srpo: Srpo) -> None:
    file = write(quantised=True)
    code, out, _ = srpo("doctor", file)
    told = " ".join(out.split())
    assert code == 0 and "tensors: 5 F32, 15 Q8_0), in float32 in" in told
    code, _, err = srpo("doctor", write({"split.count": 2}))
    assert (
        code == 2 and err.count("\n") <= 3 and "one of 2 files of a model" in " ".join(err.split())
    )


def test_the_tokenizer_gives_texts_back_and_ends_turns(write: Callable[..., Path]) -> None:
    _, tokenizer = load_pretrained(str(write({"tokenizer.ggml.eot_token_id": 0})))
    assert tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False)) == PROBE
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.encode("<|im_start|>hello", add_special_tokens=False) == [
        TOKENS.index(token) for token in ("<|im_start|>", "he", "ll", "o")
    ]


def test_all_ends_of_turns_are_named(write: Callable[..., Path]) -> None:
    folder = model_folder(str(write({"tokenizer.ggml.eot_token_id": 0})))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [
        ("smollm", ["ĊĊ", "1", "2", "Ġ", "1"]),  # digits one by one, before all else
        ("gpt-2", ["Ċ", "Ċ", "12", "Ġ1"]),  # the last newline apart, digits together
    ],
)
def test_texts_are_cut_by_the_rule_of_the_file(
    write: Callable[..., Path], rule: str, pieces: list[str]
) -> None:
    _, tokenizer = load_pretrained(str(write({"tokenizer.ggml.pre": rule})))
    assert tokenizer.tokenize("\n\n12 1") == pieces


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"general.type": "adapter"}, "a LoRA adapter; merge it into its model"),
        ({"general.type": "mmproj"}, "reads images; expected its language model"),
        ({"split.count": 3, "split.no": 0}, "one of 3 files of a model; merge them"),
        ({"llama.rope.scaling.type": "yarn"}, "its setting llama.rope.scaling.type = 'yarn'"),
        ({"llama.expert_count": 8}, "its setting llama.expert_count = 8"),
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "cuts texts by the rule 'deepseek-llm'"),
        ({"tokenizer.ggml.pre": None}, "cuts texts by the rule None"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer"),
        ({"tokenizer.ggml.tokens": None}, "transformers can't read"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "transformers can't read"),
        ({"llama.feed_forward_length": 128}, "size mismatch"),
        ({"llama.block_count": 3}, "it lacks 9 weights of a LlamaForCausalLM"),
        ({"llama.block_count": 1}, "would leave out 9 of its 20 tensors, first blk.1."),
    ],
    ids=lambda value: next(iter(value.items()))[0] if isinstance(value, dict) else "",
)
def test_what_can_not_be_turned_into_a_folder_is_one_line(
    write: Callable[..., Path], cached: Path, settings: dict[str, Any], message: str
) -> None:
    assert message in refusal(write(settings))
    assert not cached.exists() or [path.name for path in cached.iterdir()] == [".lock"]


def test_settings_that_change_nothing_are_no_reason(write: Callable[..., Path]) -> None:
    neutral = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "expert_count": 0}
    model_folder(str(write({f"llama.{name}": value for name, value in neutral.items()})))


def test_an_unknown_architecture(write: Callable[..., Path]) -> None:
    assert "architecture mystery is not supported" in refusal(write(architecture="mystery"))


def test_a_tensor_that_transformers_has_no_name_for(write: Callable[..., Path]) -> None:
    more = {"rope_freqs.weight": np.ones(16, dtype=np.float32)}
    assert "1 of its 21 tensors, first rope_freqs.weight" in refusal(write(more=more))


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.6, 0.999])
def test_a_file_that_is_cut_off(write: Callable[..., Path], cached: Path, share: float) -> None:
    file = write()
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "copy it once more" in refusal(file)
    assert not cached.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no GGUF file (it begins with b'', not b'GGUF')"),
        (b"PK\x03\x04rest", "no GGUF file (it begins with b'PK\\x03\\x04', not b'GGUF')"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_only_called_so(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "model.GGUF"
    file.write_bytes(content)
    assert message in refusal(file)


def test_the_package_is_not_installed(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert (
        "takes the package gguf, which is not installed: in srpo's clone, pip install"
        in refusal(file)
    )


def test_too_little_room(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write()
    monkeypatch.setattr(module, "free_bytes", lambda path: 1_000_000)
    message = refusal(file)
    assert "in float32 it takes 100 MB" in message and "1.0 MB are free" in message
