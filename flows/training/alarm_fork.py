"""After a severe alarm: a fork from the last healthy snapshot, with a lower learning rate."""

from collections.abc import Callable

from flows.session.fork_run import fork_run, free_name
from flows.session.session import Session
from flows.training.loop import Outcome
from pipeline.health.shifts import PAST
from pipeline.run.run import Run


def train_with_recovery(session: Session, train: Callable[[Session], Outcome]) -> Outcome:
    """Train; where an alarm ends the run and its settings ask for a fork, go on in the fork.

    Args:
        train: trains one open session to its end. Each session is closed after it.

    Returns:
        How the last session ended.
    """
    following: Session | None = session
    while following is not None:
        with following as current:
            outcome = train(current)
            following = session_after_alarm(current, outcome)
    return outcome


def session_after_alarm(session: Session, outcome: Outcome) -> Session | None:
    """Return the fork in which the training shall go on; None if it shall not.

    The fork stops at its own alarms: a run that fails twice is for a person to look at.
    """
    settings = session.config.run
    if outcome.ended != "alarm" or settings.on_alarm != "fork":
        return None
    run = session.run
    healthy = _last_healthy(run, outcome.steps_done)
    start = max(steps for steps in run.snapshots() if steps <= healthy)
    rate = session.config.update.learning_rate * settings.alarm_rate_factor
    overrides = [f"update.learning_rate={rate!r}", "run.on_alarm=stop"]
    fork = fork_run(run, free_name(run.root), "generate", start, start + 1, overrides)
    return Session.resume(fork.root)


def _last_healthy(run: Run, steps_done: int) -> int:
    """Return the steps done of the newest state that no alarm of the last steps doubts.

    One trouble raises several alarms, and the first of them need not be the severe one.
    """
    recent = range(max(0, steps_done - PAST), steps_done)
    alarms = [alarm for step in recent for alarm in run.metrics(step)["alarms"]]
    return min(int(alarm["healthy"]) for alarm in alarms)
