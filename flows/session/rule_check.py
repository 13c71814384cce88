"""One run, one set of rules: a run made by other versions of stages is not gone on with."""

from pipeline.config.sections import Config
from pipeline.errors import StoreError
from pipeline.run.run import Run
from pipeline.tables.rule_changes import changes_between
from pipeline.text import command


def expect_same_rules(run: Run, config: Config) -> None:
    """Refuse to add steps to a run whose own tables were made by other versions of stages.

    Earlier and later steps would follow different rules, and policies between snapshots could not
    be rebuilt. Tables that a fork takes from its parent may have any version.

    Args:
        config: with the steps that are wanted now.

    Raises:
        StoreError: they were, and there are steps to add.
    """
    from flows.session.stage_runner import STAGES  # brings torch

    done = run.steps_done()
    if done >= config.run.steps:
        return
    changed = []
    for stage in STAGES.values():
        steps = run.own_steps_of(stage.writes[0])
        if not steps:
            continue
        made = run.manifest(stage.writes[0], max(steps)).origin.stage_version
        if made != stage.version:
            what = "; ".join(changes_between(stage.name, made, stage.version))
            changed.append(f"{stage.name} version {made}, now {stage.version}{_bracket(what)}")
    if not changed:
        return
    start = max((n for n in run.snapshots() if n <= done), default=0)
    longer = ["--set", f"run.steps={config.run.steps}"] if start >= run.config.run.steps else []
    place = ("--run", run.root, "--step", start, "--fork", "NEW", *longer)
    train = command("train", "--resume", "--run", "NEW")
    raise StoreError(
        f"{run.root} was made by other rules, and a run keeps to one set of them: "
        f"{', '.join(changed)}. Go on from step {start} in a fork: "
        f"{command('stage', 'generate', *place)}, then {train}"
    )


def _bracket(text: str) -> str:
    return f" ({text})" if text else ""
