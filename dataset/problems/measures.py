"""Problems about money, time, distances, areas and rates."""

from dataset.problems.base import Problem, Words, between, template


@template(between(2, 9), between(2, 9), (20, 30, 40, 50, 60))
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


@template(between(4, 15), between(2, 5), between(2, 9))
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


@template(between(2, 9), between(2, 9), between(2, 12))
def hours_to_finish(w: Words, rate: int, hours: int, done: int) -> Problem:
    rest = rate * hours
    total = rest + done
    return Problem(
        f"{w.name} has to paint {total} fence boards and has painted {done} so far. {w.name} paints {rate} every "
        f"hour. How many more hours does {w.name} need?",
        (
            f"There are {total} - {done} = {rest} boards left to paint.",
            f"{w.name} needs {rest} / {rate} = {hours} hours.",
        ),
        hours,
    )


@template(between(3, 12), between(2, 6), between(2, 6))
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


@template(between(6, 20), between(2, 9), between(2, 6))
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


@template((10, 20, 30, 40, 50, 60, 70, 80, 90), (10, 20, 30, 50), between(2, 9))
def percent_off(w: Words, price: int, percent: int, delivery: int) -> Problem:
    off = price * percent // 100
    reduced = price - off
    return Problem(
        f"A coat costs ${price}. {w.name} gets {percent}% off and then pays ${delivery} for delivery. "
        f"How many dollars does {w.name} pay in total?",
        (
            f"The discount is {price} * {percent} / 100 = {off} dollars.",
            f"The coat costs {price} - {off} = {reduced} dollars.",
            f"In total {w.name} pays {reduced} + {delivery} = {reduced + delivery} dollars.",
        ),
        reduced + delivery,
    )


@template(between(2, 6), between(1, 6), between(2, 12))
def weeks_to_days(w: Words, weeks: int, days: int, passed: int) -> Problem:
    whole = weeks * 7
    total = whole + days
    plural = "day" if days == 1 else "days"
    return Problem(
        f"{w.name} goes on a trip of {weeks} weeks and {days} {plural}. So far {passed} days have passed. "
        "How many days are left?",
        (
            f"{weeks} weeks are {weeks} * 7 = {whole} days.",
            f"The trip lasts {whole} + {days} = {total} days.",
            f"There are {total} - {passed} = {total - passed} days left.",
        ),
        total - passed,
    )


@template(between(8, 20), between(2, 7), between(2, 12))
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


@template(between(5, 15), between(2, 6), between(2, 12))
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


@template(between(3, 20), between(2, 15))
def fence(w: Words, length: int, width: int) -> Problem | None:
    if width >= length:
        return None
    half = length + width
    return Problem(
        f"{w.name}'s garden is a rectangle, {length} meters long and {width} meters wide. "
        f"How many meters of fence does {w.name} need to go all the way around it?",
        (
            f"One long and one short side are {length} + {width} = {half} meters.",
            f"The whole fence is {half} * 2 = {half * 2} meters.",
        ),
        half * 2,
    )


@template(between(3, 9), between(2, 9), between(2, 12))
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


@template(between(2, 9), between(2, 9), between(2, 20))
def save_for_goal(w: Words, weekly: int, weeks: int, saved: int) -> Problem:
    missing = weekly * weeks
    goal = missing + saved
    return Problem(
        f"{w.name} wants a game that costs ${goal} and has saved ${saved}. {w.name} saves ${weekly} every week. "
        f"In how many weeks can {w.name} buy the game?",
        (
            f"{w.name} still needs {goal} - {saved} = {missing} dollars.",
            f"That takes {missing} / {weekly} = {weeks} weeks.",
        ),
        weeks,
    )


@template(between(2, 15), between(2, 15), between(2, 15))
def average(w: Words, first: int, second: int, third: int) -> Problem | None:
    pair = first + second
    total = pair + third
    if total % 3:
        return None
    return Problem(
        f"In three games {w.name} scores {first}, {second} and {third} points. "
        f"How many points does {w.name} score on average?",
        (
            f"The first two games give {first} + {second} = {pair} points.",
            f"All three give {pair} + {third} = {total} points.",
            f"The average is {total} / 3 = {total // 3} points.",
        ),
        total // 3,
    )


@template((20, 30, 40, 50, 60, 70, 80, 90), between(3, 9), between(2, 9))
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


@template(between(2, 6), between(2, 5), between(2, 9))
def recipe(w: Words, people: int, times: int, spoons: int) -> Problem:
    guests = people * times
    return Problem(
        f"A soup for {people} people needs {spoons} spoons of salt. {w.name} cooks it for {guests} people. "
        f"How many spoons of salt does {w.name} need?",
        (
            f"{w.name} cooks {guests} / {people} = {times} times as much.",
            f"That needs {spoons} * {times} = {spoons * times} spoons.",
        ),
        spoons * times,
    )


@template(between(2, 15), between(3, 6), between(3, 20))
def split_the_bill(w: Words, each: int, friends: int, drinks: int) -> Problem | None:
    total = each * friends
    food = total - drinks
    if food < 3 or total > 60:
        return None
    return Problem(
        f"{w.name} and friends, {friends} people in all, pay ${food} for food and ${drinks} for drinks. "
        "They split the bill equally. How many dollars does each person pay?",
        (
            f"The bill is {food} + {drinks} = {total} dollars.",
            f"Each person pays {total} / {friends} = {each} dollars.",
        ),
        each,
    )


@template(between(2, 5), between(2, 6), between(2, 5), between(2, 6), (50, 60, 70))
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


@template(between(3, 12), between(2, 9), between(2, 4))
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
