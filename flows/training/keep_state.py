"""What a training keeps of its past: which snapshots, and which tables."""

from pathlib import Path

from flows.training.progress import print_warnings
from pipeline.errors import StoreError
from pipeline.files.durable import remove_folder, remove_leftovers
from pipeline.housekeeping.pruning import after_snapshot, may_go
from pipeline.policy.policy import Policy
from pipeline.policy.snapshots import save_snapshot
from pipeline.run.run import Run
from pipeline.run.step_records import Records


def keep_state(run: Run, records: Records, policy: Policy, steps_done: int) -> Path:
    """Keep the state after so many steps, and drop snapshots and tables over the number kept."""
    target = run.snapshot_path(steps_done)
    if not target.exists():
        remove_leftovers(target.parent)
        save_snapshot(policy, target, steps_done)
    try:
        for old in _superfluous(run, records):
            if may_go(run, old):
                remove_folder(run.own_snapshot_path(old))
        after_snapshot(run)
    except StoreError as error:  # of a run beside this one, which is no reason to stop
        print_warnings([f"nothing more is removed: {error}"])
    return target


def _superfluous(run: Run, records: Records) -> list[int]:
    """Return snapshots beyond the newest kept; the start, the best and the last stay."""
    found = run.own_snapshots()
    newest = found[-run.config.run.keep_snapshots :]
    return [s for s in found if s not in newest and s not in (0, records.best(set(found)))]
