"""What a training keeps of its past: which snapshots, and which tables."""

from pathlib import Path

from pipeline.errors import StoreError
from pipeline.files.durable import remove_folder, remove_leftovers
from pipeline.housekeeping.pruning import prune_on_schedule, snapshots_in_excess
from pipeline.policy.policy import Policy
from pipeline.policy.snapshots import save_snapshot
from pipeline.run.run import Run
from pipeline.run.step_records import Records
from pipeline.text import print_warnings


def keep_state(run: Run, records: Records, policy: Policy, steps_done: int) -> Path:
    """Keep the state after so many steps, and drop what is no longer kept."""
    target = run.snapshot_path(steps_done)
    if not target.exists():
        remove_leftovers(target.parent)
        save_snapshot(policy, target, steps_done)
    try:
        for old in snapshots_in_excess(run, records):
            remove_folder(run.own_snapshot_path(old))
        prune_on_schedule(run)
    except StoreError as error:  # of a run beside this one, which is no reason to stop
        print_warnings([f"nothing more is removed: {error}"])
    return target
