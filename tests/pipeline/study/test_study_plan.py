"""A study's plan: the runs it makes, in order, and what it refuses."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.study.study_plan import CODE, Plan
from tests.builders.study_plans import write_plan
from tests.paths import PROJECT

SHIPPED = sorted(
    path for path in (PROJECT / "docs/study").glob("*.toml") if "[[groups]]" in path.read_text()
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_plan_can_be_read(path: Path) -> None:
    assert Plan.read(path).runs()


def test_the_runs_of_a_plan_in_order(tmp_path: Path) -> None:
    plan = Plan.read(write_plan(tmp_path))
    assert [run.name for run in plan.runs()] == [
        "pilot/sums/srpo@4e-4/0",
        "pilot/sums/srpo@1e-3/0",
        "pilot/sums/grpo@4e-4/0",
        "pilot/sums/grpo@1e-3/0",
        "main/sums/grpo/1",
        "main/sums/srpo/1",
        "main/sums/grpo/2",
        "main/sums/srpo/2",
    ]


def test_settings_stand_in_a_fixed_order(tmp_path: Path) -> None:
    plan = Plan.read(write_plan(tmp_path))
    assert plan.run("main/sums/grpo/2").settings == [
        "route.method=grpo",
        "update.learning_rate=1e-3",
        "generate.temperature=0.9",
        "run.steps=2",
        "run.seed=2",
    ]
    assert plan.run("pilot/sums/srpo@4e-4/0").settings == [
        "update.learning_rate=4e-4",
        "run.steps=2",
        "run.seed=0",
    ]


def test_a_run_is_configured_by_its_world_and_settings(tmp_path: Path) -> None:
    plan = Plan.read(write_plan(tmp_path))
    config = plan.load(plan.run("main/sums/grpo/2"))
    assert (config.route.method, config.update.learning_rate) == ("grpo", 0.001)
    assert (config.run.seed, config.run.steps, config.generate.temperature) == (2, 2, 0.9)
    assert config.model.path == str(CODE / "data/demo/policy")
    assert config.generate.questions == 4  # the world's


@pytest.mark.parametrize(
    ("rate", "text"), [("4e-4", "4e-4"), ("0.0015", "1.5e-3"), ("2.50e-5", "2.5e-5"), ("1", "1e+0")]
)
def test_a_rate_in_a_name_reads_as_the_same_number(tmp_path: Path, rate: str, text: str) -> None:
    plan = Plan.read(write_plan(tmp_path, ("rates = [4e-4, 1e-3]", f"rates = [{rate}]")))
    run = plan.runs()[0]
    assert run.variant == f"srpo@{text}"
    assert plan.load(run).update.learning_rate == float(rate)
    assert plan.title(run.variant) == f"SRPO, {text}"


def test_rows_lie_by_name(tmp_path: Path) -> None:
    run = Plan.read(write_plan(tmp_path)).runs()[0]
    assert run.row(Path("rows")) == Path("rows/pilot/sums/srpo@4e-4/0.json")


def test_groups_of_one_name_may_differ_in_seeds_and_steps(tmp_path: Path) -> None:
    path = write_plan(tmp_path, ('name = "pilot"', 'name = "main"'))
    assert {run.group for run in Plan.read(path).runs()} == {"main"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('variants = ["grpo"', 'variants = ["gspo"', "group main: gspo is none of the variants"),
        ('worlds = ["sums"]', 'worlds = ["sum"]', "group pilot: sum is none of the worlds: sums"),
        ("[rates.sums]", "[rates.sum]", "rates: sum is none of the worlds: sums"),
        ("grpo = 1e-3", "gspo = 1e-3", "rates.sums: gspo is none of the variants: grpo, srpo"),
        ("srpo = 2e-4", "", "group main: no learning rate for srpo in sums"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "1 is there twice"),
        ("seeds = [1, 2]", "seeds = []", "expected at least one, found none"),
        ("seeds = [1, 2]", "seed = [1, 2]", "groups.1.seeds: field required"),
        ("1e-3]", "0.0004]", "groups.0.rates: 0.0004 is there twice"),
        ('name = "main"', 'name = "Main"', "groups.1.name: expected small letters"),
        ('name = "main"', 'name = "a/b"', "groups.1.name: expected small letters"),
        ('name = "main"', 'name = "warmstart"', "runs' warmstart lie there"),
        ("sums.toml", "sum.toml", "sum.toml: no such file"),
        ("policy =", 'warmstart = "smollm2"\npolicy =', "policy and warmstart"),
        ("route.method=grpo", "route.methd=grpo", "unknown key route.methd"),
        ("route.method=grpo", "route.method=gspo", "run pilot/sums/grpo@4e-4/0"),
        ("generate.temperature=0.9", "run.seed=7", "run main/sums/grpo/1: run.seed is set twice"),
        ("steps = 2", "steps = 0", "groups.0.steps"),
        ("[worlds.sums]", "[worlds.sums", "not valid TOML"),
    ],
)
def test_what_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = write_plan(tmp_path, (old, new))
    with pytest.raises(ConfigError) as error:
        Plan.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path)
    text = path.read_text()
    path.write_text(text + text[text.rindex("[[groups]]") :].replace("[1, 2]", "[2, 3]"))
    with pytest.raises(ConfigError, match="run main/sums/grpo/2 is there twice"):
        Plan.read(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ('set = ["generate.temperature=0.8"]', "generate.temperature=0.8 run.steps=2 run.seed=3"),
        ('set = ["generate.temperature=0.9"]\nsteps = 4', "run.steps=4 run.seed=3"),
    ],
)
def test_seeds_of_a_variant_have_equal_settings(tmp_path: Path, changes: str, said: str) -> None:
    """A group's second half, with seed 3, may have the same name, but not other settings."""
    path = write_plan(tmp_path)
    half = GROUP.format(name="main", steps=2, more='set = ["generate.temperature=0.9"]')
    path.write_text(path.read_text() + half)
    assert len(Plan.read(path).runs()) == 10
    steps, more = (4, changes.partition("\n")[0]) if "steps" in changes else (2, changes)
    path.write_text(
        write_plan(tmp_path).read_text() + GROUP.format(name="main", steps=steps, more=more)
    )
    with pytest.raises(
        ConfigError, match="run main/sums/grpo/3: expected the settings of "
    ) as error:
        Plan.read(path)
    assert said in str(error.value) and "\n" not in str(error.value)


GROUP = """
[[groups]]
name = "{name}"
worlds = ["sums"]
variants = ["grpo", "srpo"]
seeds = [3]
steps = {steps}
{more}
"""


@pytest.mark.parametrize(
    ("steps", "more", "said"),
    [
        (10, "", None),
        (10, "rates = [1e-3]\nset = ['evaluate.every=3']", None),  # only chooses a rate
        (20, "", None),
        (10, "set = ['evaluate.every=10']", "evaluated after 0, 10 steps, but main/sums/grpo"),
        (
            20,
            "set = ['evaluate.every=10']",
            "…, 10, 15, 20 steps, but ablation/sums/grpo after 0, 10",
        ),
        (12, "", "ablation/sums/grpo: evaluated after …, 5, 10, 12 steps, but main/sums/grpo"),
        (5, "", "ablation/sums/grpo: 5 steps, but main/sums/grpo is longer"),
    ],
)
def test_groups_that_are_compared_are_evaluated_alike(
    tmp_path: Path, steps: int, more: str, said: str | None
) -> None:
    """Main runs have 20 steps, evaluated every five; means of a row are of ten."""
    path = write_plan(tmp_path, ("seeds = [1, 2]\nsteps = 2", "seeds = [1, 2]\nsteps = 20"))
    world = path.with_name("sums.toml")
    world.write_text(world.read_text().replace("every = 1", "every = 5"))
    path.write_text(path.read_text() + GROUP.format(name="ablation", steps=steps, more=more))
    if said is None:
        assert Plan.read(path).runs()
        return
    with pytest.raises(ConfigError) as error:
        Plan.read(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_plan_and_a_missing_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: can't be read: No such file"):
        Plan.read(tmp_path / "nowhere.toml")
    plan = Plan.read(write_plan(tmp_path))
    with pytest.raises(ConfigError, match="main/sums/grpo/9: no run of the plan"):
        plan.run("main/sums/grpo/9")
