"""Makes the run folders of this schema version that are kept in tests/golden/kept/VERSION.

    python -m tests.golden.keep_runs

A folder is made once for each schema version, and never again: it stands for runs that users have.
`parity` is a run of three steps whose policy is random, `sharper` a fork that weighs otherwise.
"""

import contextlib
import tempfile
from pathlib import Path

from flows.reruns.replay import Plan, replay
from flows.session.session import Session
from pipeline.run.step_layout import STEP_STAGES
from pipeline.tables.schemas import SCHEMA_VERSION
from tests.golden.golden_run import golden_config

KEPT = Path(__file__).parent / "kept"


def main() -> None:
    """Make the folders; refuse to replace what is there."""
    folder = KEPT / str(SCHEMA_VERSION)
    if folder.exists():
        raise SystemExit(f"{folder} is there: kept runs are never made again")
    sizes = {"generate": {"questions": 3, "rollouts": 4, "max_response_length": 12}}
    with tempfile.TemporaryDirectory() as temporary:
        config = golden_config(Path(temporary), {"run": {"steps": 3, "snapshot_every": 9}, **sizes})
        with contextlib.closing(Session.create(folder / "parity", config)) as session:
            session.run_stage("evaluate", 0)
            for step in range(3):
                for name in STEP_STAGES:
                    session.run_stage(name, step)
                session.finish_step(step)
            session.run_stage("evaluate", 3)
            session.snapshot(3)
            run = session.run
        plan = Plan.of(run, "weigh", "update", "1:3")
        replay(run, folder / "sharper", plan, ["weigh.beta=3"]).close()


if __name__ == "__main__":
    main()
