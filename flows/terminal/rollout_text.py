"""One rollout on the terminal: prompt, response, verdict, route, update, and every token."""

from collections.abc import Sequence
from math import exp

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from flows.terminal.tables import WIDE_FROM, cell, line, plain_table, say
from pipeline.audit.rollout import UNCLOSED, LikelyToken, RolloutRecord, TokenRecord
from pipeline.tables.schemas import CREDIT_LAMBDA, UNCLOSED_THINKING
from pipeline.text import NOTHING, count, number, percent, printable, steps_before

_TOKEN_WIDTH = 14
_NUMBERS = {
    "sampled_logprob": "log p", "student_entropy": "Hs", "teacher_entropy": "H", "weight": "w",
    "credit": "A_t/A", "survival": "S", "jsd": "jsd", "share": "loss",
}  # fmt: skip
"""Columns of the token table, if recorded: field and heading."""
_WIDE_ONLY = ("sampled_logprob", "student_entropy")
"""Columns that a narrow terminal has no room for beside the likeliest tokens."""
_MARKS = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})
_LEAST, _MUCH = 0.005, 0.1
"""Least probability of a candidate shown; least share of the loss of a highlighted token."""


def print_rollout(console: Console, record: RolloutRecord, limit: int | None) -> None:
    """Print a whole rollout, with the first `limit` of its tokens if that is given."""
    rollout = record.rollout
    console.print(Rule(Text(f"rollout {record.rollout_id}"), align="left"))
    say(
        console,
        f"task {rollout['task']}, prompt {rollout['prompt_id']}, {len(record.tokens)} tokens "
        f"({rollout['finish_reason']}), temperature {number(rollout['temperature'])}, "
        f"policy {rollout['policy_version']}, {rollout['engine']}, seed {rollout['seed']}",
        "dim",
    )
    for message in rollout["messages"]:
        _section(console, message["role"], message["content"])
    _section(console, "response", rollout["response_text"])
    _print_verdict(console, record)
    _print_route(console, record)
    _print_update(console, record)
    _print_tokens(console, record, limit)


def _section(console: Console, title: str, text: str) -> None:
    console.print()
    say(console, title, "bold")
    say(console, text.rstrip("\n"))


def _print_verdict(console: Console, record: RolloutRecord) -> None:
    verdict = record.verdict
    if verdict is None:
        _section(console, "verdict", "stage verify has not run for this step")
        return
    word = "correct" if verdict["correct"] else "wrong"
    form = "kept" if verdict["format_ok"] else "broken"
    said = f"{word}, reward {number(verdict['reward'])}, format {form}"
    lines = [
        f"{said if verdict['error'] is None else 'not judged'}, by {verdict['verifier']}",
        f"prediction {verdict['prediction'] or NOTHING}   reference {record.rollout['reference']}",
    ]
    lines += [UNCLOSED] if record.rollout.get(UNCLOSED_THINKING) else []
    if verdict["feedback"]:
        told = record.feedback_gold_share
        of_gold = "" if told is None else f", with {percent(told)} of the gold answer"
        lines += [f"feedback{of_gold}: {verdict['feedback']}"]
    lines += [f"error: {verdict['error']}"] if verdict["error"] else []
    _section(console, "verdict", "\n".join(lines))


def _print_route(console: Console, record: RolloutRecord) -> None:
    route = record.route
    if route is None:
        missing = record.rollout_id.startswith("e")
        text = "an evaluation: nothing is routed" if missing else "the step has no routes yet"
        _section(console, "route", text)
        return
    credit = route.get(CREDIT_LAMBDA)
    distributed = "" if credit is None else f", share that a teacher distributes {number(credit)}"
    _section(
        console,
        "route",
        f"{route['route']}: {route['reason']}\n"
        f"advantage {number(route['advantage'])} (group mean {number(route['group_mean'])}, "
        f"deviation {number(route['group_std'])}), mini-batch {route['mini_batch']}{distributed}",
    )
    if route["teacher_rollout_id"]:
        sibling = record.sibling_text or ""
        aged = f", {steps_before(record.teacher_age)}" if record.teacher_age else ""
        title = f"demonstration: rollout {route['teacher_rollout_id']}{aged}"
        _section(console, title, sibling)
    if route["teacher_prompt_text"]:
        _section(console, "teacher prompt", route["teacher_prompt_text"])


def _print_update(console: Console, record: RolloutRecord) -> None:
    update = record.update
    if update is None:
        if record.route is not None:
            _section(console, "update", "stage update has not run for this step")
        return
    if not update["computed"]:
        left_out = update["route"] == "none"
        text = "no gradient: left out of N, too" if left_out else "no gradient: only counted in N"
    else:
        text = (
            f"loss {number(update['loss_sum'])} over {update['tokens']} tokens, "
            f"ratio {number(update['mean_ratio'])}, clipped {percent(update['clipped_fraction'])}, "
            f"correction {number(update['mean_tis'])}"
        )
        if update["mean_divergence"] is not None:
            text += f", divergence {number(update['mean_divergence'])}"
    text += f"; {percent(update['share'])} of N = {count(record.batch_tokens)} tokens"
    if record.loss_note:
        text += f"\ntoken losses are estimates: {record.loss_note}"
        text += f"; their sum is {number(record.loss_difference)} off"
    _section(console, "update", text)


def _print_tokens(console: Console, record: RolloutRecord, limit: int | None) -> None:
    tokens = record.tokens if limit is None else record.tokens[:limit]
    taught = bool(tokens) and tokens[0].teacher_top is not None
    narrow = taught and console.width < WIDE_FROM
    known = [
        name
        for name in _NUMBERS
        if any(getattr(t, name) is not None for t in tokens) and not (narrow and name in _WIDE_ONLY)
    ]
    if known:
        console.print()
        console.print(_token_table(tokens, known, taught))
    else:
        _section(console, "tokens", " ".join(_visible(token.text) for token in tokens))
    _print_legend(console, record, len(tokens), known, taught)


def _token_table(tokens: Sequence[TokenRecord], known: Sequence[str], taught: bool) -> Table:
    tops = [who for who in ("student", "teacher") if taught and _best_of(tokens[0], who)]
    heads = [("", "right"), ("token", "left"), *((_NUMBERS[name], "right") for name in known)]
    table = plain_table([*heads, *((who, "left") for who in tops)], flexible=tops)
    table.columns[1].max_width = _TOKEN_WIDTH
    table.columns[1].overflow = "ellipsis"
    for token in tokens:
        numbers = [_number(name, getattr(token, name)) for name in known]
        best = [_top(_best_of(token, who)) for who in tops]
        style = "yellow" if taught and (token.share or 0) >= _MUCH else ""
        piece = Text(_visible(token.text), style="bold")
        table.add_row(cell(token.position), piece, *numbers, *best, style=style)
    return table


def _number(name: str, value: float | None) -> Text:
    """Return a number with one to three decimals; what rounds to 0 is a dim 0."""
    if value is None:
        return Text(NOTHING, style="dim")
    digits = 3 if name == "jsd" else 1 if name == "share" else 2
    shown = f"{100 * value if name == 'share' else value:.{digits}f}"
    if float(shown) == 0:
        return Text("0", style="dim")
    return Text(f"{shown}%" if name == "share" else shown)


def _best_of(token: TokenRecord, who: str) -> Sequence[LikelyToken] | None:
    choices: Sequence[LikelyToken] | None = getattr(token, f"{who}_top")
    return choices


def _top(choices: Sequence[LikelyToken] | None) -> Text:
    """Return the likeliest tokens with their probabilities in percent."""
    pairs = [(choice.text, exp(choice.logprob)) for choice in choices or ()]
    shown = [pair for pair in pairs if pair[1] >= _LEAST] or pairs[:1]
    return line("  ".join(f"{_visible(text)} {100 * p:.0f}" for text, p in shown) or NOTHING)


def _visible(text: str) -> str:
    return printable(text.translate(_MARKS)) or "∅"


def _print_legend(
    console: Console, record: RolloutRecord, shown: int, known: Sequence[str], taught: bool
) -> None:
    meanings = {
        "sampled_logprob": "log p: of the sampled token",
        "student_entropy": "Hs: student's entropy, nats",
        "teacher_entropy": "H: teacher's entropy, nats",
        "weight": "w: weight",
        "survival": "S: how far the teacher, too, would have come",
        "credit": "A_t/A: token's factor of the advantage",
        "jsd": "jsd: divergence, nats",
        "share": "loss: share of the rollout's loss",
    }
    parts = [meanings[name] for name in known]
    parts += ["student, teacher: likeliest tokens, percent"] if taught else []
    lines = ["; ".join(parts)] if parts else []
    if shown < len(record.tokens):
        lines.append(f"{count(shown)} of {count(len(record.tokens))} tokens shown (--limit)")
    reasons: dict[str, list[str]] = {}
    for name, reason in record.not_recorded.items():
        reasons.setdefault(reason, []).append(name)
    lines += [f"not recorded: {', '.join(names)} ({why})" for why, names in reasons.items()]
    say(console, "\n".join(lines), "dim")
