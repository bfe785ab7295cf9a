"""Problems about things one counts: gains, shares, comparisons, unknown starts."""

from dataset.problems.base import Problem, Words, between, template


@template(between(3, 12), between(2, 9), between(2, 9))
def gain_and_loss(w: Words, have: int, more: int, less: int) -> Problem | None:
    total = have + more
    if less >= total:
        return None
    left = total - less
    return Problem(
        f"{w.name} has {have} {w.things}. {w.name} finds {more} more and then gives {less} to {w.other}. "
        f"How many {w.things} does {w.name} have now?",
        (
            f"With the new ones {w.name} has {have} + {more} = {total} {w.things}.",
            f"After giving {less} away {w.name} has {total} - {less} = {left} {w.things}.",
        ),
        left,
    )


@template(between(2, 6), between(2, 6), between(2, 9))
def boxes_and_loose(w: Words, boxes: int, each: int, loose: int) -> Problem:
    packed = boxes * each
    return Problem(
        f"{w.name} has {boxes} boxes with {each} {w.things} in each box, and {loose} loose {w.things}. "
        f"How many {w.things} does {w.name} have in total?",
        (
            f"The boxes hold {boxes} * {each} = {packed} {w.things}.",
            f"In total there are {packed} + {loose} = {packed + loose} {w.things}.",
        ),
        packed + loose,
    )


@template(between(2, 6), between(2, 5), between(2, 9))
def share_the_rest(w: Words, each: int, friends: int, kept: int) -> Problem:
    rest = each * friends
    total = rest + kept
    return Problem(
        f"{w.name} has {total} {w.things}, keeps {kept} of them and shares the rest equally among {friends} friends. "
        f"How many {w.things} does each friend get?",
        (
            f"There are {total} - {kept} = {rest} {w.things} to share.",
            f"Each friend gets {rest} / {friends} = {each} {w.things}.",
        ),
        each,
    )


@template(between(2, 15), between(2, 12))
def more_than_together(w: Words, have: int, more: int) -> Problem:
    theirs = have + more
    return Problem(
        f"{w.name} has {have} {w.things}. {w.other} has {more} more than {w.name}. "
        f"How many {w.things} do they have together?",
        (
            f"{w.other} has {have} + {more} = {theirs} {w.things}.",
            f"Together they have {have} + {theirs} = {have + theirs} {w.things}.",
        ),
        have + theirs,
    )


@template(between(2, 20), between(2, 5))
def times_as_many_together(w: Words, have: int, times: int) -> Problem | None:
    theirs = have * times
    if have + theirs > 99:
        return None
    return Problem(
        f"{w.name} collected {have} {w.things}. {w.other} collected {times} times as many. "
        f"How many {w.things} did they collect together?",
        (
            f"{w.other} collected {have} * {times} = {theirs} {w.things}.",
            f"Together they collected {have} + {theirs} = {have + theirs} {w.things}.",
        ),
        have + theirs,
    )


@template(between(6, 20), between(2, 12))
def fewer_then_double(w: Words, have: int, fewer: int) -> Problem | None:
    if fewer >= have:
        return None
    second = have - fewer
    return Problem(
        f"On Monday {w.name} sold {have} {w.things}. On Tuesday {w.name} sold {fewer} fewer than on Monday, and on "
        f"Wednesday twice as many as on Tuesday. How many {w.things} did {w.name} sell on Wednesday?",
        (
            f"On Tuesday {w.name} sold {have} - {fewer} = {second} {w.things}.",
            f"On Wednesday {w.name} sold {second} * 2 = {second * 2} {w.things}.",
        ),
        second * 2,
    )


@template(between(2, 6), between(2, 20))
def dozens(w: Words, count: int, broken: int) -> Problem:
    total = count * 12
    return Problem(
        f"{w.name} buys {count} dozen eggs and {broken} of them break. How many eggs are still whole?",
        (
            f"{count} dozen is {count} * 12 = {total} eggs.",
            f"There are {total} - {broken} = {total - broken} whole eggs.",
        ),
        total - broken,
    )


@template(between(6, 15), between(2, 9), between(2, 9))
def work_backwards(w: Words, end: int, given: int, got: int) -> Problem | None:
    if got >= end:
        return None
    before = end - got
    return Problem(
        f"{w.name} gave {given} {w.things} to {w.other} and then bought {got} new ones. Now {w.name} has {end}. "
        f"How many {w.things} did {w.name} have at first?",
        (
            f"Before buying, {w.name} had {end} - {got} = {before} {w.things}.",
            f"At first {w.name} had {before} + {given} = {before + given} {w.things}.",
        ),
        before + given,
    )


@template(between(2, 9), between(2, 12))
def legs(w: Words, cows: int, hens: int) -> Problem:
    cow_legs, hen_legs = cows * 4, hens * 2
    return Problem(
        f"{w.name} has {cows} cows and {hens} hens. A cow has 4 legs and a hen has 2. "
        "How many legs do the animals have in total?",
        (
            f"The cows have {cows} * 4 = {cow_legs} legs.",
            f"The hens have {hens} * 2 = {hen_legs} legs.",
            f"In total there are {cow_legs} + {hen_legs} = {cow_legs + hen_legs} legs.",
        ),
        cow_legs + hen_legs,
    )


@template(between(8, 20), between(2, 7), between(2, 9))
def bus_stops(w: Words, start: int, off: int, on: int) -> Problem:
    after_off = start - off
    return Problem(
        f"There are {start} people on {w.name}'s bus. At the next stop {off} people get off and {on} get on. "
        "How many people are on the bus now?",
        (
            f"After {off} get off there are {start} - {off} = {after_off} people.",
            f"After {on} get on there are {after_off} + {on} = {after_off + on} people.",
        ),
        after_off + on,
    )


@template(between(2, 6), between(2, 5), between(2, 12))
def teams(w: Words, count: int, size: int, girls: int) -> Problem | None:
    total = count * size
    boys = total - girls
    if boys < 2:
        return None
    return Problem(
        f"In {w.name}'s class there are {girls} girls and {boys} boys. They form teams of {size}. "
        "How many teams are there?",
        (
            f"There are {girls} + {boys} = {total} children.",
            f"They form {total} / {size} = {count} teams.",
        ),
        count,
    )


@template(between(2, 5), between(2, 4), between(2, 4), between(2, 9))
def party_bags(w: Words, guests: int, first: int, second: int, have: int) -> Problem | None:
    each = first + second
    needed = guests * each
    if have >= needed:
        return None
    return Problem(
        f"{w.name} makes party bags for {guests} guests. Each bag gets {first} red and {second} blue {w.things}. "
        f"{w.name} already has {have} {w.things}. How many more does {w.name} need?",
        (
            f"Each bag gets {first} + {second} = {each} {w.things}.",
            f"All bags need {guests} * {each} = {needed} {w.things}.",
            f"{w.name} still needs {needed} - {have} = {needed - have} {w.things}.",
        ),
        needed - have,
    )


@template(between(2, 9), between(2, 9), between(2, 9))
def three_days(w: Words, first: int, more: int, third: int) -> Problem:
    second = first + more
    pair = first + second
    return Problem(
        f"{w.name} sold {first} {w.things} on Monday, {more} more than that on Tuesday and {third} on Wednesday. "
        f"How many {w.things} did {w.name} sell in total?",
        (
            f"On Tuesday {w.name} sold {first} + {more} = {second} {w.things}.",
            f"On both days that is {first} + {second} = {pair} {w.things}.",
            f"In total {w.name} sold {pair} + {third} = {pair + third} {w.things}.",
        ),
        pair + third,
    )
