"""Numbers as people and models write them: read from a text, and compared exactly. 50% is 0.5, and 50 too."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MARKER = "The answer is:"

_LONGEST = 400  # characters of a number: beyond, it is noise, and conversion is quadratic
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "K": 3}
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?"
_CURRENCY = r"(?:US\$|[$€£¥₹]|USD|EUR|GBP|Rs\.?)"
_CORE = (
    rf"(?:{_CURRENCY}\s*){{0,2}}(?P<sign2>-?)(?:(?P<whole>[0-9]+)\s+(?:and\s+)?(?P<part>[0-9]+)\s*/\s*(?P<of>[0-9]+)"
    rf"|(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?)"
    r"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion)\b|(?P<kilo>[kK])\b)?"
    r"(?P<percent>\s*(?:%|percent\b|per cent\b))?"
)
_WHOLE = re.compile(
    rf"(?:[A-Za-z]\w{{0,15}}\s*=\s*)?(?P<sign>(?:[-+]|minus\s|negative\s)?)\s*{_CORE}(?P<unit>.*)", re.DOTALL
)
_WITHIN = re.compile(rf"(?P<sign>(?<![\w)\]}}%.])[-+]|\bnegative\s+|(?<=is )minus\s+)?{_CORE}")
_UNIT_WORD = r"(?:[/·-]?[^\W\d_]|°)(?:[^\W\d_]|[°²³.'’/·-]|\^\{?-?[0-9]\}?)*"
_UNIT = re.compile(rf"(?=.{{1,100}}$){_UNIT_WORD}(?:\s+{_UNIT_WORD}){{0,5}}[ .!]*", re.DOTALL)
_NOT_UNITS = re.compile(r"(?i)\b(?:and|or|to|hal(?:f|ves)|thirds|fourths|fifths|plus|minus|times|over|by)\b")
_VARIABLE = re.compile(r"[^\W\d_]+")  # unless it is a unit of one letter, or "a day"
_SENTENCE_END = re.compile(r"(?<!Rs)[.;!?]\s")
_ASIDE = re.compile(r",\s+(?!\d|or\b|and\b)|\s(?:because|since|as|if|when)\b|\([^()]*\)")
_PLAIN = [  # LaTeX, Unicode and Markdown, and plain text
    (r"[\u2212\u2013]", "-"), ("[\u00a0\u202f\u2009]|\\\\ ", " "), ("％", "%"), ("\u2044", "/"), (r"\{,\}", ","),
    (r"\\left|\\right|\\[!,;()\[\]]|\$\$", ""), (r"\\([%$])", r"\1"), (r"\^\{?\\circ\}?", " degrees"),
    (r"\*\*(.+?)\*\*", r"\1"), (r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\[dtc]?frac\s*\{( *-)?([^{}]*)\}\s*\{([^{}]*)\}", r"\1 \2/\3"),
    (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2"), (r"\\f?box(?:ed)?\s*\{([^{}]*)\}", r"\1"),
    (r"(?<=[0-9])\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?([+-]?[0-9]{1,3})\}?", r"e\1"),
    (r"\$\s*\$|(?<=[^\sA-Z$])\$(?=[\s.,]|$)", ""), (r"^\s*\$(.*)\$\s*$", r"\1"),
]  # fmt: skip


@dataclass(frozen=True)
class Number:
    """An exact value as written: 50% has value 50 and `percent` set."""

    value: Fraction
    percent: bool = False


def _plain(text: str) -> str:
    text = "".join(f" {unicodedata.normalize('NFKC', c)}" if "VULGAR" in unicodedata.name(c, "") else c for c in text)
    for old, new in _PLAIN:
        text = re.sub(old, new, text)
    return text


def _number(match: re.Match[str]) -> Number | None:
    if len(match.group()) > _LONGEST:
        return None
    top, bottom = match["top"] or match["part"], match["bottom"] or match["of"] or "1"
    if not (divisor := Fraction(bottom.replace(",", ""))):
        return None
    value = int(match["whole"] or 0) + Fraction(top.replace(",", "")) / divisor
    negative = (match["sign"] or "").strip() in ("-", "minus", "negative") or match["sign2"] == "-"
    value *= 10 ** _SCALES.get(match["scale"] or match["kilo"], 0) * (-1 if negative else 1)
    return Number(value, bool(match["percent"]))


def parse_number(text: str) -> Number | None:
    """Read a text that is one number, with sign, currency, scale word, percent sign or unit; None if it is not."""
    if len(text) > 4 * _LONGEST:
        return None
    plain = _plain(text).strip().rstrip(".").strip()
    plain = re.sub(r"(?<![\w.,])[0-9]{1,3}(?: [0-9]{3})+(?![\w,/]| ?/)", lambda m: m.group().replace(" ", ""), plain)
    while plain[:1] == "(" and plain[-1:] == ")" and plain.count("(") == 1:
        plain = plain[1:-1].strip()
    match = _WHOLE.fullmatch(plain)
    return _number(match) if match and _is_unit(match["unit"]) else None


def _is_unit(text: str) -> bool:
    """Whether what follows a number leaves its value alone: nothing, or a few words of unit; "3x" is not 3."""
    text = re.sub(r"\(([^()\d]*)\)", r" \1", text).strip()
    return not text or bool(_UNIT.fullmatch(text) and not _NOT_UNITS.search(text) and not _is_variable(text))


def _is_variable(text: str) -> bool:
    word = _VARIABLE.search(text)
    if word is None or len(word.group()) > 1:
        return False
    return not re.match(r"[mgshlLAVWJNKCF]|a\W+\w", text[word.start() :])


def extract_number(text: str) -> str | None:
    """The number after the last `MARKER`, on that line, as written; None without. This is the strict reading.

    Of "5 + 3 = 8" it takes the last side that is a number, and of "18 dollars, as ..." what stands before the reason.
    Any other sentence must hold one number only: "3 or 4", "10:30" and "5 feet 3 inches" are no answer.
    """
    _, found, tail = text.rpartition(MARKER)
    line = re.sub(r"^[\s$\\\[]*(?=\n)", "", tail).strip().partition("\n")[0].strip()
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    head = _ASIDE.split(re.sub(r"\([^()]*\)", "", sentence), maxsplit=1)[0]
    for part in (line, sentence, *reversed(head.split("=")), head.split(" for ")[0]) if found else ():
        if parse_number(part) is not None:
            return part.strip().rstrip(".").strip()
    matches = list(_WITHIN.finditer(_plain(sentence))) if found else []
    return matches[0].group().strip() if len(matches) == 1 and _stands_alone(matches[0]) else None


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether a number is no part of a formula or name, as in "3x", "x^2" and "A4"."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    if re.match(r"[^\W\d_](?![^\W\d_])", after) and after[0] not in "mgshlLAVWJNKCF":
        return False
    return not re.search(r"[\w^{\\√]$", before) and not re.match(r"\s*[\^\\_{]", after)


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
