"""Manifests: what a table is, where it comes from, and what making it cost."""

from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from pipeline.config.sections import Config
from pipeline.errors import StoreError
from pipeline.files.durable import digest_of, write_json
from pipeline.files.sealed_json import read_sealed


class Origin(BaseModel):
    """The deterministic part: equal runs have equal origins. It also goes into the Arrow file.

    Attributes:
        inputs: SHA-256 of every table read, and digests of the handles that were used.
        settings: the configuration sections that the stage depends on, as they are recorded;
            `settings_of` has all of their settings.
        policy_version: version of the policy that was used, if any.
        teacher_version: version of the teacher that was used, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    table: str
    step: int
    stage: str
    stage_version: int
    inputs: dict[str, str]
    settings: dict[str, dict[str, Any]]
    policy_version: str | None
    teacher_version: str | None

    def settings_of(self, section: str) -> dict[str, Any]:
        """Return a section's settings; those that the record lacks have their defaults."""
        later = Config.section_type(section).later_defaults()
        return {**later, **self.settings.get(section, {})}

    def differences(self, other: Self) -> list[str]:
        """Return what differs, as `key: mine, not theirs` texts."""
        mine, theirs = flat(self.model_dump()), flat(other.model_dump())
        return [
            f"{key}: {mine.get(key)}, not {theirs.get(key)}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]


class Cost(BaseModel):
    """What differs between two equal runs, kept out of the tables.

    Attributes:
        seconds: of the stage's own work.
        write_seconds: of writing, hashing and syncing the table; None in old manifests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    tokens: int
    peak_memory_mb: float
    created: str
    write_seconds: float | None = None

    @model_serializer(mode="wrap")
    def _as_recorded(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what an old manifest lacks: its digest covers only what it holds."""
        record: dict[str, Any] = fields(self)
        return {k: v for k, v in record.items() if v is not None}


class Manifest(BaseModel):
    """The record of one committed table; it stands beside the table as NAME.json.

    Attributes:
        facts: numbers of the stage that belong to no row (gradient norms, skipped rows, …).
        index: for token tables, first row and number of rows of each rollout.
        digest: SHA-256 of everything else in this record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin
    rows: int
    bytes: int
    sha256: str
    facts: dict[str, Any]
    index: dict[str, tuple[int, int]] | None
    cost: Cost
    digest: str = ""

    def sealed(self) -> Self:
        """Return this record with its own digest filled in."""
        return self.model_copy(update={"digest": self._own_digest()})

    def write(self, path: Path) -> None:
        """Write the record atomically; this is the commit point of its table."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record and verify its own digest.

        Raises:
            StoreError: the record is missing, malformed, or was changed.
        """
        try:
            return cls.model_validate(read_sealed(path))
        except FileNotFoundError:
            raise StoreError(f"{path}: this table was never committed") from None
        except ValidationError:
            raise StoreError(f"{path}: not a manifest") from None

    def expect_same(self, table_path: Path, digest: str, facts: dict[str, Any]) -> None:
        """Refuse a recomputed table, or a fact about it, that differs from the committed one.

        Args:
            digest: SHA-256 of the recomputed table.
        """
        changed = [key for key in sorted(self.facts) if self.facts[key] != facts.get(key)]
        other = [f"{key}: {facts.get(key)}, committed {self.facts[key]}" for key in changed]
        if self.sha256 != digest:
            other = [f"file: SHA-256 {digest[:12]}, committed {self.sha256[:12]}"]
        if other:
            raise StoreError(
                f"{table_path}: recomputing gave another {other[0]}; same machine, threads, "
                "ranks and versions as before?"
            )

    def _own_digest(self) -> str:
        return digest_of(self.model_dump(mode="json", exclude={"digest"}))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: leaf
        for name, item in value.items()
        for key, leaf in flat(item, f"{prefix}.{name}" if prefix else name).items()
    }
