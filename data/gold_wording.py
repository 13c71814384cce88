"""How the shipped tasks word a gold answer for a teacher (`route.sources`: gold).

It stands beside the tasks, because their own files are digested into runs.
"""

import json
from collections.abc import Callable

Gold = Callable[[str], str]


def plain(reference: str) -> str:
    """Return the answer of a reference that is a JSON text, such as `"85"`."""
    return str(json.loads(reference))


def calls(reference: str) -> str:
    """Return gold calls as a response writes them, a line for each part."""
    return "\n".join(
        f"Action: {call['Action']}\n"
        f"Action Input: {json.dumps(call['Action_Input'], ensure_ascii=False)}"
        for call in json.loads(reference)
    )


GOLDS: dict[str, Gold] = {
    "arithmetic": plain,
    "chains": plain,
    "mathematics": plain,
    "science_qa": plain,
    "tool_use": calls,
    "word_problems": plain,
}
