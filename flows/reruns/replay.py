"""Replaying a run with other settings: recompute what follows a stage, over saved rollouts."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.session.fork_run import fork_run
from flows.session.session import Session
from flows.training.loop import Call, Reference
from pipeline.config.sections import Config
from pipeline.errors import ConfigError
from pipeline.remote.mirror_paths import is_mirrored, run_path
from pipeline.run.lock import RunLock
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_STAGES, stages_from, stages_of
from pipeline.stage.contract import Progress, silent

if TYPE_CHECKING:
    from flows.workers.worker_pool import WorkerPool

_QUOTES = "\"'"
LAST = ("verify", "decisions", "route", "weigh", "update")


@dataclass(frozen=True)
class Plan:
    """What to recompute: from a stage to another one, over steps [start, end).

    Attributes:
        last: a stage, or `decisions`: the routing decisions, which need no policy.
    """

    stage: str
    last: str
    start: int
    end: int

    @classmethod
    def of(cls, run: Run, stage: str, last: str, steps: str | None) -> "Plan":
        """Read what the user asked for.

        Raises:
            ConfigError: no such stage; an order that runs backwards; nothing to refer to.
        """
        if stage == "generate":
            raise ConfigError(
                "a replay keeps the saved rollouts; to sample anew from step N: srpo stage "
                "generate --run RUN --step N --fork NEW, then srpo train --resume --run NEW"
            )
        if stage not in ALL_STAGES:
            raise ConfigError(f"no stage {stage}; a replay begins at {', '.join(ALL_STAGES[1:])}")
        if last not in LAST:
            raise ConfigError(f"no such last stage: {last}; there are {', '.join(LAST)}")
        start, end = split_steps(steps, run.steps_done())
        plan = cls(stage, last, start, end)
        if not plan.stages(run.config):
            raise ConfigError(f"a replay from {stage} can't end at {last}, which comes before it")
        if plan.needs_policies(run.config) and last != "update" and end > start + 1:
            raise ConfigError(
                f"recomputing {last} of several steps needs their policies, which need the updates "
                "before them: leave out --until, or choose one step"
            )
        return plan

    def stages(self, config: Config) -> list[str]:
        """Return the stages to run in each step of a fork with these settings."""
        final = "route" if self.last == "decisions" else self.last
        made = stages_of(config)
        last = made.index(final)
        return [s for s in stages_from(self.stage) if s in made[: last + 1]]

    def needs_policies(self, config: Config) -> bool:
        """Tell whether a stage of the plan needs the policy of its step."""
        return any(self._needs_policy(name) for name in self.stages(config))

    def stages_at_once(self, config: Config) -> list[str]:
        """Return the first stages, of which several steps may run at once.

        They need no policy, and no bank of verdicts that are still to come.
        """
        waits = "bank" if self.stage == "verify" else None
        names = self.stages(config)
        return list(itertools.takewhile(lambda s: s != waits and not self._needs_policy(s), names))

    def _needs_policy(self, name: str) -> bool:
        return name == "update" or (name == "route" and self.last != "decisions")


def split_steps(text: str | None, done: int) -> tuple[int, int]:
    """Read A:B, half-open; either end may be left out, and one number is one step."""
    head, colon, tail = (text or ":").partition(":")
    if not all(part == "" or part.isdecimal() for part in (head, tail)) or not (head or colon):
        raise ConfigError(f"--steps {text}: expected A:B with numbers of steps, such as 0:20")
    start = int(head or 0)
    end = int(tail or done) if colon else start + 1
    if not start < end:
        raise ConfigError(f"--steps {text}: {start}:{end} holds no step (the run has {done})")
    return start, end


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """Return one list of overrides per fork: `key=a,b` is a sweep, several make every combination.

    A comma in brackets or quotes belongs to its value: `key=[a,b],[c]` has two.
    """
    choices = []
    for override in overrides:
        key, equals, value = override.partition("=")
        values = _values(value) if equals else [value]
        choices.append(list(dict.fromkeys(f"{key}{equals}{one}" for one in values)))
    return [list(combination) for combination in itertools.product(*choices)]


def _values(text: str) -> list[str]:
    """Return what stands between the commas that are in no brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES and (depth or not parts[-1].strip()):
            quote = character  # within a word it is an apostrophe
        else:
            depth = max(0, depth + (character in "[{") - (character in "]}"))
        parts[-1] += character
    return [part.strip() for part in parts]


def fork_folders(root: Path, sweep: Sequence[Sequence[str]]) -> list[Path]:
    """Return the folder of each fork: `root` itself, or one below it named by its settings."""
    if len(sweep) == 1:
        return [root]
    varying = [i for i in range(len(sweep[0])) if len({tuple(o)[i] for o in sweep}) > 1]
    return [root / ",".join(o[i].replace("/", "_") for i in varying) for o in sweep]


def replay_step(root: str, step: int, names: list[str], decisions: bool) -> None:
    """Run stages of one step of a fork, on a worker, for the one who holds the fork's lock."""
    with Session.resume(run_path(root), writes=False) as session:
        for name in names:
            session.run_stage(name, step, decisions_only=decisions and name == "route")


def replay_fork(parent: str, root: str, plan: dict[str, Any], overrides: list[str]) -> None:
    """Make one fork of a sweep, on a worker."""
    replay(Run.open(run_path(parent)), run_path(root), Plan(**plan), overrides).close()


def make_forks(
    worker_pool: "WorkerPool",
    parent: Run,
    plan: Plan,
    sweep: Sequence[tuple[Path, Sequence[str]]],
    progress: Progress = silent,
) -> None:
    """Make each fork of a sweep on one of a pool's workers.

    Args:
        sweep: folder and overrides of each fork.
        progress: told of forks done.
    """
    common = {"parent": f"{parent.root.resolve()}", "plan": asdict(plan)}
    items = [
        {**common, "root": f"{root.resolve()}", "overrides": list(overrides)}
        for root, overrides in sweep
    ]
    worker_pool.map("sweep", f"{__name__}:replay_fork", items, progress)


def expect_local(root: Path) -> None:
    """Refuse to spread the steps of a fork at a URL: this process alone holds its lease.

    Raises:
        ConfigError: it is at a URL.
    """
    if is_mirrored(root):
        raise ConfigError(
            f"{root}: steps of one fork at a URL are stored by this command alone: leave out "
            "--runner; a sweep spreads its forks"
        )


def replay(
    parent: Run,
    root: Path,
    plan: Plan,
    overrides: Sequence[str],
    progress: Progress = silent,
    runner: Callable[[Session], Call] | None = None,
    worker_pool: "WorkerPool | None" = None,
) -> Session:
    """Fork `parent` and recompute what the plan says; return the fork's session, to be closed.

    If the same replay was cut short before, it goes on where it stopped.

    Args:
        progress: told of stages done, over all steps.
        runner: how stages are run; a flow makes each of them a Prefect task.
        worker_pool: workers that run the first stages, several steps at a time, as far as no policy
            is needed.

    Raises:
        ConfigError: workers would write to a fork at a URL, whose lease this process holds.
    """
    if worker_pool is not None:
        expect_local(root)
    updates = plan.last == "update"
    with RunLock(root):
        fork = fork_run(parent, root, plan.stage, plan.start, plan.end, overrides, updates)
        opened = Session(fork)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(opened)
        _recompute(session, plan, progress, runner, worker_pool)
        stack.pop_all()
    return session


def _recompute(
    session: Session,
    plan: Plan,
    progress: Progress,
    runner: Callable[[Session], Call] | None,
    worker_pool: "WorkerPool | None",
) -> None:
    """Run the stages of a plan in a fork, step by step."""
    config, updates = session.config, plan.last == "update"
    stages = plan.stages(config)
    total = len(stages) * (plan.end - plan.start)
    decisions = plan.last == "decisions"

    def plainly(name: str, step: int) -> Reference:
        return session.run_stage(name, step, decisions_only=decisions and name == "route")

    call = runner(session) if runner else plainly
    if worker_pool is not None:
        work = {
            "root": f"{session.run.root.resolve()}",
            "names": plan.stages_at_once(config),
            "decisions": decisions,
        }
        items = [{**work, "step": step} for step in range(plan.start, plan.end)]
        worker_pool.map("replay", f"{__name__}:replay_step", items, progress)
    begun = max(plan.start, session.next_step()) if updates else plan.start
    for step in range(begun, plan.end):
        for place, name in enumerate(stages):
            call(name, step)
            progress((step - plan.start) * len(stages) + place + 1, total)
        if updates:
            session.finish_step(step)
    if updates:
        session.snapshot(plan.end)
