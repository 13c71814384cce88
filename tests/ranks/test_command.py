"""`srpo train --ranks`: the same run on any number of ranks; ranks that are killed; two hosts."""

import json
import re
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.check.check_run import check_run
from pipeline.run.lock import LOCK_FILE
from pipeline.run.run import Run
from pipeline.tables.arrow_reading import read_arrow
from tests.golden.golden_run import TASK
from tests.ranks.compare_tables import compare, compare_runs
from tests.ranks.train_commands import LIMIT_SECONDS, STEPS, finish, train, trained, trained_here

pytestmark = pytest.mark.slow

STAGES = {  # what is on the disk when a stage begins
    "evaluate": "run.json",
    "generate": "evaluations/000000.json",
    "verify": "steps/000001/rollouts.json",
    "route": "steps/000001/verdicts.json",
    "update": "steps/000002/weights.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    return trained_here(folder / "one")


@pytest.fixture(scope="module")
def begun(folder: Path, prefect_api: dict[str, str]) -> Path:
    """Two steps on two ranks."""
    return trained(folder / "begun", "--ranks", "2", steps=2, api=prefect_api)


@pytest.mark.parametrize(
    "ranks", ["1", pytest.param("4", marks=pytest.mark.campaign)]
)  # on two: the next test
def test_a_run_begun_on_two_ranks_goes_on_with_any_number(
    ranks: str, one: Path, begun: Path, folder: Path, prefect_api: dict[str, str]
) -> None:
    run = Path(shutil.copytree(begun, folder / f"on-{ranks}"))
    trained(run, "--ranks", ranks, api=prefect_api)
    compare_runs(one, run, STEPS)
    assert not check_run(Run.open(run)).findings
    names = [sorted(p.name for p in (r / "policy/000003").iterdir()) for r in (one, run)]
    assert names[0] == names[1]
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (run / "policy/000003" / name).read_bytes() == (
            one / "policy/000003" / name
        ).read_bytes()


@pytest.mark.campaign
def test_adapters_go_from_two_ranks_to_one_and_back(
    folder: Path, prefect_api: dict[str, str]
) -> None:
    """On a base in bfloat16; the tables are those of one rank."""
    settings = ("model.lora.rank=8", "model.base_dtype=bfloat16")
    one = trained_here(folder / "lora-one", *settings)
    run = folder / "lora"
    first = [part for setting in settings for part in ("--set", setting)]
    trained(run, "--ranks", "2", *first, steps=1, api=prefect_api)
    trained(run, "--ranks", "1", steps=2, api=prefect_api)
    trained(run, "--ranks", "2", api=prefect_api)
    compare_runs(one, run, STEPS)
    assert not check_run(Run.open(run)).findings


@pytest.mark.campaign
def test_banks_of_two_ranks_are_those_of_one(folder: Path, prefect_api: dict[str, str]) -> None:
    """Six questions in each step, so that all come back in the next; some answers are right."""
    task = folder / "six.py"
    task.write_text(TASK.replace("offset + 24", "offset + 6"), encoding="utf-8")
    settings = (f"data.task={task}", 'route.sources=["sibling", "bank"]')
    one = trained_here(folder / "bank-one", *settings)
    options = [part for setting in settings for part in ("--set", setting)]
    two = trained(folder / "bank-two", *options, "--ranks", "2", api=prefect_api)
    compare_runs(one, two, STEPS)
    assert Run.open(two).manifest("bank", STEPS - 1).rows > 0
    assert not check_run(Run.open(two)).findings


@pytest.mark.campaign
def test_a_rank_may_have_no_group_to_sample(folder: Path, prefect_api: dict[str, str]) -> None:
    """One test question and one training question: the second rank has neither.

    Before the first step the teacher answers, too, from its own weights, of which each rank has a
    part.
    """
    single = ("--set", "evaluate.questions=1", "--set", "generate.questions=1", "--preflight")
    one, two = (
        trained(folder / f"single-{n}", *single, "--ranks", n, steps=1, api=prefect_api)
        for n in ("1", "2")
    )
    compare_runs(one, two, 1)
    for steps_done in (0, 1):
        compare(*(Run.open(run).read("evaluations", steps_done) for run in (one, two)))
    leads = [next(run.glob("evaluations/taught-000000-*.arrow")) for run in (one, two)]
    assert len({path.name for path in leads}) == 1
    compare(*map(read_arrow, leads))


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not file.exists():
        assert time.monotonic() < deadline, file
        time.sleep(0.005)


@pytest.mark.campaign
def test_ranks_stop_and_end_as_their_command_is_told(
    folder: Path, prefect_api: dict[str, str]
) -> None:
    run = folder / "signalled"
    command = train(run, "--ranks", "2", api=prefect_api)
    wait_for(run / "steps/000000/verdicts.json")
    command.send_signal(signal.SIGINT)
    said = finish(command)
    assert command.returncode == 130, said
    assert "Traceback" not in said
    states = run.glob("policy/*/state.json")
    assert {file.parent.name for file in states} in ({"000000"}, {"000000", "000001"})
    command = train(run, "--ranks", "2", api=prefect_api)
    wait_for(run / "steps/000001/rollouts.json")
    ranks = psutil.Process(command.pid).children()
    assert len(ranks) == 2
    command.kill()
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    finish(command)


class Hosts:
    """Two commands that make up one training, as on two hosts; each has a rank."""

    def __init__(self, run: Path, api: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{free.getsockname()[1]}"
        options = ("--nnodes", "2", "--rdzv-endpoint", place)
        self.commands = [train(run, *options, "--node-rank", n, api=api) for n in ("0", "1")]

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a rank."""
        command = psutil.Process(self.commands[number].pid)
        return next(c for c in command.children() if "flows.cli" in c.cmdline())

    def wait_for(self, file: Path, run: Path) -> None:
        """Wait until a file is there and rank 0 writes to the run.

        On a busy machine ranks that were killed may have been ahead of the stage that was meant.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (file.exists() and self._writes(run)):
            assert time.monotonic() < deadline, file
            time.sleep(0.005)

    def _writes(self, run: Path) -> bool:
        with suppress(StopIteration, OSError, ValueError):
            holder = json.loads((run / LOCK_FILE).read_text(encoding="utf-8"))
            return bool(holder["process"] == self.rank(0).pid)
        return False

    def end(self) -> list[str]:
        """Wait for both and return what they said."""
        return [finish(command) for command in self.commands]


@pytest.mark.campaign
def test_a_rank_that_is_killed_in_any_stage_ends_all_and_the_run_goes_on(
    one: Path, folder: Path, prefect_api: dict[str, str]
) -> None:
    run = folder / "killed"
    for number, (stage, file) in enumerate(STAGES.items()):
        hosts, victim = Hosts(run, prefect_api), number % 2
        hosts.wait_for(run / file, run)
        hosts.rank(victim).send_signal(signal.SIGKILL)
        killed = time.monotonic()
        said = hosts.end()
        assert time.monotonic() - killed < 60
        assert [command.returncode for command in hosts.commands] == [2, 2], said
        lines = [[x for x in text.splitlines() if x.startswith("error: ")] for text in said]
        assert [len(found) for found in lines] == [1, 1], said
        # Before the first table there is no run to go on with: what it began is removed.
        advice = "go on" if stage != "evaluate" else "(go on|nothing was made yet)"
        assert re.search(f"rank {victim} was killed by SIGKILL; {advice}", lines[victim][0])
        assert re.search(f"a rank on another host is gone; {advice}", lines[1 - victim][0])
        assert not re.search(r"Traceback", "".join(said)), said
    hosts = Hosts(run, prefect_api)
    said = hosts.end()
    assert [command.returncode for command in hosts.commands] == [0, 0], said
    compare_runs(one, run, STEPS)
    assert not check_run(Run.open(run)).findings
