"""Problems about money, time, distances, areas and rates."""

from dataset.problems.base import Problem, Words, between, template


@template(between(2, 6), between(2, 6), (20, 30, 40, 50))
def change(w: Words, count: int, price: int, paid: int) -> Problem | None:
    cost = count * price
    if cost >= paid:
        return None
    return Problem(
        f"{w.name} buys {count} {w.things} for ${price} each and pays with ${paid}. "
        f"How many dollars of change does {w.name} get?",
        (
            f"The cost is {count} * {price} = {cost} dollars.",
            f"The change is {paid} - {cost} = {paid - cost} dollars.",
        ),
        paid - cost,
    )


@template(between(3, 12), between(2, 4), between(2, 9))
def ride_and_walk(w: Words, speed: int, hours: int, walk: int) -> Problem:
    ridden = speed * hours
    return Problem(
        f"{w.name} rides a bike at {speed} km per hour for {hours} hours and then walks {walk} km. "
        f"How many km does {w.name} travel in total?",
        (
            f"The ride is {speed} * {hours} = {ridden} km.",
            f"In total {w.name} travels {ridden} + {walk} = {ridden + walk} km.",
        ),
        ridden + walk,
    )


@template(between(2, 9), between(2, 4), between(2, 4))
def wages(w: Words, pay: int, hours: int, days: int) -> Problem | None:
    daily = pay * hours
    if daily * days > 99:
        return None
    return Problem(
        f"{w.name} earns ${pay} per hour and works {hours} hours a day. How many dollars does {w.name} earn in "
        f"{days} days?",
        (
            f"In one day {w.name} earns {pay} * {hours} = {daily} dollars.",
            f"In {days} days {w.name} earns {daily} * {days} = {daily * days} dollars.",
        ),
        daily * days,
    )


@template(between(5, 12), between(2, 7), between(2, 5))
def discount(w: Words, price: int, off: int, count: int) -> Problem | None:
    reduced = price - off
    if reduced < 2 or reduced * count > 99:
        return None
    return Problem(
        f"A ticket costs ${price}, but today every ticket is ${off} cheaper. {w.name} buys {count} tickets. "
        f"How many dollars does {w.name} pay?",
        (
            f"One ticket costs {price} - {off} = {reduced} dollars.",
            f"{count} tickets cost {count} * {reduced} = {count * reduced} dollars.",
        ),
        count * reduced,
    )


@template(between(8, 15), between(2, 6), between(2, 9))
def younger_later(w: Words, age: int, younger: int, years: int) -> Problem:
    now = age - younger
    return Problem(
        f"{w.name} is {age} years old. {w.other} is {younger} years younger than {w.name}. "
        f"How old will {w.other} be in {years} years?",
        (
            f"{w.other} is {age} - {younger} = {now} years old now.",
            f"In {years} years {w.other} will be {now} + {years} = {now + years} years old.",
        ),
        now + years,
    )


@template(between(6, 12), between(3, 5), between(2, 9))
def times_as_old_ago(w: Words, age: int, times: int, years: int) -> Problem | None:
    now = age * times
    if years >= now or now > 80:
        return None
    return Problem(
        f"{w.name} is {age} years old. {w.name}'s aunt is {times} times as old. "
        f"How old was the aunt {years} years ago?",
        (
            f"The aunt is {age} * {times} = {now} years old now.",
            f"{years} years ago she was {now} - {years} = {now - years} years old.",
        ),
        now - years,
    )


@template(between(3, 15), between(2, 12))
def fence(w: Words, length: int, width: int) -> Problem | None:
    if width >= length:
        return None
    half = length + width
    return Problem(
        f"{w.name}'s garden is a rectangle, {length} meters long and {width} meters wide. "
        f"How many meters of fence does {w.name} need to go all the way around it?",
        (
            f"Two sides are {length} + {width} = {half} meters.",
            f"All four sides are {half} * 2 = {half * 2} meters.",
        ),
        half * 2,
    )


@template(between(3, 6), between(2, 6), between(2, 9))
def floor_left(w: Words, length: int, width: int, covered: int) -> Problem | None:
    area = length * width
    if covered >= area or width > length:
        return None
    return Problem(
        f"A floor is {length} meters long and {width} meters wide. {w.name} has covered {covered} square meters with "
        "tiles. How many square meters are still bare?",
        (
            f"The area of the floor is {length} * {width} = {area} square meters.",
            f"Still bare are {area} - {covered} = {area - covered} square meters.",
        ),
        area - covered,
    )


@template((20, 30, 40, 50, 60), between(2, 6), between(2, 6))
def pages_left(w: Words, pages: int, daily: int, days: int) -> Problem | None:
    read = daily * days
    if read >= pages:
        return None
    return Problem(
        f"{w.name}'s book has {pages} pages. {w.name} reads {daily} pages a day for {days} days. "
        "How many pages are left to read?",
        (
            f"{w.name} has read {daily} * {days} = {read} pages.",
            f"There are {pages} - {read} = {pages - read} pages left.",
        ),
        pages - read,
    )


@template(between(2, 4), between(2, 5), between(2, 4), between(2, 5), (40, 50))
def two_purchases(w: Words, first: int, price: int, second: int, cost: int, money: int) -> Problem:
    books, pens = first * price, second * cost
    total = books + pens
    return Problem(
        f"{w.name} has ${money} and buys {first} books for ${price} each and {second} {w.things} for ${cost} each. "
        f"How many dollars does {w.name} have left?",
        (
            f"The books cost {first} * {price} = {books} dollars.",
            f"The {w.things} cost {second} * {cost} = {pens} dollars.",
            f"Together that is {books} + {pens} = {total} dollars.",
            f"{w.name} has {money} - {total} = {money - total} dollars left.",
        ),
        money - total,
    )


@template(between(2, 9), between(2, 6), between(2, 4))
def two_machines(w: Words, slow: int, more: int, hours: int) -> Problem:
    fast = slow + more
    return Problem(
        f"{w.name}'s old machine packs {slow} {w.things} an hour. The new machine packs {more} more an hour than the "
        f"old one. How many {w.things} does the new machine pack in {hours} hours?",
        (
            f"The new machine packs {slow} + {more} = {fast} {w.things} an hour.",
            f"In {hours} hours it packs {fast} * {hours} = {fast * hours} {w.things}.",
        ),
        fast * hours,
    )


@template(tuple(range(4, 42, 2)), between(2, 9))
def half_price(w: Words, price: int, delivery: int) -> Problem:
    half = price // 2
    return Problem(
        f"A coat costs ${price}. {w.name} buys it at half price and pays ${delivery} more for delivery. "
        f"How many dollars does {w.name} pay in total?",
        (
            f"Half the price is {price} / 2 = {half} dollars.",
            f"With delivery it is {half} + {delivery} = {half + delivery} dollars.",
        ),
        half + delivery,
    )


@template(between(2, 20), between(2, 20))
def average_of_two(w: Words, first: int, second: int) -> Problem | None:
    total = first + second
    if total % 2:
        return None
    return Problem(
        f"{w.name} scores {first} points in one game and {second} points in another. "
        f"How many points does {w.name} score on average?",
        (
            f"Together that is {first} + {second} = {total} points.",
            f"The average is {total} / 2 = {total // 2} points.",
        ),
        total // 2,
    )
