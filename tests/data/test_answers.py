"""Answers in mathematics: the table of verdicts, and what holds for any number and any text.

answers.tsv has a row for each case: its kind, a gold answer, an answer, and right, wrong or
refused (the gold answer can't be judged by).
"""

import contextlib
import csv
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data.math_answers.answers import Expression
from data.math_answers.finding import last_answer
from data.math_answers.golds import changed, check_gold, same_answers
from data.math_answers.literals import Unreadable
from data.math_answers.reader import read
from data.mathematics import verify

with Path(__file__).with_name("answers.tsv").open(newline="") as file:
    TABLE = [tuple(r) for r in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][1:]


def verdict_of(gold: str, answer: str) -> bool:
    """Say whether an answer is right; one that can't be read is wrong."""
    try:
        return same_answers(gold, answer)
    except Unreadable:
        return False


def test_the_table_has_many_rows_of_each_kind() -> None:
    kinds = Counter(kind for kind, *_ in TABLE)
    assert len(TABLE) >= 400 and len(kinds) >= 20 and kinds["groups"] >= 30
    assert len(set(TABLE)) == len(TABLE)
    assert Counter(verdict for *_, verdict in TABLE).keys() == {"right", "wrong", "refused"}


@pytest.mark.parametrize(("kind", "gold", "answer", "verdict"), TABLE)
def test_the_table(kind: str, gold: str, answer: str, verdict: str) -> None:
    if verdict == "refused":
        with pytest.raises(Unreadable):
            check_gold(gold)
        return
    check_gold(gold)
    assert verdict_of(gold, answer) == (verdict == "right")
    if kind != "calculus":
        assert verdict_of(answer, gold) == (verdict == "right")


@pytest.mark.parametrize(
    "gold", sorted({gold for _, gold, _, verdict in TABLE if verdict != "refused"})
)
def test_each_gold_answer_is_itself_in_any_dress(gold: str) -> None:
    stop = "" if gold.endswith(".") else "."
    dresses = [gold, f"{gold}{stop}", f" {gold} ", rf"\boxed{{{gold}}}", rf"\({gold}\)"]
    assert all(verdict_of(gold, dress) for dress in dresses)
    assert all(not all(verdict_of(gold, other) for other in others) for others in changed(gold))
    assert all(not verdict_of(gold, other) for other in ("", "no", "-987654321", rf"{gold}, 7"))


def grouped(number: int, gap: str) -> str:
    """Write a number with something between groups of three digits."""
    return f"{number:,}".replace(",", gap)


def tex_power(number: int) -> str:
    digits = str(abs(number))
    sign = "-" if number < 0 else ""
    return rf"{sign}{digits[0]}.{digits[1:] or 0} \times 10^{{{len(digits) - 1}}}"


WAYS: list[Callable[[int], str]] = [
    str,
    lambda n: f"{n}.",
    lambda n: f"{n}.0",
    lambda n: f"{n:+d}",
    lambda n: f"${n}$",
    lambda n: f"{n}e0",
    lambda n: f"x = {n}",
    lambda n: rf"\frac{{{2 * n}}}{{2}}",
    lambda n: rf"\text{{{n}}}",
    lambda n: rf"\left({n}\right)",
    lambda n: f"{n} cm",
    lambda n: str(n).replace("-", "−"),
    *(
        (lambda n, gap=gap: grouped(n, gap))
        for gap in (",", r"\,", "{,}", " ", r",\!", "~", r"\;", "'", "\u202f")
    ),
    tex_power,
    lambda n: f"{n}/1",
    lambda n: rf"\sqrt{{{n * n}}}" if n >= 0 else rf"-\sqrt{{{n * n}}}",
]
WHOLE = st.integers(-(10**15), 10**15)


@given(WHOLE, st.sampled_from(WAYS), st.sampled_from(WAYS))
@example(0, WAYS[1], WAYS[2])
@example(-1000, WAYS[12], WAYS[13])
def test_a_whole_number_is_itself_in_all_ways(number: int, one: object, other: object) -> None:
    assert callable(one) and callable(other)
    assert same_answers(one(number), other(number))


@given(WHOLE, st.sampled_from(WAYS), st.sampled_from(WAYS), st.integers(1, 10**6))
def test_it_is_no_other_number(number: int, one: object, other: object, step: int) -> None:
    assert callable(one) and callable(other)
    for another in (number + step, number - step, number * 10 or 1):
        assert not same_answers(one(number), other(another)) or number == another


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6), st.integers(-300, 300))
def test_decimals_are_compared_by_their_digits(number: object, power: int) -> None:
    text = f"{number}e{power}" if "E" not in f"{number}" else f"{number}"
    value = Fraction(text)
    assume(abs(value) > 0 and len(text) < 40)
    spelled = f"{number} \\times 10^{{{power}}}" if "E" not in f"{number}" else text
    assert same_answers(text, spelled) and same_answers(spelled, text)
    off = value * Fraction(1001, 1000)
    assert not same_answers(text, f"{off.numerator}/{off.denominator}")
    assert not verdict_of(text, "0")


@given(st.integers(0, 99), st.integers(1, 98), st.integers(2, 99))
def test_mixed_numbers(whole: int, top: int, bottom: int) -> None:
    assume(top < bottom and whole)
    value = f"{whole * bottom + top}/{bottom}"
    for text in (f"{whole} {top}/{bottom}", rf"{whole}\frac{{{top}}}{{{bottom}}}"):
        assert same_answers(text, value) and same_answers(f"-{text}", f"-{value}")
        assert not same_answers(text, f"{whole * top}/{bottom}")


@given(st.integers(1, 10**9), st.integers(2, 16), st.integers(2, 16))
def test_bases(number: int, base: int, other: int) -> None:
    def digits(rest: int) -> str:
        return (digits(rest // base) if rest >= base else "") + "0123456789ABCDEF"[rest % base]

    text = digits(number)
    assume(text[0].isdigit() or base > 10)
    assume(any(c.isdigit() for c in text) or len(text) > 1)
    assert verdict_of(f"{text}_{base}", f"{text}_{{{base}}}")
    assert verdict_of(f"{text}_{base}", f"{text}_{other}") == (base == other)
    assert not verdict_of(f"{text}_{base}", f"{text[:-1]}_{base}")


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6), st.randoms())
def test_lists_sets_and_tuples(items: list[int], random: object) -> None:
    turned = items[1:] + items[:1]
    listed, other = ", ".join(map(str, items)), ", ".join(map(str, turned))
    assert same_answers(listed, other)
    assert same_answers(rf"\{{{listed}\}}", rf"\{{{other}\}}")
    assert same_answers(f"({listed})", f"({other})") == (items == turned)
    assert not same_answers(listed, ", ".join(map(str, items[1:])) or "0")
    assert not same_answers(f"({listed})", f"({listed}, 51)")


@given(st.integers(1, 500), st.sampled_from(["cm", "kg", "hours", "m/s", "apples", "%"]))
def test_units(number: int, unit: str) -> None:
    text = rf"{number}\text{{ {unit}}}"
    assert same_answers(text, f"{number} {unit}") and same_answers(text, str(number))
    assert not same_answers(text, f"{number + 1} {unit}")
    assert not same_answers(text, f"{number} pears") and not same_answers(text, f"{number} km")


@settings(max_examples=400, deadline=2000)
@given(
    st.lists(
        st.sampled_from(
            [
                *"0123456789xyie+-*/^_()[]{}|,.;:=<>! '%$&",
                "\\frac",
                "\\sqrt",
                "\\{",
                "\\}",
                "\\,",
                "\\text{",
                "\\pm",
                "\\infty",
                "\\begin{pmatrix}",
                "\\end{pmatrix}",
                "\\\\",
                "...",
                "\\cup",
                "\\log",
                "\\sin",
                "and",
                "cm",
                "²",
                "½",
                "−",
                "√",
                "\\overline",
                "10^",
                " ",
            ]
        ),
        max_size=24,
    )
)
def test_any_text_is_read_whole_or_refused(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        reading = read(text)
    except Unreadable:
        return
    try:
        assert same_answers(text, text), f"{text!r} reads as {reading.answer}"
    except Unreadable:
        return
    # Nothing is thrown away at either end.
    assert not verdict_of(text, f"{text} ?") and not verdict_of(text, f"? {text}")


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    assert verify(f"<answer>{text}</answer>", '"1"').reward in (0.0, 1.0)
    assert isinstance(last_answer(text), str | None)


HOSTILE = [
    "10**10**10",
    "9^{9^{9^{9^9}}}",
    "2^{2^{2^{2^{2^2}}}}",
    "1e999999999",
    "1e-999999999",
    "(10^{5000})!",
    "((((3!)!)!)!)!",
    r"\binom{10^9}{5*10^8}",
    r"e^{e^{e^{e^{e^e}}}}",
    r"\sin(10^{4000})",
    r"\exp(10^{3000})",
    r"\sqrt[999999999]{2}",
    "(2^{99999})^{99999}",
    "2^{99999}" * 90,
    "9" * 999,
    "1," * 499 + "1",
    "(" * 100_000,
    "{" * 100_000,
    "\\frac" * 200,
    r"\frac{1}{" * 100 + "1" + "}" * 100,
    r"\sqrt" * 190 + "2",
    r"\text{" * 150 + "a" + "}" * 150,
    "-" * 900 + "1",
    "1" + "!" * 900,
    "x^" * 450 + "x",
    "|" * 900,
    "sin" * 300,
    "[" * 400 + "1,2" + "]" * 400,
    r"\{" * 400,
    "1 " * 490,
    "1/" * 490 + "1",
    "x" * 1000,
    "1,000" * 190,
    r"1\," * 300,
    "\\boxed{" * 14_000,
    "<answer>" * 12_000,
    "\\boxed 1 " * 11_000,
    "$" * 100_000,
    "\\" * 100_000,
    "a" * 100_000,
    "1" * 100_000,
    "\\text{ and }" * 80,
    "1 hours " * 120,
    "²" * 900,
]


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:20] for text in HOSTILE])
def test_hostile_answers_take_bounded_time(text: str) -> None:
    start = time.process_time()
    for response in (rf"\boxed{{{text}}}", f"<answer>{text}</answer>", text):
        assert verify(response, '"42"').reward == 0.0
    with contextlib.suppress(Unreadable):
        check_gold(text)
    assert time.process_time() - start < 3


def test_doubts_don_t_hold_for_responses() -> None:
    with pytest.raises(Unreadable, match="is two numbers or a decimal"):
        check_gold("1,2")
    assert same_answers("1, 2", "1,2") and not same_answers("1.2", "1,2")


def test_a_reading_is_exact() -> None:
    answer = read("0.1").answer
    assert isinstance(answer, Expression) and answer.node.number is not None
    assert answer.node.number.value == Fraction(1, 10)
