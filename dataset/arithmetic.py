"""The task `arithmetic`: word problems of two to four steps, made from a seed, with worked solutions.

The splits share no filling of any template, by construction: the names and the things are divided among the splits,
and a template's tuple of numbers belongs to the one split that its hash says (70% train, 15% validation, 15% test).
So a test problem can't be answered by recalling a training problem.
"""

import hashlib
import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dataset.records import Record
from utils.errors import UserError

Split = Literal["train", "validation", "test"]

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo", "Mia",
        "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Zoe", "Alice", "Bruno",
    ),
    "validation": ("Clara", "Daniel", "Elena", "George", "Hanna", "Ian", "Julia", "Kevin"),
    "test": ("Laura", "Martin", "Nina", "Oscar", "Peter", "Rita", "Simon", "Vera"),
}  # fmt: skip
_THINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "apples", "marbles", "stickers", "pencils", "cards", "stamps", "shells", "buttons", "cups", "flowers", "balls",
        "toys", "candles", "coins", "oranges",
    ),
    "validation": ("beads", "plates", "lemons", "badges", "kites"),
    "test": ("pens", "cookies", "stones", "ribbons", "masks"),
}  # fmt: skip


def _written(sign: str, operation: Callable[[int, int], int]) -> Any:
    def compute(left: int, right: int) -> "Number":
        result = Number(operation(int(left), int(right)))
        result.computed = f"{int(left)} {sign} {int(right)} = "
        return result

    return compute


class Number(int):
    """A whole number that is written with how it was computed: `f"{Number(3) * 4}"` is "3 * 4 = 12"."""

    computed = ""
    __add__, __sub__ = _written("+", operator.add), _written("-", operator.sub)
    __mul__, __floordiv__ = _written("*", operator.mul), _written("/", operator.floordiv)

    def __str__(self) -> str:
        return f"{self.computed}{int(self)}"


class Words(NamedTuple):
    """What fills a template beside its numbers: two different first names and a countable noun in the plural."""

    name: str
    other: str
    things: str


@dataclass(frozen=True)
class Template:
    """A structure of problem: `write(words, *numbers)` with one number from each range.

    The text is the question, up to a "?" at the end of a line, and a line per step; the last equation gives the
    answer. Numbers that `where` refuses make no sensible problem.
    """

    name: str
    ranges: tuple[Sequence[int], ...]
    where: Callable[..., bool]
    write: Callable[..., str]

    def fill(self, words: Words, *numbers: int) -> Record | None:
        """Return the record of the problem that these words and numbers make, if they make one."""
        if not self.where(*numbers):
            return None
        text = self.write(words, *map(Number, numbers))
        lines = [line.strip() for line in text.splitlines()]
        asked = next(number for number, line in enumerate(lines, start=1) if line.endswith("?"))
        answer = re.findall(r"= (\d+)", text)[-1]
        return {
            "instruction": " ".join(lines[:asked]),
            "output": "\n".join([*lines[asked:], f"The answer is: {answer}"]),
            "type": f"arithmetic/{self.name}",
            "answer": answer,
        }


TEMPLATES: list[Template] = []  # their order, names and ranges decide what a seed generates


def split_of(template: str, numbers: tuple[int, ...]) -> Split:
    """The split that a template's numbers belong to, the same on every machine and in every session."""
    bucket = hashlib.sha256(f"{template}{numbers}".encode()).digest()[0]
    if bucket < 180:
        return "train"
    return "validation" if bucket < 218 else "test"


def generate(split: Split, n: int, seed: int) -> list[Record]:
    """Make `n` different problems of one split, the templates in equal shares.

    A shorter list is the beginning of a longer one with the same seed.

    Returns:
        Records with `instruction`, `output` (worked solution ending in `The answer is: N`), `type`
        (`arithmetic/<template>`) and `answer` (the integer as a string).
    """
    rng = random.Random(f"arithmetic {split} {seed}")
    records: dict[str, Record] = {}  # by question
    order: list[Template] = []
    while len(records) < n:
        order = order or rng.sample(TEMPLATES, len(TEMPLATES))
        drawn = (_draw(order[-1], split, rng) for _ in range(10_000))
        new = next((record for record in drawn if record and record["instruction"] not in records), None)
        if new is None:
            raise UserError(f"arithmetic: the {split} split holds no {n} different problems; ask for fewer")
        records[new["instruction"]] = new
        order.pop()
    return list(records.values())


def _draw(template: Template, split: Split, rng: random.Random) -> Record | None:
    """One random filling of a template, or None if its numbers belong to another split or make no problem."""
    numbers = tuple(rng.choice(numbers) for numbers in template.ranges)
    if split_of(template.name, numbers) != split:
        return None
    name, other = rng.sample(_NAMES[split], 2)
    return template.fill(Words(name, other, rng.choice(_THINGS[split])), *numbers)


def between(low: int, high: int) -> range:
    """Return the integers from `low` to `high`, both included."""
    return range(low, high + 1)


def template(
    *ranges: Sequence[int], where: Callable[..., bool] = lambda *_: True
) -> Callable[[Callable[..., str]], None]:
    """Register a function as the template of its own name, its numbers drawn from `ranges` in order."""
    return lambda write: TEMPLATES.append(Template(write.__name__, ranges, where, write))


# Money, time, distances, areas and rates.


@template(between(2, 6), between(2, 6), (20, 30, 40, 50), where=lambda count, price, paid: count * price < paid)
def change(w, count, price, paid):
    return f"""{w.name} buys {count} {w.things} for ${price} each and pays with ${paid}.
        How many dollars of change does {w.name} get?
        The cost is {(cost := count * price)} dollars.
        The change is {paid - cost} dollars."""


@template(between(3, 12), between(2, 4), between(2, 9))
def ride_and_walk(w, speed, hours, walk):
    return f"""{w.name} rides a bike at {speed} km per hour for {hours} hours and then walks {walk} km.
        How many km does {w.name} travel in total?
        The ride is {(ridden := speed * hours)} km.
        In total {w.name} travels {ridden + walk} km."""


@template(between(2, 9), between(2, 4), between(2, 4), where=lambda pay, hours, days: pay * hours * days < 100)
def wages(w, pay, hours, days):
    return f"""{w.name} earns ${pay} per hour and works {hours} hours a day.
        How many dollars does {w.name} earn in {days} days?
        In one day {w.name} earns {(daily := pay * hours)} dollars.
        In {days} days {w.name} earns {daily * days} dollars."""


@template(between(5, 12), between(2, 7), between(2, 5), where=lambda price, off, count: 2 <= price - off < 100 / count)
def discount(w, price, off, count):
    return f"""A ticket costs ${price}, but today every ticket is
        ${off} cheaper. {w.name} buys {count} tickets. How many dollars does {w.name} pay?
        One ticket costs {(reduced := price - off)} dollars.
        {count} tickets cost {count * reduced} dollars."""


@template(between(8, 15), between(2, 6), between(2, 9))
def younger_later(w, age, younger, years):
    return f"""{w.name} is {age} years old. {w.other} is {younger} years younger than {w.name}.
        How old will {w.other} be in {years} years?
        {w.other} is {(now := age - younger)} years old now.
        In {years} years {w.other} will be {now + years} years old."""


@template(between(6, 12), between(3, 5), between(2, 9), where=lambda age, times, _: age * times <= 80)
def times_as_old_ago(w, age, times, years):
    return f"""{w.name} is {age} years old. {w.name}'s aunt is {times} times as old.
        How old was the aunt {years} years ago?
        The aunt is {(now := age * times)} years old now.
        {years} years ago she was {now - years} years old."""


@template(between(3, 15), between(2, 12), where=lambda length, width: width < length)
def fence(w, length, width):
    return f"""{w.name}'s garden is a rectangle, {length} meters long and {width} meters
        wide. How many meters of fence does {w.name} need to go all the way around it?
        Two sides are {(half := length + width)} meters.
        All four sides are {half * 2} meters."""


@template(between(3, 6), between(2, 6), between(2, 9), where=lambda x, y, z: y <= x and z < x * y)
def floor_left(w, length, width, covered):
    return f"""A floor is {length} meters long and {width} meters wide.
        {w.name} has covered {covered} square meters with tiles. How many square meters are still bare?
        The area of the floor is {(area := length * width)} square meters.
        Still bare are {area - covered} square meters."""


@template((20, 30, 40, 50, 60), between(2, 6), between(2, 6), where=lambda pages, daily, days: daily * days < pages)
def pages_left(w, pages, daily, days):
    return f"""{w.name}'s book has {pages} pages.
        {w.name} reads {daily} pages a day for {days} days. How many pages are left to read?
        {w.name} has read {(read := daily * days)} pages.
        There are {pages - read} pages left."""


@template(between(2, 4), between(2, 5), between(2, 4), between(2, 5), (40, 50))
def two_purchases(w, first, price, second, cost, money):
    return f"""{w.name} has ${money} and buys {first} books for ${price} each and {second} {w.things} for ${cost} each.
        How many dollars does {w.name} have left?
        The books cost {(books := first * price)} dollars.
        The {w.things} cost {(pens := second * cost)} dollars.
        Together that is {(total := books + pens)} dollars.
        {w.name} has {money - total} dollars left."""


@template(between(2, 9), between(2, 6), between(2, 4))
def two_machines(w, slow, more, hours):
    return f"""{w.name}'s old machine packs {slow} {w.things} an hour. The new machine packs {more} more an hour than
        the old one. How many {w.things} does the new machine pack in {hours} hours?
        The new machine packs {(fast := slow + more)} {w.things} an hour.
        In {hours} hours it packs {fast * hours} {w.things}."""


@template(tuple(range(4, 42, 2)), between(2, 9))
def half_price(w, price, delivery):
    return f"""A coat costs ${price}. {w.name} buys it at half price and pays ${delivery} more for delivery.
        How many dollars does {w.name} pay in total?
        Half the price is {(half := price // 2)} dollars.
        With delivery it is {half + delivery} dollars."""


@template(between(2, 20), between(2, 20), where=lambda first, second: (first + second) % 2 == 0)
def average_of_two(w, first, second):
    return f"""{w.name} scores {first} points in one game and {second} points in another.
        How many points does {w.name} score on average?
        Together that is {(total := first + second)} points.
        The average is {total // 2} points."""


# Things one counts: gains, shares, comparisons, unknown starts.


@template(between(3, 12), between(2, 9), between(2, 9), where=lambda have, more, less: less < have + more)
def gain_and_loss(w, have, more, less):
    return f"""{w.name} has {have} {w.things}. {w.name} finds {more} more and then gives
        {less} to {w.other}. How many {w.things} does {w.name} have now?
        With the new ones {w.name} has {(total := have + more)} {w.things}.
        After giving {less} away {w.name} has {total - less} {w.things}."""


@template(between(2, 6), between(2, 6), between(2, 9))
def boxes_and_loose(w, boxes, each, loose):
    return f"""{w.name} has {boxes} boxes with {each} {w.things} in each box, and {loose} loose {w.things}.
        How many {w.things} does {w.name} have in total?
        The boxes hold {(packed := boxes * each)} {w.things}.
        In total there are {packed + loose} {w.things}."""


@template(between(2, 6), between(2, 5), between(2, 9))
def share_the_rest(w, each, friends, kept):
    return f"""{w.name} has {(total := Number(each * friends + kept))} {w.things}, keeps {kept} of them and shares the
        rest equally among {friends} friends. How many {w.things} does each friend get?
        There are {(rest := total - kept)} {w.things} to share.
        Each friend gets {rest // friends} {w.things}."""


@template(between(2, 15), between(2, 12))
def more_than_together(w, have, more):
    return f"""{w.name} has {have} {w.things}. {w.other} has {more} more than {w.name}.
        How many {w.things} do they have together?
        {w.other} has {(theirs := have + more)} {w.things}.
        Together they have {have + theirs} {w.things}."""


@template(between(2, 20), between(2, 5), where=lambda have, times: have + have * times < 100)
def times_as_many_together(w, have, times):
    return f"""{w.name} collected {have} {w.things}.
        {w.other} collected {times} times as many. How many {w.things} did they collect together?
        {w.other} collected {(theirs := have * times)} {w.things}.
        Together they collected {have + theirs} {w.things}."""


@template(between(6, 20), between(2, 12), where=lambda have, fewer: fewer < have)
def fewer_then_double(w, have, fewer):
    return f"""On Monday {w.name} sold {have} {w.things}. On Tuesday {w.name} sold {fewer}
        fewer than on Monday, and on Wednesday twice as many as on Tuesday.
        How many {w.things} did {w.name} sell on Wednesday?
        On Tuesday {w.name} sold {(second := have - fewer)} {w.things}.
        On Wednesday {w.name} sold {second * 2} {w.things}."""


@template(between(2, 6), between(2, 20))
def dozens(w, count, broken):
    return f"""{w.name} buys {count} dozen eggs and {broken} of them break. How many eggs are still whole?
        {count} dozen is {(total := count * 12)} eggs.
        There are {total - broken} whole eggs."""


@template(between(6, 15), between(2, 9), between(2, 9), where=lambda end, _, got: got < end)
def work_backwards(w, end, given, got):
    return f"""{w.name} gave {given} {w.things} to {w.other} and then bought {got} new ones.
        Now {w.name} has {end}. How many {w.things} did {w.name} have at first?
        Before buying, {w.name} had {(before := end - got)} {w.things}.
        At first {w.name} had {before + given} {w.things}."""


@template(between(2, 9), between(2, 12))
def legs(w, cows, hens):
    return f"""{w.name} has {cows} cows and {hens} hens. A cow has 4 legs and a hen has 2.
        How many legs do the animals have in total?
        The cows have {(cow_legs := cows * 4)} legs.
        The hens have {(hen_legs := hens * 2)} legs.
        In total there are {cow_legs + hen_legs} legs."""


@template(between(8, 20), between(2, 7), between(2, 9))
def bus_stops(w, start, off, on):
    return f"""There are {start} people on {w.name}'s bus. At the next stop {off} people get off and {on} get on.
        How many people are on the bus now?
        After {off} get off there are {(left := start - off)} people.
        After {on} get on there are {left + on} people."""


@template(between(2, 6), between(2, 5), between(2, 12), where=lambda count, size, girls: count * size - girls >= 2)
def teams(w, count, size, girls):
    return f"""In {w.name}'s class there are {girls} girls and {(boys := Number(count * size - girls))} boys.
        They form teams of {size}. How many teams are there?
        There are {girls + boys} children.
        They form {(girls + boys) // size} teams."""


@template(between(2, 5), between(2, 4), between(2, 4), between(2, 9), where=lambda n, x, y, z: z < n * (x + y))
def party_bags(w, guests, first, second, have):
    return f"""{w.name} makes party bags for {guests} guests. Each bag gets {first} red and
        {second} blue {w.things}. {w.name} already has {have} {w.things}. How many more does {w.name} need?
        Each bag gets {(each := first + second)} {w.things}.
        All bags need {(needed := guests * each)} {w.things}.
        {w.name} still needs {needed - have} {w.things}."""


@template(between(2, 9), between(2, 9), between(2, 9))
def three_days(w, first, more, third):
    return f"""{w.name} sold {first} {w.things} on Monday, {more} more than that on Tuesday and {third} on Wednesday.
        How many {w.things} did {w.name} sell in total?
        On Tuesday {w.name} sold {(second := first + more)} {w.things}.
        On both days that is {(pair := first + second)} {w.things}.
        In total {w.name} sold {pair + third} {w.things}."""
