"""What a warm start learns: which questions, behind which prompts, as which tokens."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.registry import SHIPPED, open_task
from flows.session.question_loading import load_questions
from flows.session.questions import Questions, fitting
from flows.warmstart.examples import (
    OFFER_SOLUTIONS,
    Example,
    examples_of,
    expect_right,
    is_taught,
    with_solutions,
    without_solutions,
)
from pipeline.config.sections import Config
from pipeline.errors import DataError
from pipeline.policy.policy import Policy
from tests.conftest import OpenPolicy
from tests.flows.warmstart.small_starts import small_config, write_task


def questions_of(config: Config, policy: Policy) -> Questions:
    return fitting(with_solutions(load_questions(config)), config, policy.render)


def made(config: Config, policy: Policy) -> list[Example]:
    return examples_of(questions_of(config, policy), config, policy)


def test_an_example_is_a_prompt_and_the_solution_up_to_its_stop_token(
    demo_policy: OpenPolicy,
) -> None:
    policy = demo_policy(teacher="live")
    examples = made(small_config(), policy)
    assert len(examples) == 5 * 4 and sum(e.taught for e in examples) == 6  # 0.3 of 20
    for example in examples:
        question, (prompt_ids, response_ids) = example.question, example.sequence
        assert response_ids[-1] == policy.stops.closing == policy.tokenizer.eos_token_id
        assert policy.tokenizer.decode(response_ids[:-1]) == question.solution
        prompt = policy.tokenizer.decode(prompt_ids)
        system, user = (message.content for message in question.messages)
        if example.taught:
            user += (
                f"\nCorrect solution:\n\n{question.demonstration}"
                "\n\nCorrectly solve the original question."
            )
        expected = (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        # The demo policy has no token for é.
        assert prompt.replace("<|unknown|>", "é") == expected


def test_the_order_depends_on_the_seed_alone(demo_policy: OpenPolicy) -> None:
    policy = demo_policy(teacher="live")
    first, again = made(small_config(), policy), made(small_config(), policy)
    assert first == again
    assert len({e.question.prompt_id for e in first}) == len(first)
    longer = made(small_config("warmstart.steps=7"), policy)
    assert longer[: len(first)] == first
    other = made(small_config("run.seed=1"), policy)
    assert {e.question.prompt_id for e in other}.isdisjoint(e.question.prompt_id for e in first)


def test_without_demonstrations_the_teacher_is_shown_the_solution(
    tmp_path: Path, demo_policy: OpenPolicy
) -> None:
    task = write_task(tmp_path, 'f"So {a} + {b} = {a + b}"')
    config = small_config(f"data.task={task}", "data.path=none", "warmstart.teacher_share=1")
    policy = demo_policy(teacher="live")
    for example in made(config, policy):
        shown = f"Correct solution:\n\n{example.question.solution}\n\n"
        assert shown in policy.tokenizer.decode(example.sequence.prompt_ids)


@given(st.floats(0, 1), st.integers(1, 300))
def test_the_share_of_the_teachers_prompt_is_kept_to_one(share: float, count: int) -> None:
    taught = sum(is_taught(index, share) for index in range(count))
    assert abs(taught - share * count) <= 1
    assert sum(is_taught(i, 0.0) for i in range(count)) == 0
    assert all(is_taught(i, 1.0) for i in range(count))


def test_a_task_without_solutions_is_refused() -> None:
    questions = load_questions(small_config("data.task=arithmetic", "data.path=none"))
    with pytest.raises(DataError, match=r"task arithmetic: none of its 2,048 .* word_problems\)$"):
        with_solutions(questions)


@pytest.mark.parametrize("name", ["arithmetic", "chains", "word_problems"])
def test_the_tasks_that_offer_solutions_are_those_named(name: str) -> None:
    assert set(SHIPPED) >= OFFER_SOLUTIONS
    offers = {question.solution is not None for question in open_task(name).load(None, "train")}
    assert offers == {name in OFFER_SOLUTIONS}


def test_questions_without_a_solution_are_left_out_and_counted(tmp_path: Path) -> None:
    task = write_task(tmp_path, 'f"So {a + b}" if a > 2 else None')
    loaded = load_questions(small_config(f"data.task={task}", "data.path=none"))
    assert {q.prompt_id[0] for q in with_solutions(loaded).train} == set("345")
    (said,) = without_solutions(loaded)
    assert said.startswith("2 of 8 training questions of task") and "left out" in said


@pytest.mark.parametrize(
    ("solution", "settings", "message"),
    [
        ('f"So {a + b}" + 80 * "!"', [], "its solution has 8[56] tokens, over generate.max_resp"),
        ('f"So \u00e9 {a + b}"', [], "the tokenizer doesn't give its solution back as it was"),
        ('f"So <|im_end|> {a + b}"', [], "the tokenizer doesn't give its solution back"),
        (
            'f"So {a + b}"',
            ["route.max_teacher_prompt_length=20", "warmstart.teacher_share=1"],
            "the teacher's prompt with its demonstration is longer than route.max_teacher_prompt",
        ),
    ],
)
def test_what_can_not_be_learned_whole_is_refused(
    tmp_path: Path, demo_policy: OpenPolicy, solution: str, settings: list[str], message: str
) -> None:
    task = write_task(tmp_path, solution)
    limits = ["generate.max_response_length=40", "data.max_prompt_length=60"]
    config = small_config(f"data.task={task}", "data.path=none", *limits, *settings)
    with pytest.raises(DataError, match=message):
        made(config, demo_policy(teacher="live"))


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        ('f"So {a + b}"', None),
        ('f"So {a * b}"', "verifier does not judge the worked solution of question 2.2|reward"),
        ('f"Now {a + b}"', r"correct and in format \(reward 1.0, out of format\)"),
        ('f"So {a + b}", f"So {a * b}"', "does not judge the demonstration of question"),
    ],
)
def test_the_verifier_judges_what_is_learned(
    tmp_path: Path, demo_policy: OpenPolicy, solution: str, message: str | None
) -> None:
    task = write_task(tmp_path, solution)
    config = small_config(f"data.task={task}", "data.path=none", "warmstart.steps=2")
    examples = made(config, demo_policy(teacher="live"))
    if message is None:
        expect_right(examples, config)
        return
    with pytest.raises(DataError, match=message):
        expect_right(examples, config)
