"""The section `data`: one task, or a mixture of several."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.field_types import Later, PositiveFloat, PositiveInt, Section

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


class TaskEntry(Section):
    """One task of a mixture; its table's name is what rollouts and metrics call it."""

    task: str = Field(
        description="name of a shipped task, or path of a Python file; not given: the table's name"
    )
    path: str | None = Field(
        None, description="file or folder of the dataset, or the name of a Hugging Face dataset"
    )
    weight: PositiveFloat = Field(
        1.0, description="training questions are shared among tasks in proportion to their weights"
    )


class DataSection(Section):
    """Where questions come from."""

    task: str | None = Field(
        None, description="name of a shipped task, or path of a Python file; this or a mixture"
    )
    path: str | None = Field(
        None, description="file or folder of the dataset, or the name of a Hugging Face dataset"
    )
    max_prompt_length: PositiveInt = Field(
        2048, description="prompt tokens; longer questions are skipped and counted"
    )
    on_bad_row: Later[Literal["stop", "skip"]] = Field(
        "stop",
        description="a row that its task can't use: stop, or leave it out and say so; more than a "
        "quarter of a split always stops",
    )
    drop_test_duplicates: Later[bool] = Field(
        False, description="leave out test questions whose prompt is also in train"
    )
    mixture: Later[dict[str, TaskEntry] | None] = Field(
        None, description="several tasks in one run: a table `[data.mixture.NAME]` for each"
    )

    @property
    def sources(self) -> dict[str, TaskEntry]:
        """Return the run's tasks by name, in the order that questions and tables keep."""
        if self.mixture is not None:
            return dict(sorted(self.mixture.items()))
        return {str(self.task): TaskEntry(task=str(self.task), path=self.path)}

    @property
    def mixed(self) -> tuple[str, ...]:
        """Return the names of a mixture's tasks; none for a run of one task."""
        return tuple(self.sources) if self.mixture is not None else ()

    @property
    def title(self) -> str:
        """Return what the task, or the mixture, is called in one line."""
        return " + ".join(self.sources)

    @field_validator("mixture", mode="before")
    @classmethod
    def _tasks_of_their_name(cls, value: object) -> object:
        """Fill in the task of entries that name none: it is called as the entry is."""
        if value is None:
            return value
        if not isinstance(value, dict):
            raise ValueError("expected a table for each task, as [data.mixture.chemistry]")
        if wrong := [name for name in value if not _NAME.fullmatch(str(name))]:
            raise ValueError(
                f"the name {wrong[0]!r}: expected at most 40 letters, digits, _ and -, as in "
                '[data.mixture.chemistry] with task = "science_qa"'
            )
        return {
            name: {**entry, "task": name}
            if isinstance(entry, dict) and entry.get("task") is None
            else entry
            for name, entry in value.items()
        }

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self.mixture is None:
            if self.task is None:
                raise ValueError("data.task is missing")
            return self
        if self.task is not None or self.path is not None:
            given = "task" if self.task is not None else "path"
            raise ValueError(
                f"data.{given} and data.mixture are both given: leave one out (--set "
                "data.mixture=none); tasks of a mixture have a task and a path of their own"
            )
        if len(self.mixture) < 2:
            raise ValueError(
                f"data.mixture has {len(self.mixture)} tasks, expected two or more: one alone is "
                "named by data.task and data.path"
            )
        return self
