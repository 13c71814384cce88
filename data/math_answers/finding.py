"""Where the answer of a response stands: its last box, or its last pair of answer tags."""

import re

_BOX = re.compile(r"(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*(?P<brace>\{)?)|\\.|[{}]", re.DOTALL)
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
LONGEST_BARE = 1000
"""Characters that are searched for the answer after a box without a brace."""
_BARE = re.compile(
    r"(?:\\[^()\[\]\n]|(?!</)[^\\$\n{}]|\{[^{}\n]*(?:\{[^{}\n]*\}[^{}\n]*)*\})*", re.DOTALL
)
_WORD = re.compile(r"(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\\.|[^\s{}])+", re.DOTALL)
_CONTINUES = re.compile(r"[0-9+\-*/=<>^_%±×÷·−]|\\[^\\]")
_AWAITS = ("+", "-", "*", "/", "=", "<", ">", "^")


def last_answer(response: str) -> str | None:
    """Return the last answer of a response, in a box or in tags, without outer white space."""
    found = [(match.end(), match.group(1)) for match in _ANSWER.finditer(response)][-1:]
    boxed = last_boxed(response)
    if boxed is not None:
        found.append(boxed)
    return max(found)[1].strip() if found else None


def last_boxed(response: str) -> tuple[int, str] | None:
    """Return where the last complete box ends, and its content; `\\{` is no brace.

    `\\boxed{…}` and `\\fbox{…}` are boxes, and `\\boxed 42` is as it is meant: TeX would box the 4.
    """
    opened: list[int | None] = []
    last: tuple[int, str] | None = None
    bare: int | None = None
    for match in _BOX.finditer(response):
        if match["box"] and match["brace"]:
            opened.append(match.end())
        elif match["box"]:
            bare = match.end()
        elif match.group() == "{":
            opened.append(None)
        elif match.group() == "}" and opened:
            start = opened.pop()
            if start is not None:
                last = match.end(), response[start : match.start()]
    if bare is not None and (last is None or bare > last[0]):
        return _bare(response, bare) or last
    return last


def _bare(response: str, start: int) -> tuple[int, str] | None:
    """Return the answer after a box without a brace, and where it ends; None: there is none.

    In mathematics it goes to the end of it; outside of it to the first word of prose.
    """
    match = _BARE.match(response[start : start + LONGEST_BARE])
    region = match.group() if match else ""
    if not _in_mathematics(response[:start]):
        end = 0
        for word in _WORD.finditer(region):
            if end and not (_CONTINUES.match(word[0]) or region[:end].endswith(_AWAITS)):
                break
            end = word.end()
        region = region[:end]
    return (start + len(region), region) if region.strip() else None


def _in_mathematics(before: str) -> bool:
    """Say whether mathematics is open at the end of a text."""
    if len(re.findall(r"(?<!\\)\$", before.replace("$$", "$"))) % 2:
        return True
    return any(before.rfind(o) > before.rfind(c) for o, c in (("\\(", "\\)"), ("\\[", "\\]")))
