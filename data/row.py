"""One record of a dataset, whatever kind of file it came from."""

from dataclasses import dataclass
from typing import Self


class WrittenFloat(float):
    """A number of a JSON file that keeps how it was written.

    Attributes:
        text: its text: `0.00001` where repr says 1e-05, `1.0`, or all digits of one that has more
            than a float holds.
    """

    text: str

    def __new__(cls, text: str) -> Self:
        """Return the float that the text means."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __repr__(self) -> str:
        """Return the number as it was written, for messages."""
        return self.text


@dataclass(frozen=True)
class Row:
    """One record of a dataset.

    Attributes:
        fields: the record as it was read.
        source: file (or dataset and split) it came from.
        number: its place there, from 1: the line of JSON lines and CSV, else its number.
        position: how an editor would find it, where that isn't its number.
        problem: why the record could not be read, if so; it has no fields to rely on then.
    """

    fields: dict[str, object]
    source: str
    number: int
    position: str = ""
    problem: str | None = None

    @property
    def place(self) -> str:
        """Where the row is, for messages."""
        return f"{self.source}, {self.position or f'row {self.number}'}"
