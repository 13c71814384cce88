"""The demo's task and the demo policy that ships with the project."""

import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from data import arithmetic
from data.arithmetic import Problem, load, problems, question, split_problems, verify
from data.demo.make_policy import all_texts, reworded, worked
from data.small_policy import taught
from pipeline.task import Question

POLICY = Path(arithmetic.__file__).parent / "demo" / "policy"
FIRST_TEST = ["26+13", "98+38", "77-18", "12-26"]
GOOD = (
    "<reasoning>units 7 + 8 = 15, carry 1. tens 4 + 3 + 1 = 8, so 85</reasoning><answer>85</answer>"
)


def test_splits_are_disjoint_deterministic_and_equally_mixed() -> None:
    train, test = load(None, "train"), load("ignored", "test")
    assert (len(train), len(test)) == (2048, 128)
    assert train == load(None, "train")
    assert len({q.prompt_id for q in train + test}) == 2048 + 128
    for split in (split_problems("train"), split_problems("test")):
        counts = Counter(problem.kind for problem in split)
        assert set(counts.values()) == {len(split) // 4}


def test_the_order_of_questions_never_changes() -> None:
    # Written down once: these must not depend on the machine or the version of Python.
    assert [q.prompt_id for q in load(None, "test")[:4]] == FIRST_TEST


def test_a_question_holds_its_gold_answer_as_json_text() -> None:
    asked = question(Problem(31, "-", 58))
    assert asked.messages[-1].content == "What is 31 - 58?"
    assert [m.role for m in asked.messages] == ["system", "user"]
    assert json.loads(asked.reference) == "-27"


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (Problem(21, "+", 47), "plain"),
        (Problem(68, "-", 25), "plain"),
        (Problem(47, "+", 38), "carry"),
        (Problem(82, "-", 47), "borrow"),
        (Problem(31, "-", 58), "negate"),
        (Problem(55, "-", 55), "plain"),
    ],
)
def test_the_kind_names_the_step_that_invites_a_slip(problem: Problem, kind: str) -> None:
    assert problem.kind == kind


def test_right_solutions_are_right_and_slips_are_wrong_exactly_where_invited() -> None:
    for problem in problems():
        reference = question(problem).reference
        right = verify(worked(problem, slip=False), reference)
        slipped = verify(worked(problem, slip=True), reference)
        assert (right.reward, right.format_ok, slipped.format_ok) == (1.0, True, True)
        assert slipped.reward == (1.0 if problem.kind == "plain" else 0.0), problem


def test_rewording_changes_words_but_neither_the_answer_nor_the_form() -> None:
    source, seen = random.Random(0), set()
    for problem in problems()[:500]:
        solution = reworded(worked(problem, slip=False), source)
        verdict = verify(solution, question(problem).reference)
        assert (verdict.reward, verdict.format_ok) == (1.0, True), solution
        seen |= set(re.findall(r"ones|units|then tens|the tens|so|result|makes", solution))
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("response", "reward", "format_ok", "prediction"),
    [
        (GOOD, 1.0, True, "85"),
        (f"  {GOOD}\n", 1.0, True, "85"),
        (GOOD.replace(">85<", "> +85\n<"), 1.0, True, "+85"),
        (GOOD.replace(">85<", ">75<"), 0.0, True, "75"),
        (GOOD + "<answer>75</answer>", 0.0, False, "75"),
        ("<answer>75</answer> no: <answer>85</answer>", 1.0, False, "85"),
        ("<answer>85</answer>", 1.0, False, "85"),
        ("<answer>9 <answer>85</answer>", 1.0, False, "85"),
        (GOOD.replace("</reasoning>", ""), 1.0, False, "85"),
        ("<reasoning></reasoning><answer>85</answer>", 1.0, False, "85"),
        ("<reasoning>a</reasoning><reasoning>b</reasoning><answer>85</answer>", 1.0, False, "85"),
        (GOOD.removesuffix("</answer>"), 0.0, False, None),
        ("</answer>85<answer>", 0.0, False, None),
        ("<reasoning>so 85</reasoning>85", 0.0, False, None),
        ("", 0.0, False, None),
        ("<answer>85.0</answer>", 0.0, False, "85.0"),
        ("<answer>\uff18\uff15</answer>", 0.0, False, "\uff18\uff15"),
        ("<answer>8_5</answer>", 0.0, False, "8_5"),
        ("<answer>" + "9" * 5000 + "</answer>", 0.0, False, "9" * 5000),
        ("<answer>\x00\ud800</answer>", 0.0, False, "\x00\ud800"),
    ],
)
def test_verdicts(response: str, reward: float, format_ok: bool, prediction: str | None) -> None:
    verdict = verify(response, '"85"')
    assert (verdict.reward, verdict.format_ok, verdict.prediction) == (
        reward,
        format_ok,
        prediction,
    )
    assert (verdict.feedback is None) == (reward == 1.0)
    assert verdict.error is None


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "<reasoning>", "</reasoning> ", " "])
def test_judging_takes_linear_time(piece: str) -> None:
    start = time.perf_counter()
    verify("<reasoning>x" + piece * 50_000, '"85"')
    assert time.perf_counter() - start < 1.0


def _prompt(asked: Question, solution: str | None = None) -> list[int]:
    """Return the token ids of a question's prompt, or of its teacher prompt."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    content = asked.messages[-1].content
    messages = [
        {"role": "system", "content": asked.messages[0].content},
        {"role": "user", "content": content if solution is None else taught(content, solution)},
    ]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return ids


def test_the_teacher_prompt_is_worded_as_in_the_method() -> None:
    assert taught("What is 1?", "One.") == (
        "What is 1?\nCorrect solution:\n\nOne.\n\nCorrectly solve the original question."
    )


def test_the_tokenizer_restores_every_text_of_the_task() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    every = all_texts()  # the words of the chat first, then three texts of each problem
    texts = every[:20] + every[20::10]
    texts += [
        taught(problem.text, reworded(worked(problem, slip=False), random.Random(0)))
        for problem in problems()[:200]
    ]
    texts.append("Any ASCII text:  two spaces,\n\n and ~{}[]|\\^`@#%&*")
    encoded = tokenizer(texts).input_ids
    assert tokenizer.batch_decode(encoded) == texts
    assert tokenizer.unk_token_id not in {i for ids in encoded for i in ids}


def test_the_chat_template_marks_turns_with_special_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    ids = _prompt(question(Problem(47, "+", 38)))
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nWork in steps.<|im_end|>\n"
        "<|im_start|>user\nWhat is 47 + 38?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert 40 <= len(tokenizer) <= 200
    special = set(tokenizer.all_special_ids)
    assert {tokenizer.pad_token_id, tokenizer.eos_token_id} < special
    assert tokenizer.decode(ids, skip_special_tokens=True).count("<|") == 0


def test_the_folder_is_small_and_holds_no_pickle() -> None:
    files = list(POLICY.iterdir())
    assert sum(file.stat().st_size for file in files) < 6e6
    assert {file.suffix for file in files} == {".json", ".safetensors", ".jinja"}


@torch.no_grad()
def _sample(model: Qwen3ForCausalLM, prompts: list[list[int]], temperature: float) -> list[str]:
    """Return one response to each prompt, all prompts being equally long."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    ids = torch.tensor(prompts)
    torch.manual_seed(0)
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=64,
    )
    texts: list[str] = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def test_the_policy_slips_by_habit_but_not_with_a_solution_in_sight() -> None:
    """Rates over 128 test questions: by habit, and with a right solution in the prompt."""
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.num_parameters() < 1_500_000
    asked = load(None, "test")
    texts = _sample(model, [_prompt(q) for q in asked], 1.0)
    verdicts = [verify(text, q.reference) for text, q in zip(texts, asked, strict=True)]
    assert sum(v.format_ok for v in verdicts) >= 0.97 * len(asked)
    assert 0.25 < sum(v.reward for v in verdicts) / len(asked) < 0.6

    for kind in ("plain", "carry", "borrow", "negate"):
        chosen = [p for p in split_problems("test") if p.kind == kind]
        prompts = [_prompt(question(p), worked(p, slip=False)) for p in chosen]
        # The kinds' solutions differ in length by the number of digits of a carry's result.
        length = max(map(len, prompts))
        kept = [(p, ids) for p, ids in zip(chosen, prompts, strict=True) if len(ids) == length]
        answers = _sample(model, [ids for _, ids in kept], 1.0)
        right = sum(
            verify(text, question(p).reference).reward
            for text, (p, _) in zip(answers, kept, strict=True)
        )
        assert right >= 0.9 * len(kept), kind


def test_generation_stops_at_the_end_of_the_turn() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompts = [_prompt(q) for q in load(None, "test")[:16]]
    for text in _sample(model, prompts, 0.6):
        assert re.fullmatch(r"<reasoning>[^<]+</reasoning><answer>-?[0-9]+</answer>", text), text
