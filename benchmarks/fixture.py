"""Fixtures: a policy, prompts, and canned rollouts whose rewards are known, in one folder.

The folder is a Hugging Face folder with, beside it,

    prompts.jsonl    {"id", "prompt": [{"role", "content"}]} by line
    rollouts.jsonl   {"id", "completions": lists of token ids, "rewards": 0 or 1 each} by line
    meta.json        "group", "completion_tokens" and more

as the peer's make_fixture.py writes it. `write_fixture` makes small ones where there is no peer.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipeline.sampling.engine import Engine, Sample, SamplingSettings
from pipeline.task import Message, Question, Verdict

_SPECIAL = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>"]
_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_ADDED_BY_TEMPLATE = 2


class Fixture:
    """A fixture folder, opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self._prompts = _lines(folder / "prompts.jsonl")
        self._rollouts = _lines(folder / "rollouts.jsonl")

    def _of_step(self, step: int, questions: int) -> list[int]:
        """Return the prompts of a step: successive ones, starting over after the last."""
        first = step * questions
        return [(first + i) % len(self._prompts) for i in range(questions)]

    def questions(self, step: int, questions: int) -> list[Question]:
        """Return the questions of a step."""
        return [
            Question(
                str(self._prompts[i]["id"]),
                tuple(Message(m["role"], m["content"]) for m in self._prompts[i]["prompt"]),
                '""',
            )
            for i in self._of_step(step, questions)
        ]

    def completions(self, step: int, questions: int) -> list[list[list[int]]]:
        """Return the canned responses of a step, by question."""
        return [self._rollouts[i]["completions"] for i in self._of_step(step, questions)]

    def rewards(self, step: int, questions: int) -> list[float]:
        """Return their rewards, question after question."""
        chosen = self._of_step(step, questions)
        return [float(r) for i in chosen for r in self._rollouts[i]["rewards"]]


class CannedEngine:
    """An engine that returns the samples it was given, after a rehearsal by a real one, if any.

    The rehearsal samples as many tokens as are returned, and counts for its time alone: training
    sees the canned samples, so that routes and work are the fixture's.
    """

    name = "canned"
    facts: ClassVar[dict[str, object]] = {}

    def __init__(self, samples: list[list[Sample]], rehearsal: Engine | None = None) -> None:
        self._samples, self._rehearsal = samples, rehearsal

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Return the canned samples; see `Engine.sample`."""
        if self._rehearsal is not None:
            drawn = self._rehearsal.sample(prompts, seeds, settings, progress)
            expect_full_length(drawn, settings.max_response_length)
        return self._samples


class KnownRewards:
    """A verifier that knows every reward beforehand."""

    def __init__(self, rewards: Sequence[float]) -> None:
        self._rewards = rewards

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the rewards of responses, which come in the fixture's order."""
        return [
            Verdict(reward=reward, format_ok=True)
            for _, reward in zip(pairs, self._rewards, strict=True)
        ]


def expect_full_length(drawn: list[list[Sample]], length: int) -> None:
    """Refuse samples that stopped early: both sides must sample the same number of tokens."""
    lengths = {len(sample.response_ids) for group in drawn for sample in group}
    if lengths != {length}:
        raise RuntimeError(f"sampled responses have lengths {sorted(lengths)}, not {length}")


def write_fixture(
    folder: Path,
    network: Mapping[str, int],
    *,
    prompts: int,
    prompt_tokens: int,
    completion_tokens: int,
    correct: Sequence[int],
    group: int = 8,
) -> None:
    """Write a fixture of random words over a random Qwen3.

    Args:
        network: sizes, as `Qwen3Config` names them; `vocab_size` among them.
        prompts: number of prompts.
        prompt_tokens: length of each, chat template included.
        correct: correct rollouts of each group; the list is repeated.
    """
    tokenizer = _tokenizer(min(network["vocab_size"], 4096))
    tokenizer.save_pretrained(folder)
    _model(network, tokenizer).save_pretrained(folder)
    draw, words = random.Random(0), len(tokenizer)
    asked, answered = [], []
    for index in range(prompts):
        ids = [
            draw.randrange(len(_SPECIAL), words) for _ in range(prompt_tokens - _ADDED_BY_TEMPLATE)
        ]
        content = " ".join(f"w{i}" for i in ids)
        asked.append({"id": index, "prompt": [{"role": "user", "content": content}]})
        right = correct[index % len(correct)]
        completions = [
            [draw.randrange(len(_SPECIAL), words) for _ in range(completion_tokens)]
            for _ in range(group)
        ]
        rewards = [1] * right + [0] * (group - right)
        answered.append({"id": index, "completions": completions, "rewards": rewards})
    _write_lines(folder / "prompts.jsonl", asked)
    _write_lines(folder / "rollouts.jsonl", answered)
    meta = {"group": group, "completion_tokens": completion_tokens, "prompt_tokens": prompt_tokens}
    (folder / "meta.json").write_text(json.dumps({**meta, **network}), encoding="utf-8")


def _tokenizer(words: int) -> PreTrainedTokenizerFast:
    known = [*_SPECIAL, *(f"w{i}" for i in range(len(_SPECIAL), words))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _model(network: Mapping[str, int], tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        **network,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
