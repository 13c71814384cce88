"""The benchmarks run: our worker on a fixture of our own, and what is counted and written."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.against_trl import ROWS, Both, Results, Row, line_of, operations, state_mb
from benchmarks.fixture import write_fixture
from benchmarks.flops import Network, Work, apart, network, ours, shared, theirs
from benchmarks.ours import Job, measure
from benchmarks.peer import Peer
from benchmarks.report import BEGIN, END, Line, markdown, write
from benchmarks.scaling import Point, Series

NETWORK = {
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
CORRECT = [0, 1, 3, 4]
UNIT = Network(body=1, attention=1, projection=1)


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write 4 groups of 4 rollouts: none, one, three and all of them correct."""
    folder = tmp_path_factory.mktemp("fixture")
    write_fixture(
        folder,
        NETWORK,
        prompts=8,
        prompt_tokens=6,
        completion_tokens=10,
        correct=CORRECT,
        group=4,
    )
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


def job(fixture: Path, mode: str, method: str = "srpo") -> Job:
    return Job(fixture, mode, method, steps=1, warmup=1, threads=1, questions=4)


def test_the_worker_times_the_stages_on_canned_rollouts(fixture: Path) -> None:
    found = measure(job(fixture, "update"))
    assert set(found["median_wall_s"]) == {"route", "weigh", "update", "all"}
    assert found["median_wall_s"]["all"] >= found["median_wall_s"]["update"] > 0
    assert found["peak_mb"]["all"] == max(found["peak_mb"].values()) > 0
    # Wrong ones with a correct sibling: 3 + 1. With a gradient: the mixed groups, 4 + 4.
    assert [step["sdpo"] for step in found["by_step"]] == [4, 4]
    assert [step["computed"] for step in found["by_step"]] == [8, 8]
    assert [step["rollouts"] for step in found["by_step"]] == [16, 16]
    assert found["by_step"][0]["grad_norm"][0] > 0
    assert found["by_step"][0]["largest_tis_gap"] < 1e-5
    json.dumps(found)


def test_whole_steps_learn_the_same_from_tables_on_disk(fixture: Path) -> None:
    whole, update = measure(job(fixture, "step")), measure(job(fixture, "memory"))
    names = {"generate", "verify", "route", "weigh", "update", "all"}
    assert set(whole["median_wall_s"]) == names
    losses = [[step["loss"][0] for step in found["by_step"]] for found in (whole, update)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert whole["written_mb"] > 0


def test_sampling_stops_nowhere(fixture: Path) -> None:
    assert measure(job(fixture, "sample"))["tokens"] == 16 * 10


def test_grpo_asks_no_teacher(fixture: Path) -> None:
    found = measure(job(fixture, "update", "grpo"))
    assert [step["sdpo"] for step in found["by_step"]] == [0, 0]
    assert [step["computed"] for step in found["by_step"]] == [8, 8]


def test_adapters_do_the_same_work(fixture: Path) -> None:
    found = measure(job(fixture, "update")._replace(lora=True))
    assert [step["sdpo"] for step in found["by_step"]] == [4, 4]
    assert found["by_step"][0]["grad_norm"][0] > 0
    assert found["by_step"][0]["largest_tis_gap"] < 1e-5


def test_operations_by_hand() -> None:
    # A prompt of 2 once, two responses of 3 whose last token is not fed: 2 + 2 x 2 tokens.
    # Pairs: 1 + 2 in the prompt, 3 + 4 in each response. Scored: 3 + 3.
    assert tuple(shared(UNIT, 2, 3, rows=2, passes=1)) == (12, 2 * (3 + 14), 12)
    assert tuple(apart(UNIT, 3, 1, rows=2, passes=3)) == (36, 72, 12)
    # Frozen weights have no gradient: two passes of three. Adapters and attention take all three.
    adapted = UNIT._replace(adapters=1)
    assert tuple(apart(adapted, 3, 1, rows=2, passes=3)) == (2 * 6 * (2 + 3), 72, 8)
    # q, k, v, o 16 x 16, 16 x 8, 16 x 8, 16 x 16 and three of 16 x 32; rank 2 of (in + out).
    counted = network(NETWORK, rank=2)
    assert counted.body == 2 * 256 + 2 * 128 + 3 * 512
    assert counted.adapters == 2 * (2 * 32 + 2 * 24 + 3 * 48)


def test_groups_without_signal_cost_us_nothing_and_trl_as_much_as_others() -> None:
    right, wrong, mixed = (Work(4, 8, [correct]) for correct in (8, 0, 4))
    assert ours(UNIT, right).total == ours(UNIT, wrong).total == 0
    assert ours(UNIT, mixed, "grpo").total == shared(UNIT, 4, 8, 8, 3).total
    assert ours(UNIT, mixed).total > ours(UNIT, mixed, "grpo").total
    assert theirs(UNIT, right) == theirs(UNIT, mixed)
    assert all(first > second for first, second in map(operations, ROWS))


def test_a_row_compares_medians_of_both_sides() -> None:
    def said(seconds: float, name: str) -> dict[str, object]:
        return {"median_wall_s": {name: seconds}, "median_cpu_s": {name: 1}, "stall_share": 0}

    both = Both(
        [said(s, "update") for s in (9.0, 10.0, 30.0)], [said(s, "all") for s in (4.0, 5.0, 5.0)]
    )
    line = line_of(ROWS[0], both)
    assert (line.theirs, line.ours, line.met) == ("10.00 s", "5.00 s", True)
    assert line.ratio == "2.00 (2.00 to 6.00)"


def test_memory_beyond_the_state_leaves_out_what_training_must_hold() -> None:
    full = Row("beyond", "R", 256, 3.0, response=64)
    # 134.5M weights: themselves, EMA, gradients, two moments; with LoRA once, and 5 of 4.9M.
    assert state_mb(full) == pytest.approx(5 * 4 * 134.5e6 / 2**20, rel=1e-3)
    assert state_mb(full._replace(lora=True)) == pytest.approx(4 * 158.9e6 / 2**20, rel=1e-2)
    both = Both(
        [{"peak_rss_mb": {"update": 8565.0}, "median_cpu_s": {"update": 1}, "stall_share": 0}],
        [{"peak_mb": {"all": 4565.0}, "median_cpu_s": {"all": 1}, "stall_share": 0}],
    )
    line = line_of(full, both)
    assert (line.theirs, line.ours, line.ratio) == ("6,000 MB", "2,000 MB", "3.00")


def test_a_process_that_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    calls = []

    def measured() -> dict[str, object]:
        calls.append(1)
        return {"seconds": len(calls)}

    for results in (Results(tmp_path / "kept"), Results(tmp_path / "kept")):
        assert results.of("ours", {"size": "R", "round": 0}, measured)["seconds"] == 1
        assert results.of("ours", {"size": "R", "round": 1}, measured)["seconds"] == 2
    assert len(calls) == 2


def test_exponents_leave_out_what_attention_bounds() -> None:
    sizes = ((1, 0.0), (2, 0.1), (4, 0.1), (8, 0.5))
    points = [Point(size, size * (100 if share > 0.2 else 1), share) for size, share in sizes]
    series = Series("tokens", points)
    assert series.exponent == pytest.approx(1.0)
    assert series.last == pytest.approx(1.0)


def test_results_go_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write(page, markdown([Line(work="sampling", ratio="1.60", met=True)], ["a note"]))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| sampling |" in text and "| pass |" in text and "- a note" in text
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(SystemExit, match="results: begin"):
        write(page, "")


def test_an_absent_peer_is_named(tmp_path: Path) -> None:
    problem = Peer(tmp_path, tmp_path, None).missing()
    assert problem is not None and str(tmp_path) in problem and "--peer" in problem
