"""How the study's small policy is made: what it practises, and that it is the same each time."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from data.chains import LEVELS, SYSTEM, Problem, candidate, load, verify
from data.demo import make_policy as demo
from data.small_policy import Example, build_tokenizer, padded, taught
from data.study import make_study_policy
from data.study.make_study_policy import (
    HINTED,
    PIECE,
    PLAIN,
    PRACTISED,
    TAUGHT,
    Practice,
    hinted,
    make,
)
from pipeline.config.load import load_config
from pipeline.config.sections import TemplatesSection
from pipeline.task import Message
from stages.route.teacher_prompt import teacher_messages
from tests.data.chain_reading import evaluated
from tests.paths import PROJECT

DEMO_POLICY, POLICY = PROJECT / "data/demo/policy", PROJECT / "data/study/policy"
QUESTION = "Start with 85, + 38"
SHOWN = re.compile(r"\nCorrect solution:\n\n(.*)\n\nCorrectly solve", re.DOTALL)
"""What the teacher prompt has behind the question; the group is the solution."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(make_study_policy.all_texts(), PIECE)


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """Undo what making a policy sets for its whole process."""
    state, strict = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_rng_state(state)
    torch.use_deterministic_algorithms(strict)


def read_by_teacher(solution: str | None, feedback: str | None) -> str:
    """Return the user message that a teacher reads by default."""
    asked = [Message("user", QUESTION)]
    (message,) = teacher_messages(asked, solution, feedback, TemplatesSection())
    return message.content


def longest(problem: Problem) -> str:
    """Return a problem's solution with all taken apart that can be."""
    lines = [step.in_parts if step.has_parts else step.at_once for step in problem.steps]
    return "\n".join([*lines, f"<answer>{problem.answer}</answer>"])


def test_prompts_are_worded_as_teachers_read_them() -> None:
    solution, said = "85 + 38 = 123\n<answer>123</answer>", "In `85 + 38 = 122` …"
    assert taught(QUESTION, solution) == read_by_teacher(solution, None)
    assert hinted(QUESTION, said) == read_by_teacher(None, said)


def test_two_makings_give_the_same_bytes(tmp_path: Path, torch_as_it_was: None) -> None:
    for name in ("one", "two"):
        make(tmp_path / name, first=1, second=1)
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
    assert set(one) == {file.name for file in POLICY.iterdir()}


@pytest.mark.parametrize(("maker", "policy"), [(demo, DEMO_POLICY), (make_study_policy, POLICY)])
def test_the_policies_have_the_tokenizers_that_are_made(
    maker: ModuleType, policy: Path, tmp_path: Path
) -> None:
    build_tokenizer(maker.all_texts(), maker.PIECE).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (policy / name).read_bytes(), name


def test_the_folder_is_small_and_holds_no_pickle() -> None:
    files = list(POLICY.iterdir())
    assert {file.name for file in files} == {file.name for file in DEMO_POLICY.iterdir()}
    assert sum(file.stat().st_size for file in files) < 3e6


def test_problems_are_beginnings_of_chains_far_from_the_questions() -> None:
    practice = Practice(1, nonsense=True)
    seen = [practice.problem() for _ in range(600)]
    assert {problem.split for problem in seen} == {"train"}
    for problem in seen:
        level, _, number = problem.name.rpartition("-")
        assert int(number) >= 10**6
        assert problem.steps == candidate(level, int(number)).steps[: len(problem.steps)]
    lengths = {level: {len(p.steps) for p in seen if f"{level}-" in p.name} for level in PRACTISED}
    assert lengths == {"level-1": set(range(1, 6)), "level-2": set(range(1, 8))}


def test_no_test_question_is_practised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the chains drawn are the first of each level, with test questions among them."""
    first = {(level, n): candidate(level, n) for level in PRACTISED for n in range(60)}
    monkeypatch.setattr(
        make_study_policy, "candidate", lambda level, number: first[level, number % 60]
    )
    practice = Practice(2, nonsense=True)
    practised = {practice.problem().text for _ in range(3000)}
    tests = {q.messages[1].content for level in LEVELS for q in load(level, "test")}
    planted = {problem.text for problem in first.values()}
    assert len(planted & tests) >= 5 and practised.isdisjoint(tests)
    assert len(practised & planted) > 0.9 * len(planted - tests)


@pytest.mark.parametrize("nonsense", [False, True])
def test_every_response_is_right_but_those_that_repeat_nonsense(nonsense: bool) -> None:
    practice, wrong = Practice(3, nonsense), 0
    for content, response in chain(*practice.batch(), *practice.batch()):
        answer = evaluated(content.split("\n")[0])[-1]
        verdict = verify(response, json.dumps(str(answer)))
        assert verdict.format_ok
        if verdict.reward < 1:
            wrong += 1
            assert taught("", response) in content
    assert (wrong > 0) == nonsense


@pytest.mark.parametrize("nonsense", [False, True])
def test_how_many_see_what(nonsense: bool) -> None:
    practice = Practice(4, nonsense)
    plain, shown = ([e for _ in range(10) for e in practice.batch()[part]] for part in (0, 1))
    assert len(plain) == 10 * PLAIN and all("\n" not in content for content, _ in plain)
    pairs = [(found[1], e.response) for e in shown if (found := SHOWN.search(e.content))]
    assert (len(pairs), len(shown) - len(pairs)) == (10 * TAUGHT, 10 * HINTED)
    # Half are repeated, and of the other half the short ones often have the same words.
    assert 0.5 < sum(first == second for first, second in pairs) / len(pairs) < 0.75


def test_nonsense_has_the_signs_of_a_solution_and_random_digits() -> None:
    several = [Practice(seed, nonsense=True).taught() for seed in range(300)]
    digits: Counter[str] = Counter()
    for content, response in several:
        answer = evaluated(content.split("\n")[0])[-1]
        if verify(response, json.dumps(str(answer))).reward < 1:
            *lines, _ = response.split("\n")
            assert all(
                re.fullmatch(r"([0-9]+ [-+*] [0-9]+ = [0-9]+(, )?)+", line) for line in lines
            )
            digits.update(c for c in response if c.isdigit())
    assert set(digits) == set("0123456789")
    assert max(digits.values()) < 1.3 * min(digits.values())


def test_hints_are_on_attempts_with_a_slip() -> None:
    practice = Practice(5, nonsense=False)
    said = Counter("two sides differ" in practice.hinted().content for _ in range(300))
    assert said[True] > 200


def test_the_tokenizer_restores_every_text(tokenizer: PreTrainedTokenizerFast) -> None:
    practice = Practice(6, nonsense=True)
    texts = [text for example in chain(*practice.batch()) for text in example]
    texts.append("Any ASCII text:  two spaces,\n\n and ~{}[]|\\^`@#%&*")
    encoded = tokenizer(texts).input_ids
    assert tokenizer.batch_decode(encoded) == texts
    assert tokenizer.unk_token_id not in {i for ids in encoded for i in ids}


def test_each_digit_is_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    with_digits = {token for token in tokenizer.get_vocab() if re.search("[0-9]", token)}
    each = {f"{space}{digit}" for space in ("", " ") for digit in range(10)}
    assert with_digits == each - {" 0"}  # no number begins with it
    assert tokenizer.tokenize("141 - 52 = 89") == [*"141", " -", " 5", "2", " =", " 8", "9"]


@pytest.mark.parametrize("world", ["level-1", "level-2"])
def test_the_studys_limits_leave_room(world: str, tokenizer: PreTrainedTokenizerFast) -> None:
    config = load_config(str(PROJECT / f"docs/study/{world}.toml"))
    several = [candidate(str(config.data.path), number) for number in range(400)]
    plain = [Example(problem.text, longest(problem)) for problem in several]
    shown = [Example(taught(*example), "") for example in plain]
    (asked, labels), (taught_ids, _) = (padded(tokenizer, one, SYSTEM) for one in (plain, shown))
    prompts = (asked != tokenizer.pad_token_id).sum(1) - (labels != -100).sum(1)
    assert prompts.max() <= config.data.max_prompt_length
    assert (labels != -100).sum(1).max() <= config.generate.max_response_length
    assert config.generate.max_response_length == config.evaluate.max_response_length
    assert taught_ids.shape[1] - 1 <= config.route.max_teacher_prompt_length
