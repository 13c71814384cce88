"""`srpo audit`, as typed: what is listed and written, what is refused, what a terminal gets."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from flows.cli import main
from flows.reruns.replay import Plan, replay
from pipeline.audit.listing import COLUMNS, ON_REQUEST, describe, samples
from pipeline.audit.rollout import rollout_record
from pipeline.run.run import Run
from tests.golden.golden_run import STEP, make_run
from tests.pipeline.viewer.hostile_run import LONG, hostile_run

PER_STEP = 30
ROLLOUTS = (STEP + 1) * PER_STEP
HEAVY = ("torch", "transformers", "prefect", "plotly")


class Told(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two whole steps of 6 questions and 5 rollouts, and a third that is sampled and judged."""
    session = make_run(tmp_path_factory.mktemp("audit"), {})
    session.run_stage("evaluate", 0)
    session.close()
    return session.run


@pytest.fixture
def srpo(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run `srpo audit` on a terminal of 80 columns."""

    def call(run: Run | Path, *arguments: object, columns: int = 80) -> Told:
        root = run.root if isinstance(run, Run) else run
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["srpo", "audit", str(root), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return Told(int(end.value.code or 0), out, err)

    return call


def taught(run: Run) -> str:
    """Return a rollout of step 1 that is distilled."""
    frame = samples(run, [1]).filter(pl.col("route") == "sdpo").collect()
    return str(frame["rollout_id"][0])


@pytest.mark.parametrize("columns", [80, 140])
def test_a_listing_fits_the_terminal_and_counts(run: Run, srpo: Any, columns: int) -> None:
    told = srpo(run, columns=columns)
    lines = told.out.splitlines()
    assert told.code == 0
    assert max(map(len, lines)) <= columns
    assert lines[0].split()[:2] == ["rollout_id", "route" if columns == 80 else "prompt_id"]
    assert lines[1].startswith("000000-0000-00")
    assert lines[-1] == f"{ROLLOUTS} of {ROLLOUTS} rollouts match; 50 shown (--limit)"
    assert len(lines) == 52


def test_filters_agree_with_the_tables(run: Run, srpo: Any) -> None:
    routes = [row for step in range(STEP) for row in run.read("routes", step).to_pylist()]
    expected = [r["rollout_id"] for r in routes if r["route"] == "sdpo" and r["advantage"] < -0.3]
    condition = ("--where", "advantage < -0.3", "--columns", "rollout_id")
    told = srpo(run, "--route", "sdpo", *condition, "--format", "json")
    assert [row["rollout_id"] for row in json.loads(told.out)] == expected != []
    told = srpo(run, "--where", "route = 'sdpo' and advantage < -0.3", "--step", "1:2")
    count = sum(name.startswith("000001") for name in expected)
    assert f"{count} of {PER_STEP} rollouts match" in told.out


def test_sorted_both_ways_with_the_column_in_the_table(run: Run, srpo: Any) -> None:
    for option, down in (("--sort=-max_logprob_gap", True), ("--sort=max_logprob_gap", False)):
        told = srpo(run, "--step", ":2", option, "--format", "json", "--limit", 1000)
        values = [row["max_logprob_gap"] for row in json.loads(told.out)]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=down)
        assert values[len(known) :] == [None] * (len(values) - len(known))
    told = srpo(run, "--sort", "-max_logprob_gap", "--limit", 1)
    assert "max_logprob_gap" in told.out.splitlines()[0]


def test_groups_are_counts_and_means(run: Run, srpo: Any) -> None:
    told = srpo(run, "--step", "0:2", "--group-by", "route,correct", "--format", "json")
    routes = [row for step in range(STEP) for row in run.read("routes", step).to_pylist()]
    found = json.loads(told.out)
    assert sum(row["rollouts"] for row in found) == len(routes)
    for row in found:
        members = [
            r for r in routes if (r["route"], r["correct"]) == (row["route"], row["correct"])
        ]
        assert row["rollouts"] == len(members)
        mean = sum(r["advantage"] for r in members) / len(members)
        assert row["mean_advantage"] == pytest.approx(mean, abs=1e-6)
    told = srpo(run, "--group-by", "rollout_id", "--limit", 2)
    assert told.out.endswith(
        f"{ROLLOUTS} groups (means); {ROLLOUTS} of {ROLLOUTS} rollouts match; 2 shown (--limit)\n"
    )


def test_what_is_written_reads_back_equal(run: Run, srpo: Any, tmp_path: Path) -> None:
    expected = samples(run).collect()
    for name in ("rows.parquet", "rows.csv", "rows.json"):
        told = srpo(run, "--output", tmp_path / name)
        assert (told.code, told.out) == (0, "")
    assert pl.read_parquet(tmp_path / "rows.parquet").equals(expected)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert pl.DataFrame(rows, schema=expected.schema).equals(expected)
    read = pl.read_csv(tmp_path / "rows.csv", schema=expected.schema)
    texts = pl.col(pl.String)
    blank = texts.replace("", None)  # CSV knows no difference between nothing and no text
    assert read.with_columns(blank).equals(expected.with_columns(blank))


def test_all_rows_are_written_unless_limited(run: Run, srpo: Any) -> None:
    columns = ("--columns", "rollout_id,response_text", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(srpo(run, *columns).out)))
    assert len(rows) == ROLLOUTS
    texts = [t for step in range(STEP + 1) for t in run.read("rollouts", step)["response_text"]]
    assert [row["response_text"] for row in rows] == [str(text) for text in texts]
    assert len(list(csv.reader(io.StringIO(srpo(run, *columns, "--limit", 2).out)))) == 3


def test_long_texts_and_weights_are_read_only_where_named(run: Run, srpo: Any) -> None:
    plain = json.loads(srpo(run, "--format", "json", "--limit", 1).out)[0]
    assert list(plain) == [column.name for column in COLUMNS]
    for option, value in (
        ("--where", "weight_std > 0"), ("--sort", "weight_std"),
        ("--columns", "rollout_id,weight_std"), ("--group-by", "weight_std"),
    ):  # fmt: skip
        found = json.loads(srpo(run, option, value, "--format", "json").out)
        assert "weight_std" in found[0]
        assert not {column.name for column in ON_REQUEST} & set(found[0]) - {"weight_std"}


def test_columns_without_room_are_named(run: Run, srpo: Any) -> None:
    names = [column.name for column in COLUMNS]
    told = srpo(run, "--columns", ",".join(names), "--limit", 1)
    head = told.out.splitlines()[0].split()
    said = " ".join(told.out.split())
    assert f"no room for {', '.join(names[len(head) :])}: " in said
    assert srpo(run, "--columns", "help").out.split()[:2] == ["column", "meaning"]
    listed = srpo(run, "--columns", "help", columns=140).out
    assert all(f" {name} " in listed for name in describe())


def test_one_prompt_through_training(run: Run, srpo: Any) -> None:
    frame = samples(run).collect()
    prompt = frame["prompt_id"][0]
    mine = frame.filter(pl.col("prompt_id") == prompt)
    told = srpo(run, "--prompt", prompt, columns=140)
    lines = told.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("step"))
    rows = [line.split() for line in lines[start + 1 : -1]]
    assert [int(row[0]) for row in rows] == mine["step"].unique().sort().to_list()
    first = mine.filter(pl.col("step") == 0)
    assert rows[0][1] == f"{first['correct'].sum()}/{len(first)}"
    assert float(rows[0][2]) == pytest.approx(first["reward"].mean(), abs=1e-3)
    taught_ones = (first["route"] == "sdpo").sum()
    assert sum(int(n) for n in re.findall(r"#\d+ ×(\d+)", lines[start + 1])) == taught_ones > 0
    assert f"{len(mine)} rollouts in {len(rows)} step" in lines[-1]
    told = srpo(run, "--prompt", prompt, "--format", "json")
    assert [row["rollout_id"] for row in json.loads(told.out)] == mine["rollout_id"].to_list()


@pytest.mark.parametrize("columns", [80, 140])
def test_one_rollout_whole(run: Run, srpo: Any, columns: int) -> None:
    name = taught(run)
    told = srpo(run, "--rollout", name, columns=columns)
    record = rollout_record(run, name)
    assert record.route is not None and record.update is not None
    assert max(map(len, told.out.splitlines())) <= columns
    shown = " ".join(told.out.split())
    for text in (
        f"rollout {name}", record.route["reason"], record.rollout["messages"][1]["content"],
        f"demonstration: rollout {record.route['teacher_rollout_id']}", "teacher prompt",
        f"{len(record.tokens)} tokens", f"of N = {record.batch_tokens} tokens",
    ):  # fmt: skip
        assert " ".join(text.split()) in shown
    lines = told.out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ["token"])
    assert "student" in lines[head] and "teacher" in lines[head]
    assert [line.split()[0] for line in lines[head + 1 :]][: len(record.tokens)] == [
        str(position) for position in range(len(record.tokens))
    ]
    cut = srpo(run, "--rollout", name, "--limit", 2, columns=columns)
    assert f"2 of {len(record.tokens)} tokens shown (--limit)" in cut.out


def test_a_rollout_as_json_is_the_whole_record(run: Run, srpo: Any) -> None:
    name = taught(run)
    told = srpo(run, "--rollout", name, "--format", "json")
    record = rollout_record(run, name).to_dict()
    assert json.loads(told.out) == json.loads(json.dumps(record))
    total = sum(token["loss"] for token in record["tokens"])
    assert total == pytest.approx(record["update"]["loss_sum"], rel=1e-5)


def test_what_is_not_recorded_is_said_with_the_reason(run: Run, srpo: Any) -> None:
    half = srpo(run, "--rollout", f"{STEP:06d}-0000-00")
    assert "the step has no routes yet" in half.out
    listed = json.loads(srpo(run, "--step", STEP, "--format", "json").out)
    assert {row["route"] for row in listed} == {row["loss_sum"] for row in listed} == {None}
    assert {row["reward"] for row in listed} <= {0.0, 1.0}
    evaluated = srpo(run, "--rollout", "e000000-0000-01")
    assert "an evaluation: nothing is routed" in evaluated.out
    assert "(evaluations keep no log-probabilities)" in " ".join(evaluated.out.split())
    grpo = samples(run, [0]).filter(pl.col("route") == "grpo").collect()["rollout_id"][0]
    assert "routed to grpo: a teacher pass" in " ".join(srpo(run, "--rollout", grpo).out.split())


def test_a_fork_of_weights_alone_has_no_updates(run: Run, srpo: Any, tmp_path: Path) -> None:
    plan = Plan.of(run, "weigh", "weigh", "0:1")
    replay(run, tmp_path / "fork", plan, ["weigh.beta=3"]).close()
    name = samples(run, [0]).filter(pl.col("route") == "sdpo").collect()["rollout_id"][0]
    told = srpo(tmp_path / "fork", "--rollout", name)
    assert "stage update has not run for this step" in told.out
    named = ("--columns", "rollout_id,loss_sum,weight_std", "--format", "json")
    forked = {row["rollout_id"]: row for row in json.loads(srpo(tmp_path / "fork", *named).out)}
    parents = {row["rollout_id"]: row for row in json.loads(srpo(run, *named).out)}
    assert forked[name]["loss_sum"] is None
    assert forked[name]["weight_std"] > parents[name]["weight_std"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "nothing > 1"], "no column nothing"),
        (["--where", "max(reward) > 0.5"], "one row at a time"),
        (["--where", "reward >"], "--where reward >"),
        (["--where", "reward"], "expected true or false"),
        (["--sort", "nothing"], "no column nothing"),
        (["--group-by", "nothing"], "no column nothing"),
        (["--columns", "nothing"], "no column nothing"),
        (["--columns", ","], "expect names of columns"),
        (["--step", "99"], "no rollouts of step 99; it has steps 0 to 2"),
        (["--step", "x"], "expected a step such as 12"),
        (["--step", "7:9"], "which has steps 0 to 2"),
        (["--prompt", "nobody"], "no rollout of prompt nobody"),
        (["--rollout", "nobody"], "is no rollout id"),
        (["--rollout", "000000-0099-00"], "no rollout 000000-0099-00"),
        (["--rollout", "000000-0000-00", "--route", "sdpo"], "--rollout shows one rollout"),
        (["--rollout", "000000-0000-00", "--format", "csv"], "one rollout is a table or json"),
        (["--format", "parquet"], "needs --output"),
        (["--route", "nothing"], "nothing"),
        (["--output", "/nowhere/at/all.json"], "No such file"),
    ],
)
def test_errors_are_one_line(run: Run, srpo: Any, arguments: list[str], message: str) -> None:
    told = srpo(run, *arguments)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    assert message in told.err


def test_no_run(srpo: Any, tmp_path: Path) -> None:
    told = srpo(tmp_path / "nowhere")
    assert told.code == 2 and told.err.count("\n") == 1


def test_hostile_texts_do_nothing_to_a_terminal(run: Run, srpo: Any, tmp_path: Path) -> None:
    hostile = hostile_run(run, tmp_path / "hostile", steps=1)
    frame = samples(hostile).collect()
    name = frame.filter(pl.col("route") == "sdpo")["rollout_id"][0]
    every = ",".join(
        [*(column.name for column in ON_REQUEST), "reason", "prediction", "rollout_id"]
    )
    for arguments in (
        ["--limit", "3"], ["--rollout", name], ["--prompt", frame["prompt_id"][0]],
        ["--columns", every, "--limit", "2"], ["--group-by", "reason,prediction"],
        ["--rollout", "e000000-0000-00"],
    ):  # fmt: skip
        told = srpo(hostile, *arguments)
        assert told.code == 0
        bad = {c for c in told.out if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co")}
        assert bad <= {"\n"}
        assert len(told.out) < 6 * LONG
        assert max(map(len, told.out.splitlines())) <= 80


def test_markup_is_text(run: Run, srpo: Any, tmp_path: Path) -> None:
    """What looks like Rich's markup is shown, also when it is wrong; JSON keeps the characters."""
    made = Run.create(tmp_path / "markup", run.config, {})
    manifest, data = run.manifest("rollouts", 0), run.read("rollouts", 0)
    from tests.builders.tables import with_column

    text = "[bold]x[/] [/nope] :smile: \x1b[31m"
    data = with_column(data, "response_text", [text] * data.num_rows)
    data = with_column(data, "reference", ['"\\ud800"'] * data.num_rows)
    made.commit(manifest.origin, data, manifest.facts, manifest.cost)
    (made.root / "tokenizer").symlink_to(run.tokenizer_path())
    shown = "[bold]x[/] [/nope] :smile: \\x1b[31m"
    columns = ("--columns", "rollout_id,response_text,reference")
    assert srpo(made, *columns, columns=140).out.count(shown) == PER_STEP
    assert shown in srpo(made, "--rollout", "000000-0000-00").out
    rows = json.loads(srpo(made, *columns, "--format", "json").out)
    assert (rows[0]["response_text"], rows[0]["reference"]) == (text, '"\\ud800"')


def test_neither_torch_nor_transformers_is_imported(run: Run) -> None:
    code = (
        "import sys; from flows.cli import app\n"
        f"app(['audit', {str(run.root)!r}, '--where', 'reward > 0'], standalone_mode=False)\n"
        f"app(['audit', {str(run.root)!r}, '--rollout', {taught(run)!r}], standalone_mode=False)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
