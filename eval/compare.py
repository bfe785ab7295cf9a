"""`python -m eval.compare A B`: is B better than A on the same problems?"""

from pathlib import Path

from eval.intervals import difference, mcnemar
from eval.results import shares
from eval.task_record import OF_MODEL, changes, made_under, paired_samples
from utils.cli import Parser, main
from utils.errors import UserError

USAGE = """Compare two results problem by problem: the paired difference B - A with a 95% bootstrap interval, and the
exact McNemar test (the chance of so uneven a split of the problems that only one of them solves, were they equal)."""


def compare(first: Path, second: Path) -> str:
    """One line on two samples files of the same problems."""
    a, b = shares(first), shares(second)
    if not (len(a) and len(b)):
        raise UserError(f"{first} and {second}: samples that are not right or wrong; nothing to compare")
    change, low, high = difference([a], [b])
    text = f"A {a.mean():.1%}, B {b.mean():.1%} of {len(a)}; "
    text += f"B - A = {100 * change:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    if a.isin((0, 1)).all() and b.isin((0, 1)).all():
        only_a, only_b = int((a > b).sum()), int((b > a).sum())
        text += f"; only A right {only_a}, only B {only_b}, McNemar p = {mcnemar(only_a, only_b):.3g}"
    return text


def command() -> None:
    """Compare every task that both have."""
    parser = Parser(prog="python -m eval.compare", description=USAGE)
    parser.add_argument("a", type=Path, help="run folder, eval folder or samples file")
    parser.add_argument("b", type=Path, help="likewise")
    parser.add_argument("--task", help="only this task")
    given = parser.parse_args()
    for task, first, second in paired_samples(given.a, given.b, given.task):
        made, others = made_under(first), made_under(second)
        if made and others and (differ := changes(made | OF_MODEL, others | OF_MODEL)):
            print(f"{task}: A and B were made under other settings ({differ})")
        print(f"{task}: {compare(first, second)}")


if __name__ == "__main__":
    main(command)
