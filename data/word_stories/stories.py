"""The kinds of story: what is calculated in each, and how it is told.

Each function tells one story of a level: two steps on level 0, three on level 1, four on level 2.
Sentences are lists of choices with blanks in braces.
"""

from collections.abc import Callable
from typing import NamedTuple

from data.word_stories.tale import Tale


class _Stock(NamedTuple):
    """The wording of a stock of things that grows and shrinks."""

    things: list[str]
    opening: list[str]
    gain: list[str]
    gain_groups: list[str]
    loss: list[str]
    loss_groups: list[str]
    boxes: list[str]
    question: list[str]


_STOCKS = [
    _Stock(
        ["shells", "stamps", "marbles", "stickers", "beads", "coins", "postcards", "buttons"],
        ["{name} has {n} {things}.", "{name} keeps {n} {things} in a drawer."],
        ["{name} buys {n} more {things}.", "{friend} gives {name} {n} {things}."],
        ["{name} buys {a} bags of {b} {things}.", "{name} gets {a} packs of {b} {things}."],
        ["{name} gives {n} {things} to {friend}.", "{name} loses {n} {things}."],
        ["{name} gives {b} {things} to each of {a} friends."],
        ["albums", "boxes", "jars"],
        ["How many {things} does {name} have now?", "How many {things} does {name} have left?"],
    ),
    _Stock(
        ["people", "passengers", "tourists"],
        ["A train leaves the station with {n} {things}.", "There are {n} {things} on a bus."],
        ["At the next stop {n} {things} get on.", "Then {n} more {things} get on."],
        ["Then {a} groups of {b} {things} each get on."],
        ["At the next stop {n} {things} get off.", "Then {n} {things} leave."],
        ["Then {a} groups of {b} {things} each get off."],
        [],
        ["How many {things} are on board now?", "How many {things} are still on board?"],
    ),
    _Stock(
        ["rolls", "muffins", "cookies", "bagels", "buns", "pies"],
        ["A bakery has {n} {things} in the morning.", "{name} the baker starts with {n} {things}."],
        [
            "Another {n} {things} come out of the oven.",
            "At ten o'clock {n} more {things} are made.",
        ],
        ["Then {a} trays with {b} {things} each are baked."],
        ["By noon {n} {things} are sold.", "A café buys {n} {things}."],
        ["Then {a} customers buy {b} {things} each.", "Now {a} bags of {b} {things} are sold."],
        ["boxes", "bags"],
        ["How many {things} are left?", "How many {things} does the bakery have now?"],
    ),
    _Stock(
        ["books", "comics", "films", "games"],
        ["A library has {n} {things}.", "There are {n} {things} in a school library."],
        ["On Monday {n} {things} are returned.", "The library gets {n} new {things}."],
        ["Then {a} boxes with {b} new {things} each arrive."],
        ["Readers borrow {n} {things}.", "On Friday {n} {things} are lent out."],
        ["Then {a} children borrow {b} {things} each."],
        ["shelves", "cases"],
        ["How many {things} are in the library now?", "How many {things} are there now?"],
    ),
    _Stock(
        ["apples", "pears", "lemons", "peaches", "plums", "eggs"],
        ["{name} the farmer has {n} {things}.", "On {her} farm {name} picks up {n} {things}."],
        ["The next day {name} picks up {n} more {things}.", "A neighbour adds {n} {things}."],
        ["{friend} brings {a} baskets with {b} {things} in each."],
        ["{name} throws away {n} bad {things}.", "A shop buys {n} {things}."],
        ["Then {a} families buy {b} {things} each.", "{name} sells {a} bags of {b} {things}."],
        ["crates", "baskets"],
        ["How many {things} does {name} have now?", "How many {things} are left?"],
    ),
]


def stock(tale: Tale) -> None:
    """A stock of things grows and shrinks; at last it may be divided into equal parts."""
    words = tale.draws.of(_STOCKS)
    things, total = tale.draws.of(words.things), tale.count()
    tale.say(words.opening, n=total, things=things)
    shared = tale.level > 0 and bool(words.boxes) and tale.draws.below(3) == 0
    wanted = tale.level + 2 - shared
    while len(tale.steps) < wanted:
        grows = tale.draws.below(2) == 0
        if len(tale.steps) + 2 <= wanted and tale.draws.below(2) == 0:
            groups, size = tale.few(), tale.some()
            moved = tale.step(groups, "*", size, f"{'new' if grows else 'fewer'} {things}")
            sentences = words.gain_groups if grows else words.loss_groups
            tale.say(sentences, a=groups, b=size, things=things)
        else:
            moved = tale.count() if grows else tale.draws.between(3, min(total - 3, 150))
            tale.say(words.gain if grows else words.loss, n=moved, things=things)
        total = tale.step(total, "+" if grows else "-", moved, f"{things} now")
    if not shared:
        tale.say(words.question, things=things)
        return
    boxes = tale.draws.of(words.boxes)
    parts = tale.draws.between(2, 9)
    tale.step(total, "/", parts, f"{things} in each")
    tale.say(["They are put into {k} {boxes}, equally many in each."], k=parts, boxes=boxes)
    tale.say(["How many {things} are in each of the {boxes}?"], things=things, boxes=boxes)


_GOODS = ["pencils", "pens", "candles", "plants", "tickets", "toys", "cups", "plates", "scarves"]
_SINGLE = ["a bag", "a lamp", "a hat", "a clock", "a book", "a map", "a kite", "a ball"]
_NOTES = [20, 50, 100, 200, 300, 400, 500]


def shop(tale: Tale) -> None:
    """Somebody buys things and gets change."""
    goods, others = tale.draws.two_of(_GOODS)
    number, price = tale.few(), tale.some()
    buys = ["{name} buys {a} {goods} for {b} dollars each.", "{name} needs {a} {goods} at {b} "
            "dollars each."]  # fmt: skip
    tale.say(buys, a=number, b=price, goods=goods)
    cost = tale.step(number, "*", price, f"dollars for the {goods}")
    if tale.level == 1:
        what, more = tale.draws.of(_SINGLE), tale.count()
        tale.say(["{She} also buys {what} for {n} dollars."], what=what, n=more)
        cost = tale.step(cost, "+", more, "dollars in all")
    elif tale.level == 2:
        number, price = tale.few(), tale.some()
        tale.say(["{She} also takes {a} {goods} at {b} dollars each."],
                 a=number, b=price, goods=others)  # fmt: skip
        more = tale.step(number, "*", price, f"dollars for the {others}")
        cost = tale.step(cost, "+", more, "dollars in all")
    paid = next((note for note in _NOTES if note > cost), 0)
    tale.step(paid, "-", cost, "dollars left")
    tale.say(["{She} pays with {n} dollars.", "{She} has {n} dollars."], n=paid)
    tale.say(["How many dollars does {she} have left?", "How many dollars are left?"])


_DONE = [
    ("stickers", "has"),
    ("cards", "has"),
    ("pages", "reads"),
    ("points", "scores"),
    ("laps", "runs"),
    ("cherries", "picks"),
    ("photos", "takes"),
    ("letters", "writes"),
]


def compare(tale: Tale) -> None:
    """People have more or fewer of something than others."""
    things, does = tale.draws.of(_DONE)
    own, apart, more = tale.count(), tale.count(), tale.draws.below(2) == 0
    words = {"things": things, "does": does}
    tale.say(["{name} {does} {n} {things}."], n=own, **words)
    than = "more" if more else "fewer"
    tale.say(["{friend} {does} {n} {than} {things} than {name}."], n=apart, than=than, **words)
    other = tale.step(own, "+" if more else "-", apart, f"{things} of the second")
    if tale.level == 0:
        tale.step(own, "+", other, f"{things} together")
        tale.say(["How many {things} is that together?", "How many {things} is that in all?"],
                 **words)  # fmt: skip
        return
    times = tale.draws.between(2, 5)
    often = "twice" if times == 2 else f"{times} times"
    tale.say(["A third child {does} {often} as many {things} as {friend}."], often=often, **words)
    third = tale.step(other, "*", times, f"{things} of the third")
    if tale.level == 1:
        tale.step(third, "+", own, f"{things} together")
        tale.say(["How many {things} is that for {name} and the third child together?"], **words)
        return
    both = tale.step(own, "+", other, f"{things} of both")
    tale.step(both, "+", third, f"{things} in all")
    tale.say(["How many {things} is that for all three together?"], **words)


_JOBS = ["in a shop", "in a garden", "at a café", "at a stable", "in an office", "at a pool"]
_SPENDING = ["on food", "on a bicycle", "on a ticket", "on shoes", "on a present"]


def earn(tale: Tale) -> None:
    """Somebody works for money and spends some of it."""
    first, second = tale.draws.two_of(_JOBS)
    hours, wage = tale.few(), tale.some()
    tale.say(["{name} works {a} hours {job} for {b} dollars an hour.",
              "{name} earns {b} dollars an hour {job} and works {a} hours."],
             a=hours, b=wage, job=first)  # fmt: skip
    money = tale.step(hours, "*", wage, "dollars earned")
    if tale.level == 1:
        gift = tale.count()
        tale.say(["{friend} gives {name} {n} dollars more.", "{She} also sells a chair for {n} "
                  "dollars."], n=gift)  # fmt: skip
        money = tale.step(money, "+", gift, "dollars in all")
    elif tale.level == 2:
        hours, wage = tale.few(), tale.some()
        tale.say(["Then {she} works {a} hours {job} for {b} dollars an hour."],
                 a=hours, b=wage, job=second)  # fmt: skip
        more = tale.step(hours, "*", wage, "more dollars")
        money = tale.step(money, "+", more, "dollars in all")
    spent = tale.draws.between(3, min(money - 3, 150))
    tale.say(["{name} spends {n} dollars {what}."], n=spent, what=tale.draws.of(_SPENDING))
    tale.step(money, "-", spent, "dollars left")
    tale.say(["How many dollars does {name} have left?", "How many dollars are left?"])


class _Way(NamedTuple):
    """The wording of something long that is done day by day."""

    things: str
    whole: list[str]
    daily: list[str]
    also: list[str]
    once: list[str]
    question: list[str]


_WAYS = [
    _Way(
        "pages",
        ["{name} has a book of {n} pages.", "A book has {n} pages."],
        [
            "{name} reads {b} pages a day for {a} days.",
            "For {a} days {name} reads {b} pages a day.",
        ],
        ["Then {she} reads {b} pages a day for {a} days."],
        ["On Sunday {she} reads {n} more pages."],
        ["How many pages are left to read?", "How many pages does {she} still have to read?"],
    ),
    _Way(
        "kilometers",
        ["{name} plans a trip of {n} kilometers.", "A hike is {n} kilometers long."],
        ["{name} walks {b} kilometers a day for {a} days."],
        ["Then {she} walks {b} kilometers a day for {a} days."],
        ["Then {she} goes {n} kilometers by bus."],
        ["How many kilometers are left?", "How many kilometers does {she} still have to go?"],
    ),
    _Way(
        "pieces",
        ["{name} has a puzzle of {n} pieces.", "A puzzle has {n} pieces."],
        ["{name} places {b} pieces an hour for {a} hours."],
        ["After lunch {she} places {b} pieces an hour for {a} hours."],
        ["{friend} places {n} pieces."],
        ["How many pieces are left?", "How many pieces are still to be placed?"],
    ),
    _Way(
        "meters",
        ["{name} builds a fence of {n} meters.", "A fence of {n} meters must be painted."],
        ["{name} finishes {b} meters a day for {a} days."],
        ["Then {she} finishes {b} meters a day for {a} days."],
        ["{friend} does {n} meters."],
        ["How many meters are left?", "How many meters are still to do?"],
    ),
]


def progress(tale: Tale) -> None:
    """Something long is done day by day; a part is left."""
    words = tale.draws.of(_WAYS)
    things, days, daily = words.things, tale.few(), tale.some()
    done = tale.step(days, "*", daily, f"{things} so far")
    if tale.level == 1:
        more = tale.count()
        done = tale.step(done, "+", more, f"{things} in all")
    elif tale.level == 2:
        days_after, daily_after = tale.few(), tale.some()
        more = tale.step(days_after, "*", daily_after, f"more {things}")
        done = tale.step(done, "+", more, f"{things} in all")
    whole = done + tale.count()
    tale.step(whole, "-", done, f"{things} left")
    tale.say(words.whole, n=whole)
    tale.say(words.daily, a=days, b=daily)
    if tale.level == 1:
        tale.say(words.once, n=more)
    elif tale.level == 2:
        tale.say(words.also, a=days_after, b=daily_after)
    tale.say(words.question)


_HALLS = ["theater", "cinema", "concert hall", "circus tent", "school hall"]


def seats(tale: Tale) -> None:
    """Rows of seats, some of which stay empty."""
    rows, seats_in_row = tale.few(), tale.some()
    hall = tale.draws.of(_HALLS)
    tale.say(["A {hall} has {a} rows with {b} seats each.", "There are {a} rows of {b} seats in a "
              "{hall}."], a=rows, b=seats_in_row, hall=hall)  # fmt: skip
    total = tale.step(rows, "*", seats_in_row, "seats")
    empty = tale.draws.between(2, total - 3)
    tale.say(["Tonight {n} seats are empty.", "At the show {n} seats stay free."], n=empty)
    guests = tale.step(total, "-", empty, "guests")
    if tale.level == 0:
        tale.say(["How many guests are there?", "How many seats are taken?"])
        return
    children = tale.draws.between(2, guests - 2)
    tale.say(["Of the guests {n} are children and the others are adults."], n=children)
    adults = tale.step(guests, "-", children, "adults")
    if tale.level == 1:
        tale.say(["How many adults are there?"])
        return
    price = tale.draws.between(3, 9)
    tale.say(["Each adult pays {n} dollars and children pay nothing."], n=price)
    tale.step(adults, "*", price, "dollars")
    tale.say(["How many dollars do the adults pay?"])


_SHARED = [
    ("crayons", "boxes", "A teacher", "children"),
    ("sandwiches", "trays", "A cook", "tables"),
    ("tulips", "bunches", "A gardener", "vases"),
    ("cards", "packs", "A coach", "players"),
    ("chairs", "rows", "A school", "rooms"),
]


def share(tale: Tale) -> None:
    """Groups of things are put together and divided equally."""
    things, groups, owner, receivers = tale.draws.of(_SHARED)
    number, size = tale.few(), tale.some()
    tale.say(["{owner} has {a} {groups} of {b} {things}."],
             owner=owner, a=number, groups=groups, b=size, things=things)  # fmt: skip
    total = tale.step(number, "*", size, f"{things} in the {groups}")
    if tale.level > 0:
        more = tale.count()
        tale.say(["{n} more {things} are bought.", "Another {n} {things} arrive."],
                 n=more, things=things)  # fmt: skip
        total = tale.step(total, "+", more, f"{things} in all")
    if tale.level > 1:
        lost = tale.draws.between(3, min(total - 3, 150))
        tale.say(["{n} of them are not good enough and are left out."], n=lost)
        total = tale.step(total, "-", lost, f"good {things}")
    parts = tale.draws.between(2, 9)
    tale.say(["The {things} are divided equally among {n} {receivers}."],
             things=things, n=parts, receivers=receivers)  # fmt: skip
    tale.step(total, "/", parts, f"{things} each")
    tale.say(["How many {things} does each get?", "How many {things} is that for each?"],
             things=things)  # fmt: skip


STORIES: tuple[Callable[[Tale], None], ...] = (
    *(stock, stock, stock, shop, compare, earn, progress, seats, share),
)
"""The kinds of story, as often as they shall come; a third are stocks, which vary most."""
