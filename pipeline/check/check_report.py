"""What a check reports: findings, each with what was expected, what was found and what to do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.text import printable

_LONGEST = 160


@dataclass(frozen=True)
class Finding:
    """Something in a run that is not as it must be.

    Attributes:
        path: the file or folder that is broken.
        advice: what to do about it.
    """

    path: str
    expected: str
    found: str
    advice: str

    @property
    def line(self) -> str:
        """Return one line."""
        return f"{self.path}: expected {self.expected}; found {self.found}; {self.advice}"


@dataclass
class CheckReport:
    """What a check saw.

    Attributes:
        findings: what is broken, in the order of steps and flow.
        notes: what is worth knowing and breaks nothing.
        tables: tables checked, inherited ones included.
        bytes: bytes hashed.
        once: texts of notes that are said once, though they are true of several steps.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: int = 0
    bytes: int = 0
    once: dict[str, str] = field(default_factory=dict)

    def note_once(self, text: str, path: Path | None = None) -> None:
        """Note what is worth saying of one step only, with the file in which it was seen first."""
        if text not in self.once:
            self.once[text] = text if path is None else f"{path}: {text}"
            self.notes.append(self.once[text])

    def extend(self, later: Self) -> None:
        """Add what a check of later steps saw."""
        said = {later.once[text] for text in later.once.keys() & self.once.keys()}
        self.findings += later.findings
        self.notes += [note for note in later.notes if note not in said]
        self.once = {**later.once, **self.once}
        self.bytes += later.bytes

    def add(self, path: Path | str, expected: Any, found: Any, advice: str) -> None:
        """Note a finding; long texts are cut and shown harmlessly."""
        self.findings.append(Finding(f"{path}", shown(expected), shown(found), advice))


def shown(value: Any) -> str:
    """Return a value as one short line without control characters."""
    return printable(value if isinstance(value, str) else repr(value), _LONGEST)
