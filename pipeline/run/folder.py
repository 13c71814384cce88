"""The folder of one run: where its files are, and how those of a run at a URL get there."""

import re
from pathlib import Path

from pipeline.remote import mirror_files
from pipeline.remote.client import Address
from pipeline.remote.mirror_paths import address_of

_STEP = re.compile("[0-9]{6,9}")


class RunFolder:
    """A folder of tables, records and snapshots, or the mirror of one at a URL.

    All paths of the layout are made here; stages never see one. Methods called `own_…` are of this
    folder alone, whatever a fork takes from its parent (`pipeline.run.lineage`).

    Attributes:
        root: the folder on this machine.
        address: what it mirrors; None: nothing, the folder is the run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address: Address | None = address_of(root)

    def own_table_path(self, table: str, step: int) -> Path:
        """Return where this folder has a table of a step."""
        if table == "evaluations":
            return self.root / "evaluations" / f"{step:06d}.arrow"
        return self.root / "steps" / f"{step:06d}" / f"{table}.arrow"

    def own_metrics_path(self, step: int) -> Path:
        """Return where this folder has the flat record of a step."""
        return self.root / "steps" / f"{step:06d}" / "metrics.json"

    def own_snapshot_path(self, steps_done: int) -> Path:
        """Return where this folder has the policy after so many steps."""
        return self.root / "policy" / f"{steps_done:06d}"

    def own_steps_of(self, table: str) -> set[int]:
        """Return the steps of which this folder has the manifest of a table."""
        pattern = "evaluations/*.json" if table == "evaluations" else f"steps/*/{table}.json"
        names = [path.relative_to(self.root).parts[1] for path in self.root.glob(pattern)]
        return {int(n) for n in (name.split(".")[0] for name in names) if _STEP.fullmatch(n)}

    def own_snapshots(self) -> list[int]:
        """Return the steps of the complete snapshots in this folder, ascending."""
        found = [p.parent.name for p in (self.root / "policy").glob("[0-9]*/state.json")]
        return sorted(int(name) for name in found if _STEP.fullmatch(name))

    def address_in(self, path: Path) -> Address | None:
        """Return what a path in this folder mirrors; None: nothing."""
        if self.address is None:
            return None
        return self.address / path.relative_to(self.root).as_posix()

    def fetched(self, path: Path) -> Path:
        """Return the path of a table or of weights, once their contents are on this machine.

        In the mirror of a URL such a file is a placeholder until somebody reads it.

        Args:
            path: in this folder, or in an ancestor's, which is on the same store.

        Raises:
            StoreError: the store failed, or has it no longer.
        """
        if self.address is not None:
            mirror_files.fetch(path)
        return path

    def fetch_anew(self, path: Path) -> bool:
        """Fetch a file that is not what it must be; tell whether the store has one."""
        return self.address is not None and mirror_files.fetch_anew(path)


def manifest_path(table_path: Path) -> Path:
    """Return where the manifest of a table is: beside it. Writing it commits the table."""
    return table_path.with_suffix(".json")
