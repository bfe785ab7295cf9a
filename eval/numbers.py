"""Numbers as people and models write them: read from a text, and compared exactly. 50% is 0.5, and 50 too."""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

MARKER = "The answer is:"

_LONGEST = 400  # characters of a number: beyond, it is noise, and conversion is quadratic
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "K": 3}
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?"
_NUMBER = (  # (?>...): whole or not at all
    rf"(?>(?:(?P<whole>[0-9]+)\s+(?:and\s+)?(?=[0-9]+\s*/\s*[0-9]))?(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?"
    r"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion|(?<=[0-9])[kK])\b)?(?P<percent>\s*(?:%|per ?cent\b))?)"
)
_VARIABLE = r"(?![mgshlLAVWJNKCF]|a\W+\w)[^\W\d_](?![^\W\d_])"  # a letter alone, no unit, and not "a day"
_WORD = r"(?:[/·-]?[^\W\d_]|°)(?:[^\W\d_]|[°²³.'’/·-]|\^\{?-?[0-9]\}?)*"
_UNIT = (  # what leaves the value of a number alone: a few words; "3x" is not 3
    r"(?!.*\b(?i:and|or|to|hal(?:f|ves)|thirds|fourths|fifths|plus|minus|times|over|by)\b)(?!.{101})"
    rf"(?![\W\d_]*{_VARIABLE})(?:{_WORD}(?:\s+{_WORD}){{0,5}}[ .!]*)?"
)
_WHOLE = re.compile(rf"(?:[A-Za-z]\w{{0,15}}\s*=\s*)?(?P<sign>[-+]?)\s*{_NUMBER}\s*{_UNIT}", re.DOTALL)
_WITHIN = re.compile(rf"(?:(?<![\w)\]}}%.])[-+])?{_NUMBER}")
_ALONE = re.compile(rf"[^0-9]*?(?<![-+.\w^{{\\√])({_WITHIN.pattern})(?!\s*[\^\\_{{]|{_VARIABLE})[^0-9]*", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<!Rs)[.;!?]\s")
_ASIDE = re.compile(r",\s+(?!\d|or\b|and\b)|\s(?:because|since|as|if|when)\b|\([^()]*\)")
_PLAIN = [  # LaTeX, Unicode, Markdown and money, and plain text
    (r"[\u2212\u2013]", "-"), ("[\u00a0\u202f\u2009]|\\\\ ", " "), ("％", "%"), ("\u2044", "/"), (r"\{,\}", ","),
    (r"\\left|\\right|\\[!,;()\[\]]", ""), (r"\\([%$])", r"\1"), (r"\^\{?\\circ\}?", " degrees"),
    (r"\*\*(.+?)\*\*", r"\1"), (r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\[dtc]?frac\s*\{( *-)?([^{}]*)\}\s*\{([^{}]*)\}", r"\1 \2/\3"),
    (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2"), (r"\\f?box(?:ed)?\s*\{([^{}]*)\}", r"\1"),
    (r"(?<=[0-9])\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?([+-]?[0-9]{1,3})\}?", r"e\1"),
    (r"(?<![0-9.])(?:US)?[$€£¥₹]|[$€£¥₹](?![0-9])|\b(?:USD|EUR|GBP|Rs\.?)\s*(?=[-.0-9])", ""),
    (r"^\s*\(([^()]*)\)[\s.]*$|\(([^()\d]*)\)", r" \1\2 "), (r"(?:^\s*|(?<=is ))minus\s+|\bnegative\s+", "-"),
]  # fmt: skip


class Number(NamedTuple):
    """An exact value as written: 50% has value 50 and `percent` set."""

    value: Fraction
    percent: bool


def _plain(text: str) -> str:
    text = "".join(f" {unicodedata.normalize('NFKC', c)}" if "VULGAR" in unicodedata.name(c, "") else c for c in text)
    for old, new in _PLAIN:
        text = re.sub(old, new, text)
    return text


def parse_number(text: str) -> Number | None:
    """Read a text that is one number, with sign, currency, scale word, percent sign or unit; None if it is not."""
    if len(text) > _LONGEST:
        return None
    plain = re.sub(r"(?<![\w.,])[0-9]{1,3}(?: [0-9]{3})+(?![\w,/]| ?/)", lambda m: m[0].replace(" ", ""), _plain(text))
    match = _WHOLE.fullmatch(plain.strip().rstrip(". "))
    if match is None or not (bottom := Fraction((match["bottom"] or "1").replace(",", ""))):
        return None
    value = int(match["whole"] or 0) + Fraction(match["top"].replace(",", "")) / bottom
    value *= 10 ** _SCALES.get(match["scale"], 0)
    return Number(-value if match["sign"] == "-" else value, bool(match["percent"]))


def extract_number(text: str) -> str | None:
    """The number after the last `MARKER`, on that line, as written; None without. This is the strict reading.

    Of "5 + 3 = 8" it takes the last side that is a number, and of "18 dollars, as ..." what stands before the reason.
    Any other sentence must hold one number only, and not as a part of a formula or name, as in "3x", "x^2" and "A4":
    "3 or 4", "10:30" and "5 feet 3 inches" are no answer.
    """
    _, found, tail = text.rpartition(MARKER)
    line = re.sub(r"^[\s$\\\[]*(?=\n)", "", tail).strip().partition("\n")[0].strip()
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    head = _ASIDE.split(re.sub(r"\([^()]*\)", "", sentence), maxsplit=1)[0]
    for part in (line, sentence, *reversed(head.split("=")), head.split(" for ")[0]) if found else ():
        if parse_number(part) is not None:
            return part.strip().rstrip(".").strip()
    alone = _ALONE.fullmatch(_plain(sentence)) if found else None
    return alone[1].strip() if alone else None


def last_number(text: str) -> str | None:
    """The last number of a text, as written, wherever it stands. This is the lenient reading."""
    matches = [match.group().strip() for match in _WITHIN.finditer(_plain(text))]
    return matches[-1] if matches else None


def numbers_equal(prediction: str | None, gold: str) -> bool:
    """Whether two texts denote exactly the same number; what can't be read equals nothing.

    Each is a number with or without decoration, or ends in "The answer is: N" or "#### N".
    """
    left, right = _read(prediction), _read(gold)
    if left is None or right is None:
        return False
    if left.percent == right.percent:
        return left.value == right.value
    percent, other = (left, right) if left.percent else (right, left)
    return other.value in (percent.value, percent.value / 100)


def _read(text: str | None) -> Number | None:
    text = str(text or "").rpartition("####")[2]
    return parse_number((extract_number(text) or "") if MARKER in text else text)
