"""The task `arithmetic`: word problems of two to four steps, made from a seed, with worked solutions.

The splits share no filling of any template, by construction: the names and the things are divided among the splits,
and a template's tuple of numbers belongs to the one split that its hash says (70% train, 15% validation, 15% test).
So a test problem can't be answered by recalling a training problem.
"""

import hashlib
import random
import re
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal

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


@dataclass(frozen=True)
class Template:
    """A structure of problem, to be filled with numbers, `name` and `other` (first names) and `things` (a plural).

    In the text `{x}` stands for one of them; `{y = x * 4}` for the equation, "3 * 4 = 12", whose result is y from
    there on; `{y: x * 4}` for the result alone. The text is the question, up to a "?" at the end of a line, and a line
    for each step; the last equation gives the answer.
    """

    name: str
    ranges: dict[str, range]  # of its numbers
    condition: CodeType  # a Python expression: numbers that it refuses make no sensible problem
    text: str

    @classmethod
    def parse(cls, written: str) -> "Template":
        """Read `NAME: NUMBER LOW-HIGH, NUMBER LOW-HIGH by STEP if CONDITION` and, below it, the text."""
        head, _, text = written.partition("\n")
        name, _, numbers = head.partition(": ")
        numbers, _, condition = numbers.partition(" if ")
        found = re.findall(r"(\w+) (\d+)-(\d+)(?: by (\d+))?", numbers)
        ranges = {number: range(int(low), int(high) + 1, int(step or 1)) for number, low, high, step in found}
        return cls(name, ranges, compile(condition or "True", name, "eval"), text)

    def fill(self, **values: Any) -> Record | None:
        """Return the record of the problem that these words and numbers make, if they make one."""
        if not eval(self.condition, {}, values):
            return None

        def write(gap: re.Match[str]) -> str:
            result, form, expression = gap.groups()
            if expression in values:
                return str(values[expression])
            equation = re.sub(r"[a-z_]+", lambda name: str(values[name[0]]), expression)
            values[result] = int(eval(equation))
            return str(values[result]) if form == ":" else f"{equation} = {values[result]}"

        text = re.sub(r"\{(?:(\w+)( =|:) )?(.+?)\}", write, self.text)
        question, steps = text.split("?\n")
        answer = re.findall(r"= (\d+)", steps)[-1]
        return {
            "instruction": question.replace("\n", " ") + "?",
            "output": f"{steps}\nThe answer is: {answer}",
            "type": f"arithmetic/{self.name}",
            "answer": answer,
        }


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
    numbers = {number: rng.choice(values) for number, values in template.ranges.items()}
    if split_of(template.name, tuple(numbers.values())) != split:
        return None
    name, other = rng.sample(_NAMES[split], 2)
    return template.fill(**numbers, name=name, other=other, things=rng.choice(_THINGS[split]))


_TEXTS = """
change: count 2-6, price 2-6, paid 20-50 by 10 if count * price < paid
{name} buys {count} {things} for ${price} each and pays with ${paid}. How many dollars of change does {name} get?
The cost is {cost = count * price} dollars.
The change is {paid - cost} dollars.

ride_and_walk: speed 3-12, hours 2-4, walk 2-9
{name} rides a bike at {speed} km per hour for {hours} hours and then walks {walk} km.
How many km does {name} travel in total?
The ride is {ridden = speed * hours} km.
In total {name} travels {ridden + walk} km.

wages: pay 2-9, hours 2-4, days 2-4 if pay * hours * days < 100
{name} earns ${pay} per hour and works {hours} hours a day. How many dollars does {name} earn in {days} days?
In one day {name} earns {daily = pay * hours} dollars.
In {days} days {name} earns {daily * days} dollars.

discount: price 5-12, off 2-7, count 2-5 if 2 <= price - off < 100 / count
A ticket costs ${price}, but today every ticket is
${off} cheaper. {name} buys {count} tickets. How many dollars does {name} pay?
One ticket costs {reduced = price - off} dollars.
{count} tickets cost {count * reduced} dollars.

younger_later: age 8-15, younger 2-6, years 2-9
{name} is {age} years old. {other} is {younger} years younger than {name}. How old will {other} be in {years} years?
{other} is {now = age - younger} years old now.
In {years} years {other} will be {now + years} years old.

times_as_old_ago: age 6-12, times 3-5, years 2-9 if age * times <= 80
{name} is {age} years old. {name}'s aunt is {times} times as old. How old was the aunt {years} years ago?
The aunt is {now = age * times} years old now.
{years} years ago she was {now - years} years old.

fence: length 3-15, width 2-12 if width < length
{name}'s garden is a rectangle, {length} meters long and {width} meters
wide. How many meters of fence does {name} need to go all the way around it?
Two sides are {half = length + width} meters.
All four sides are {half * 2} meters.

floor_left: length 3-6, width 2-6, covered 2-9 if width <= length and covered < length * width
A floor is {length} meters long and {width} meters wide.
{name} has covered {covered} square meters with tiles. How many square meters are still bare?
The area of the floor is {area = length * width} square meters.
Still bare are {area - covered} square meters.

pages_left: pages 20-60 by 10, daily 2-6, days 2-6 if daily * days < pages
{name}'s book has {pages} pages. {name} reads {daily} pages a day for {days} days. How many pages are left to read?
{name} has read {read = daily * days} pages.
There are {pages - read} pages left.

two_purchases: first 2-4, price 2-5, second 2-4, cost 2-5, money 40-50 by 10
{name} has ${money} and buys {first} books for ${price} each and {second} {things} for ${cost} each.
How many dollars does {name} have left?
The books cost {books = first * price} dollars.
The {things} cost {pens = second * cost} dollars.
Together that is {total = books + pens} dollars.
{name} has {money - total} dollars left.

two_machines: slow 2-9, more 2-6, hours 2-4
{name}'s old machine packs {slow} {things} an hour. The new machine packs {more} more an hour than
the old one. How many {things} does the new machine pack in {hours} hours?
The new machine packs {fast = slow + more} {things} an hour.
In {hours} hours it packs {fast * hours} {things}.

half_price: price 4-40 by 2, delivery 2-9
A coat costs ${price}. {name} buys it at half price and pays ${delivery} more for delivery.
How many dollars does {name} pay in total?
Half the price is {half = price / 2} dollars.
With delivery it is {half + delivery} dollars.

average_of_two: first 2-20, second 2-20 if (first + second) % 2 == 0
{name} scores {first} points in one game and {second} points in another. How many points does {name} score on average?
Together that is {total = first + second} points.
The average is {total / 2} points.

gain_and_loss: have 3-12, more 2-9, less 2-9 if less < have + more
{name} has {have} {things}. {name} finds {more} more and then gives
{less} to {other}. How many {things} does {name} have now?
With the new ones {name} has {total = have + more} {things}.
After giving {less} away {name} has {total - less} {things}.

boxes_and_loose: boxes 2-6, each 2-6, loose 2-9
{name} has {boxes} boxes with {each} {things} in each box, and {loose} loose {things}.
How many {things} does {name} have in total?
The boxes hold {packed = boxes * each} {things}.
In total there are {packed + loose} {things}.

share_the_rest: each 2-6, friends 2-5, kept 2-9
{name} has {total: each * friends + kept} {things}, keeps {kept} of them and shares the
rest equally among {friends} friends. How many {things} does each friend get?
There are {rest = total - kept} {things} to share.
Each friend gets {rest / friends} {things}.

more_than_together: have 2-15, more 2-12
{name} has {have} {things}. {other} has {more} more than {name}. How many {things} do they have together?
{other} has {theirs = have + more} {things}.
Together they have {have + theirs} {things}.

times_as_many_together: have 2-20, times 2-5 if have + have * times < 100
{name} collected {have} {things}. {other} collected {times} times as many. How many {things} did they collect together?
{other} collected {theirs = have * times} {things}.
Together they collected {have + theirs} {things}.

fewer_then_double: have 6-20, fewer 2-12 if fewer < have
On Monday {name} sold {have} {things}. On Tuesday {name} sold {fewer} fewer than on Monday, and on Wednesday twice as
many as on Tuesday. How many {things} did {name} sell on Wednesday?
On Tuesday {name} sold {second = have - fewer} {things}.
On Wednesday {name} sold {second * 2} {things}.

dozens: count 2-6, broken 2-20
{name} buys {count} dozen eggs and {broken} of them break. How many eggs are still whole?
{count} dozen is {total = count * 12} eggs.
There are {total - broken} whole eggs.

work_backwards: end 6-15, given 2-9, got 2-9 if got < end
{name} gave {given} {things} to {other} and then bought {got} new ones.
Now {name} has {end}. How many {things} did {name} have at first?
Before buying, {name} had {before = end - got} {things}.
At first {name} had {before + given} {things}.

legs: cows 2-9, hens 2-12
{name} has {cows} cows and {hens} hens. A cow has 4 legs and a hen has 2. How many legs do the animals have in total?
The cows have {cow_legs = cows * 4} legs.
The hens have {hen_legs = hens * 2} legs.
In total there are {cow_legs + hen_legs} legs.

bus_stops: start 8-20, off 2-7, on 2-9
There are {start} people on {name}'s bus. At the next stop {off} people get off and {on} get on.
How many people are on the bus now?
After {off} get off there are {left = start - off} people.
After {on} get on there are {left + on} people.

teams: count 2-6, size 2-5, girls 2-12 if count * size - girls >= 2
In {name}'s class there are {girls} girls and {boys: count * size - girls} boys.
They form teams of {size}. How many teams are there?
There are {children = girls + boys} children.
They form {children / size} teams.

party_bags: guests 2-5, first 2-4, second 2-4, have 2-9 if have < guests * (first + second)
{name} makes party bags for {guests} guests. Each bag gets {first} red and
{second} blue {things}. {name} already has {have} {things}. How many more does {name} need?
Each bag gets {each = first + second} {things}.
All bags need {needed = guests * each} {things}.
{name} still needs {needed - have} {things}.

three_days: first 2-9, more 2-9, third 2-9
{name} sold {first} {things} on Monday, {more} more than that on Tuesday and {third} on Wednesday.
How many {things} did {name} sell in total?
On Tuesday {name} sold {second = first + more} {things}.
On both days that is {pair = first + second} {things}.
In total {name} sold {pair + third} {things}.
"""
# Their order, names and ranges decide what a seed generates.
TEMPLATES = [Template.parse(written) for written in _TEXTS.strip().split("\n\n")]
