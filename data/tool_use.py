"""ToolAlpaca: which tools to call, and with which arguments, to answer a user's question.

A response states its calls as pairs of `Action: NAME` and `Action Input: {JSON object}`; thoughts
and other text may stand around them. It is right when its calls are the gold calls: every call with
its own arguments, each as often, in any order.

The published verifier (lasgroup/SDPO) compares the names as a multiset, merges the arguments of all
calls into one dictionary and compares those; it takes what `Action Input:\\s*({.*?})` finds and
skips what does not parse. We keep the idea and differ where it judges wrongly:

    arguments are read by a JSON decoder    its pattern cuts nested objects and `}` in texts
    unreadable or missing input is wrong    it is skipped there, so `Action: f` alone, or with
                                            broken JSON, is right whenever the gold input is {}
    a call keeps its own arguments          merged, f(x=1), f(x=2) equals f(x=9), f(x=2): in 5 of
                                            the 68 test rows wrong calls would earn a reward and
                                            become demonstrations
    `Action:` inside an argument is text    there it counts as one more call

Equality of arguments is that of JSON: 1 and 1.0 are the same number, 1 and "1" are not, true and 1
are not (in Python they are); key order does not matter, the order in arrays does, and texts must be
equal character by character. NaN and Infinity are no JSON. After the name, text on the same line is
ignored as in the published `Action:\\s*(\\w+)`, unless the whole line is a gold name, which may
hold other characters (`[Optional]updateUserProfile`).
"""

import json
import re
from collections import Counter
from typing import NamedTuple, NoReturn

from data.rows import Row, gold_error, load_questions
from pipeline.task import Question, Split, Verdict

VERIFIER = "tool_use/1"

_MARK = re.compile(r"Action:\s*(?P<name>[^\r\n]*)|Action Input:\s*")
_INLINE_INPUT = re.compile(r"Action Input:")
_WORD = re.compile(r"\w+")


class Call(NamedTuple):
    """One call of a tool; `arguments` is the canonical JSON text of an object."""

    name: str
    arguments: str


def _no_constant(name: str) -> NoReturn:
    """Reject NaN and the infinities, which Python's decoder would let pass."""
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def canonical(value: object) -> str:
    """Return the one JSON text that all equal JSON values share.

    Raises:
        ValueError: a number is too large for a float.
    """

    def plain(item: object) -> object:
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        return int(item) if isinstance(item, float) and item.is_integer() else item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read_object(text: str, start: int) -> tuple[str, int] | None:
    """Return the canonical JSON object at a position of a text and where it ends, or None."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        return (canonical(value), end) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def read_calls(response: str, gold_names: frozenset[str]) -> tuple[list[Call], bool]:
    """Return the calls of a response, and whether all of it could be read as pairs.

    Args:
        response: any text.
        gold_names: names that are taken whole; of others the first word counts.

    Returns:
        The calls in order, and False if there is none, a name or input stands alone, or an input
        is no JSON object.
    """
    calls: list[Call] = []
    name: str | None = None
    readable, position = True, 0
    while mark := _MARK.search(response, position):
        position = mark.end()
        line = mark.group("name")
        if line is None:
            found = _read_object(response, position)
            if found is None or name is None:
                readable = False
            else:
                calls.append(Call(name, found[0]))
            # Go on behind the object: what looks like a mark inside its texts is no mark.
            position, name = found[1] if found else position, None
            continue
        readable = readable and name is None
        if inline := _INLINE_INPUT.search(line):
            position = mark.start("name") + inline.start()
            line = line[: inline.start()]
        word = _WORD.match(line)
        name = word.group() if word and line.strip() not in gold_names else line.strip() or None
        readable = readable and name is not None
    return calls, readable and name is None and bool(calls)


def show_calls(calls: list[Call]) -> str:
    """Return calls as people and the teacher read them: a JSON list."""
    return json.dumps(
        [{"Action": call.name, "Action_Input": json.loads(call.arguments)} for call in calls],
        ensure_ascii=False,
    )


def load(path: str | None, split: Split) -> list[Question]:
    """Return a split's questions in file order; gold calls that can't be read are an error."""
    return load_questions(path, split, "tool_use", _reference)


def _reference(row: Row) -> str:
    """Return a row's gold calls as canonical JSON text."""
    answer = row.fields.get("answer")
    try:
        gold = json.loads(answer) if isinstance(answer, str) else answer
    except (ValueError, RecursionError):
        gold = None
    if not isinstance(gold, list) or not gold:
        raise gold_error(row, answer, "a JSON list of at least one call")
    calls = []
    for call in gold:
        name = call.get("Action") if isinstance(call, dict) else None
        if not isinstance(name, str) or len(name.strip().splitlines()) != 1:
            raise gold_error(row, call, "an Action, the name of a tool, in every call")
        arguments = _gold_arguments(call.get("Action_Input"))
        if arguments is None:
            raise gold_error(row, call, "an Action_Input, a JSON object, in every call")
        calls.append(f'{{"Action":{json.dumps(name.strip())},"Action_Input":{arguments}}}')
    return f"[{','.join(calls)}]"


def _gold_arguments(value: object) -> str | None:
    """Return gold arguments (an object, or the JSON text of one) as canonical text, or None."""
    try:
        if isinstance(value, str):
            value = json.loads(value, parse_constant=_no_constant)
        return canonical(value) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def verify(response: str, reference: str) -> Verdict:
    """Judge a response by its calls; reward 1.0 if they are the gold calls, in any order.

    The feedback states the gold calls; it is off by default in training.

    Args:
        response: what the policy wrote; any text at all.
        reference: the gold calls as JSON text, as `load` writes them.
    """
    gold = [Call(c["Action"], canonical(c["Action_Input"])) for c in json.loads(reference)]
    calls, readable = read_calls(response, frozenset(call.name for call in gold))
    prediction = show_calls(calls) if calls else None
    if readable and Counter(calls) == Counter(gold):
        return Verdict(1.0, readable, prediction)
    reason = (
        "These are not the right calls."
        if readable
        else "Every Action needs an Action Input that is a JSON object."
    )
    return Verdict(0.0, readable, prediction, f"{reason} Expected: {show_calls(gold)}")
