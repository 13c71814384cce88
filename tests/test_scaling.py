"""The cost model of docs/SCALING.md: values worked out by hand, and the page is what is printed."""

from pathlib import Path

import pytest

from benchmarks.cost import (
    ADAPTED,
    MODELS,
    Gpus,
    Load,
    Model,
    activations,
    memory,
    our_step,
    reference_step,
    sampling,
    shares,
)
from benchmarks.flops import Network
from benchmarks.plans import load_of, written
from benchmarks.report import BEGIN, END, sheets_markdown
from benchmarks.step_times import (
    ALL,
    BASE,
    H100,
    HOURS,
    METHODS,
    VARIANTS,
    Assumed,
    Constants,
    Fit,
    fitted,
    means_until,
    seconds_at,
    sheets,
)
from pipeline.config.load import load_config

PAGE = Path(__file__).parents[1] / "docs/SCALING.md"
START = 700
UNIT = Model(Network(body=1, attention=0, projection=1), parameters=4, cache=3)
SLOW = Gpus(2, flops=10, bandwidth=8, reached=0.5, read=0.5, inside=2, between=1)
LOAD = Load(response=3, correct=0.5, prompt=2, questions=1, group=2, longest=1)
"""One group of two rollouts, of which the longest is as long as the mean."""


def test_questions_of_even_difficulty_have_every_count_of_correct_rollouts_alike() -> None:
    # Uniform at one half: each of 0 … 8 correct has 1/9.
    found = shares(0.5, 8)
    assert found.taught == pytest.approx((7 + 6 + 5 + 4 + 3 + 2 + 1) / 8 / 9)  # 0.389
    assert found.helped == pytest.approx(1 - 1 / 9 - 1 / 9 / 8)
    assert found.mixed == pytest.approx(7 / 9)


def test_shares_of_a_group_of_two_by_hand() -> None:
    # Beta(1.5, 0.5): P(0) = (0.5 · 1.5) / (2 · 3), P(2) = (1.5 · 2.5) / (2 · 3), P(1) the rest.
    none, both = 0.75 / 6, 3.75 / 6
    found = shares(0.75, 2)
    assert found.mixed == pytest.approx(1 - none - both)
    assert found.taught == pytest.approx((1 - none - both) / 2)
    assert found.helped == pytest.approx(1 - none - (1 - none - both) / 2)


def test_sampling_reads_weights_and_keys_and_multiplies() -> None:
    # Read: 3 steps x 2 weights x 2 bytes, and on each of 2 GPUs 1 rollout x 3 tokens that see 3.5
    # others on average, of 3 bytes each.
    # Multiplied: 2 x (prompt 2 + 2 rows x 2 fed) through the body, 2 x (2 x 3) logits.
    read, operations = 12 + 31.5, 2 * 6 + 2 * 6
    assert sampling(UNIT, SLOW, LOAD) == pytest.approx(read / 4 + operations / 10)


def test_no_response_is_decoded_beyond_its_limit() -> None:
    cut = sampling(UNIT, SLOW, LOAD._replace(longest=10, limit=5))
    assert cut - sampling(UNIT, SLOW, LOAD) == pytest.approx((5 - 3) * 4 / 4)


def test_the_reference_computes_every_rollout_by_itself() -> None:
    # Student: 5 passes over 2 rows of 5 tokens and 3 logits. Teacher: half of the rows, with a
    # prompt of 2 + 3 + 7 before the response.
    _, student, teacher = reference_step(UNIT, SLOW, LOAD, taught=0.5)
    assert student == pytest.approx(5 * 2 * (10 + 6) / 10)
    assert teacher == pytest.approx(2 * (15 + 3) / 10)


def test_our_step_computes_mixed_groups_behind_one_prompt() -> None:
    # One group in three is mixed, with one taught rollout (uniform: 0, 1 or 2 correct).
    step = our_step(UNIT, SLOW, LOAD, micro_batch=(100, 1), written=7, disk=1)
    student, teacher = 2 + 2 + 3, 12 + 2 + 3  # fed positions and logits
    assert step.score == pytest.approx(2 * (student + teacher) / 3 / 10)
    assert step.update == pytest.approx(4 * 2 * (2 + 4 + 6) / 3 / 10)
    # A pass of scoring gathers 8 bytes, of which a GPU has half; of the 8/3 tokens of an update
    # each GPU has 4/3, in two turns that move four times as much.
    assert step.gather == pytest.approx((1 + 1 + 2 * 4) * 8 / 2 / 2)
    assert step.write == pytest.approx(7 - step.update)
    assert step.send == pytest.approx(8 / 2 / 2)


def test_one_gpu_gathers_nothing_and_machines_are_slower_than_one() -> None:
    assert SLOW._replace(number=1).gathering(8) == 0
    assert SLOW._replace(number=16).gathering(16) == pytest.approx(15)


def test_models_have_their_published_parameters() -> None:
    sizes = {name: model.parameters / 1e9 for name, model in MODELS.items()}
    assert sizes == pytest.approx(
        {"Qwen3-4B": 4.02, "Qwen3-8B": 8.19, "Qwen3-32B": 32.76}, abs=0.01
    )


def test_memory_by_hand() -> None:
    # 4 parameters: 80 bytes of state over two GPUs, a copy of 8, 90% of 100 in all.
    assert memory(UNIT, SLOW._replace(memory=100)) == pytest.approx((40, 8, 42))


def test_memory_of_adapters_by_hand() -> None:
    # Each GPU: 4 frozen parameters of 2 or 4 bytes, 20 bytes for each of 3 adapters', a copy of 8.
    adapted = UNIT._replace(network=UNIT.network._replace(adapters=3))
    two = SLOW._replace(memory=100)
    assert memory(adapted, two) == pytest.approx((8 + 60, 8, 14))
    assert memory(adapted, two, base=4) == pytest.approx((16 + 60, 8, 6))


def test_adapters_of_qwen3_8b_by_hand() -> None:
    # Rank 16, 36 blocks: q and o, k and v, gate and up and down, the sum of in and out of each.
    each = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12_288)
    assert ADAPTED.network.adapters == 36 * 16 * each == 43_646_976
    assert memory(ADAPTED, Gpus(1, 1, 1, memory=80e9)).left == pytest.approx(38.4e9, rel=0.01)


def test_activations_by_hand() -> None:
    sizes = {
        "hidden_size": 2,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": 5,
    }
    layer = 4 * 2 + 3 * 8 + 2 * 4 + 4 * 5
    assert activations(sizes, 10, checkpointing=False) == 4 * 10 * 3 * layer
    assert activations(sizes, 10, checkpointing=True) == 4 * 10 * (3 * 2 + layer)


def test_bytes_of_a_taught_token_are_those_of_the_tables() -> None:
    load = load_of(START, config := load_config("srpo-paper"))
    teacher, _ = written(config, load)
    tokens = shares(load.correct, 8).taught * 256 * START
    assert teacher / tokens == pytest.approx(1246, rel=0.001)


@pytest.fixture(scope="module")
def base() -> Fit:
    return fitted(BASE, Assumed(START))


def test_two_constants_give_the_papers_order_and_the_errors_that_the_page_states(
    base: Fit,
) -> None:
    assert (len(BASE.free), len(BASE.targets), len(ALL)) == (2, 4, 9)
    assert all(base.in_order(hour) for hour in HOURS)
    errors = {(method, hour): abs(base.error(method, hour)) for method, hour in ALL}
    assert max(errors[target] for target in BASE.targets) < 0.026
    assert max(errors.values()) == errors["SRPO", 1] == pytest.approx(0.10, abs=0.005)


@pytest.mark.parametrize("start", [400, 1000])
def test_the_order_does_not_hang_on_the_length_that_is_assumed(start: int) -> None:
    found = fitted(BASE, Assumed(start))
    assert all(found.in_order(hour) for hour in HOURS)


def test_nor_on_the_gpus() -> None:
    found = fitted(BASE, Assumed(START, gpus=H100))
    assert all(found.in_order(hour) for hour in HOURS)
    assert (
        1 / found.constants.slowness < 0.1
    )  # passes as slow as measured would be a poor trainer's


def test_fitting_finds_constants_that_made_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    made = seconds_at(BASE, Constants(slowness=4, grpo=30), Assumed(START))
    times = {method: tuple(made[method, hour] for hour in HOURS) for method in METHODS}
    monkeypatch.setattr("benchmarks.step_times.PAPER", times)
    found = fitted(BASE, Assumed(START))
    assert found.constants == pytest.approx(Constants(slowness=4, grpo=30), rel=1e-6)
    assert max(abs(found.error(*target)) for target in ALL) < 1e-6


def test_means_count_the_step_that_passes_the_hour() -> None:
    # Steps of 1,800 s and 2,700 s pass the first hour; none after it takes more than an hour.
    means = means_until(lambda hours: 1800 * (1 + min(hours, 1)))
    assert means[0] == pytest.approx(2250)
    # 1,800 + 2,700 s, then 3,600 s each: four reach 18,900 s, and five more 36,900 s.
    assert means[1:] == pytest.approx([18_900 / 6, 36_900 / 11])


def test_equally_long_responses_cannot_give_the_order() -> None:
    same = next(v for v in VARIANTS if v.free == ("slowness",))
    found = fitted(same, Assumed(START))
    assert [found.in_order(hour) for hour in HOURS] == [True, False, False]
    for hour in HOURS:
        seconds = [found.seconds[method, hour] for method in METHODS]
        assert seconds[0] == min(seconds) and seconds[1] == max(seconds)


def test_the_page_has_what_the_script_prints() -> None:
    text = PAGE.read_text(encoding="utf-8")
    between = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert between == sheets_markdown(sheets(START)), "python -m benchmarks.step_times --write"
