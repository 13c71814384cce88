"""Hints for tool calls: which call, and which part of it, is wrong.

Names between backticks are the response's own.
"""

import json
from collections.abc import Mapping
from typing import Any

from data.tool_use import Call, canonical, read_calls

Arguments = Mapping[str, Any]


def hint(response: str, reference: str) -> str | None:
    """Return what is wrong with the form of a wrong response, or with the first wrong call."""
    gold = [Call(c["Action"], canonical(c["Action_Input"])) for c in json.loads(reference)]
    calls, readable = read_calls(response, frozenset(call.name for call in gold))
    if "Action:" not in response:
        return "There is no Action."
    if not readable:
        return "Every Action needs an Action Input, an object in braces."
    lacking, extra = list(gold), []
    for call in calls:
        if call in lacking:
            lacking.remove(call)
        else:
            extra.append(call)
    if not extra:
        return "All calls are right, but more are needed."
    if not lacking:
        return f"There is a call too many, of `{extra[0].name}`."
    for call in extra:
        if (meant := next((g for g in lacking if g.name == call.name), None)) is not None:
            return _about_arguments(call, meant)
    return f"`{extra[0].name}` is not the tool to call there."


def _about_arguments(call: Call, meant: Call) -> str:
    """Return which arguments of a call are wrong; those it lacks are not named."""
    given, wanted = json.loads(call.arguments), json.loads(meant.arguments)
    if others := [name for name in given if name not in wanted]:
        return f"In the call of `{call.name}` the argument `{others[0]}` is not needed."
    if len(given) < len(wanted):
        return f"In the call of `{call.name}` an argument is missing."
    wrong = [name for name in given if canonical(given[name]) != canonical(wanted[name])]
    return f"In the call of `{call.name}` the argument `{wrong[0]}` is wrong."
