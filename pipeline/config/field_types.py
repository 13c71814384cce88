"""Types of settings: ranges that tables and clocks can hold, texts that can be paths."""

import re
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

T = TypeVar("T")
Later = Annotated[T, "later"]
"""A setting that runs made before it don't know, as in `period: Later[int] = Field(20, …)`.

While it has its default, no record has it (`Section.recorded`): tables, versions and folders stay
what they were without it. Its default never changes, unless the versions of the stages that read it
do. `tests/pipeline/config/test_later_settings.py` fails for a new setting that is not marked so.
"""

LARGEST_INT = 2**31 - 1
"""The largest integer in a 32-bit column of a table."""

PositiveInt = Annotated[int, Field(gt=0, le=LARGEST_INT)]
Count = Annotated[int, Field(gt=0, le=1_000_000)]
"""Steps, questions and rollouts, which the ids of rollouts spell out."""
Workers = Annotated[int, Field(gt=0, le=1024)]
Seconds = Annotated[float, Field(gt=0, le=10_000_000)]
TopK = Annotated[int, Field(ge=0, le=LARGEST_INT)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
TopP = Annotated[float, Field(gt=0, le=1)]

LONGEST_TEXT = 4096
"""Characters of a text in a configuration: the longest path."""
TEMPLATE_NAMES = frozenset(
    [
        "chat_template",
        "conversation",
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "tokenize",
        "padding",
        "continue_final_message",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "tokenizer_kwargs",
        "return_assistant_tokens_mask",
        "raise_exception",
        "strftime_now",
        "self",
    ]
)
"""Names of arguments and variables that `chat_template_kwargs` would shadow."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""What texts of several lines may not have."""


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys are errors, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    refused_characters: ClassVar[re.Pattern[str]] = _CONTROL

    def recorded(self) -> dict[str, Any]:
        """Return the settings as run.json, origins, digests and snapshots have them.

        These are all settings but those marked `Later` that have their default, here and in the
        sections inside.
        """
        later = self.later_defaults()
        return {
            name: _recorded(value)
            for name, value in self
            if name not in later or value != later[name]
        }

    @classmethod
    def later_defaults(cls) -> dict[str, Any]:
        """Return the settings that a record may lack, with the value that they have then."""
        return {
            name: field.get_default(call_default_factory=True)
            for name, field in cls.model_fields.items()
            if "later" in field.metadata
        }

    @field_validator("*")
    @classmethod
    def _plain_texts(cls, value: object) -> object:
        """Refuse texts that can be no path, name or address."""
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if not text:
                raise ValueError("an empty text; leave the setting out or name something")
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"{len(text):,} characters; at most {LONGEST_TEXT:,} are allowed")
            if cls.refused_characters.search(text):
                raise ValueError("control characters or half a surrogate pair are not allowed")
        return value


def _recorded(value: Any) -> Any:
    if isinstance(value, Section):
        return value.recorded()
    if isinstance(value, dict):
        return {key: _recorded(item) for key, item in value.items()}
    return value
