"""After a severe alarm: a fork from the last healthy snapshot, with a lower learning rate."""

from flows.forking import fork_run, free_name
from flows.loop import Outcome
from flows.session import Session
from pipeline.health import RECENT
from pipeline.store import Run


def session_after_alarm(session: Session, outcome: Outcome) -> Session | None:
    """Return the fork in which the training shall go on; None if it shall not.

    The last healthy snapshot is the newest one before the alarm's recent window. The fork stops at
    its own alarms: a run that fails twice is for a person to look at.
    """
    settings = session.config.run
    if outcome.ended != "alarm" or settings.on_alarm != "fork":
        return None
    run = session.run
    onset = max(0, outcome.steps_done - RECENT)
    start = max(steps for steps in run.snapshots() if steps <= onset)
    rate = session.config.update.learning_rate * settings.alarm_rate_factor
    overrides = [f"update.learning_rate={rate!r}", "run.on_alarm=stop"]
    fork = fork_run(run, free_name(run.root), "generate", start, start + 1, overrides)
    return Session.resume(Run.open(fork.root).root)
