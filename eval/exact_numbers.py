"""Numbers as people and models write them: read from a text, and compared exactly."""

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
    rf"(?:{_CURRENCY}\s*)?(?:(?P<whole>[0-9]+)\s+(?:and\s+)?(?P<part>[0-9]+)\s*/\s*(?P<of>[0-9]+)"
    rf"|(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?)"
    r"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion)\b|(?P<kilo>[kK])\b)?"
    r"(?P<percent>\s*(?:%|percent\b|per cent\b))?"
)
_WHOLE = re.compile(
    rf"(?:[A-Za-z]\w{{0,15}}\s*=\s*)?(?P<sign>(?:[-+]|minus\s|negative\s)?)\s*(?:{_CURRENCY}\s*)?(?P<sign2>-?)\s*{_CORE}"
    r"(?P<unit>.*)",
    re.DOTALL,
)
_WITHIN = re.compile(
    rf"(?P<sign>(?<![\w)\]}}%.])[-+]|\bnegative\s+|(?<=is )minus\s+)?(?:{_CURRENCY}\s?)?(?P<sign2>-?){_CORE}"
)
_UNIT = re.compile(r"[/·-]?[^\W\d_°]|°")  # how a word of a unit begins; then letters and these:
_UNIT_REST = re.compile(r"(?:[^\W\d_]|[°²³.'’/·-]|\^\{?-?[0-9]\}?)*")
_LONGEST_UNIT = 100
_LETTER_UNITS = frozenset("mgshlLAVWJNKCF")
_NOT_UNITS = frozenset(
    ["and", "or", "to", "half", "halves", "thirds", "fourths", "fifths", "plus", "minus", "times", "over", "by"]
)
_SENTENCE_END = re.compile(r"(?<!Rs)[.;!?]\s")
_ASIDE = re.compile(r",\s+(?!\d|or\b|and\b)|\s(?:because|since|as|if|when)\b")


@dataclass(frozen=True)
class Number:
    """An exact value as written: 50% has value 50 and `percent` set."""

    value: Fraction
    percent: bool = False


def _plain(text: str) -> str:
    """Text with the LaTeX, Unicode and Markdown spellings of numbers replaced by plain ones."""
    for old, new in (
        ("\u2212", "-"), ("\u2013", "-"), ("\u00a0", " "), ("\u202f", " "), ("\u2009", " "), ("％", "%"), ("{,}", ","),
        ("\\left", ""), ("\\right", ""), ("\\!", ""), ("\\,", ""), ("\\;", ""), ("\\ ", " "), ("\\%", "%"),
        ("\\$", "$"), ("^{\\circ}", " degrees"), ("^\\circ", " degrees"), ("\\(", ""), ("\\)", ""), ("\\[", ""),
        ("\\]", ""), ("$$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    text = "".join(_vulgar(c) for c in text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[dtc]?frac\s*\{( *-)?([^{}]*)\}\s*\{([^{}]*)\}", r"\1 \2/\3", text)
    text = re.sub(r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2", text)
    text = re.sub(r"\\f?box(?:ed)?\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=[0-9])\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?([+-]?[0-9]{1,3})\}?", r"e\1", text)
    text = re.sub(r"\$\s*\$|(?<=[^\sA-Z$])\$(?=[\s.,]|$)", "", text)  # closing $ of inline mathematics
    return re.sub(r"^\s*\$(.*)\$\s*$", r"\1", text)


def _vulgar(char: str) -> str:
    """A character such as "½" as " 1/2"; any other as it is."""
    decomposed = unicodedata.normalize("NFKC", char)
    return " " + decomposed.replace("\u2044", "/") if "\u2044" in decomposed and len(decomposed) > 1 else char


def _number(match: re.Match[str]) -> Number | None:
    """The value of a match of `_CORE` and its signs."""
    if len(match.group()) > _LONGEST:
        return None
    try:
        if match["whole"]:
            value = int(match["whole"]) + Fraction(int(match["part"]), int(match["of"]))
        else:
            value = Fraction(match["top"].replace(",", ""))
            if match["bottom"]:
                value /= Fraction(match["bottom"].replace(",", ""))
    except ZeroDivisionError:
        return None
    value *= 10 ** _SCALES.get(match["scale"] or match["kilo"], 0)
    negative = (match["sign"] or "").strip() in ("-", "minus", "negative") or match["sign2"] == "-"
    return Number(-value if negative else value, bool(match["percent"]))


def parse_number(text: str) -> Number | None:
    """Reads a text that is one number, with sign, currency, scale word, percent sign or unit; None if it is not."""
    if len(text) > 4 * _LONGEST:
        return None
    plain = _plain(text).strip().rstrip(".").strip()
    plain = re.sub(r"(?<![\w.,])([0-9]{1,3})((?: [0-9]{3})+)(?![\w,/]| ?/)", _without_spaces, plain)
    while plain[:1] == "(" and plain[-1:] == ")" and plain.count("(") == 1:
        plain = plain[1:-1].strip()
    match = _WHOLE.fullmatch(plain)
    return _number(match) if match and _is_unit(match["unit"]) else None


def _without_spaces(match: re.Match[str]) -> str:
    return match.group().replace(" ", "")


def _is_unit(text: str) -> bool:
    """Whether what follows a number leaves its value alone: nothing, or a few words of unit; "3x" is not 3."""
    text = re.sub(r"\(([^()\d]*)\)", r" \1", text).strip()
    if not text:
        return True
    tokens = text.rstrip(" .!").split()
    if not 1 <= len(tokens) <= 6 or len(text) > _LONGEST_UNIT or not all(map(_is_unit_word, tokens)):
        return False
    words = re.findall(r"[^\W\d_]+", text)
    if any(word.lower() in _NOT_UNITS for word in words):
        return False
    first = words[0] if words else ""
    return len(first) != 1 or first in _LETTER_UNITS or (first == "a" and len(words) > 1)


def _is_unit_word(token: str) -> bool:
    start = _UNIT.match(token)
    return start is not None and _UNIT_REST.fullmatch(token, start.end()) is not None


def extract_number(text: str, marker: str = MARKER) -> str | None:
    """Strict reading of a generation: the number after the last `marker`, on that line, as written; None without.

    Of "5 + 3 = 8" it takes the last side that is a number, and of "18 dollars, as ..." what stands before the reason.
    Any other sentence must hold one number only: "3 or 4", "10:30" and "5 feet 3 inches" are no answer.
    """
    _, found, tail = text.rpartition(marker)
    if not found:
        return None
    line = re.sub(r"^[\s$\\\[]*(?=\n)", "", tail).strip().partition("\n")[0].strip()
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    head = _ASIDE.split(re.sub(r"\([^()]*\)", "", sentence), maxsplit=1)[0]
    for part in (line, sentence, *reversed(head.split("=")), head.split(" for ")[0]):
        if parse_number(part) is not None:
            return part.strip().rstrip(".").strip()
    plain = _plain(sentence)
    matches = list(_WITHIN.finditer(plain))
    return matches[0].group().strip() if len(matches) == 1 and _stands_alone(matches[0]) else None


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether a number is no part of a formula or name, as in "3x", "x^2" and "A4"."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    letters = re.match(r"[^\W\d_]+", after)
    if letters and len(letters.group()) == 1 and letters.group() not in _LETTER_UNITS:
        return False
    return not re.search(r"[\w^{\\√]$", before) and not re.match(r"\s*[\^\\_{]", after)


def last_number(text: str) -> str | None:
    """Lenient reading of a generation: its last number, as written, wherever it stands."""
    matches = [match.group().strip() for match in _WITHIN.finditer(_plain(text))]
    return matches[-1] if matches else None


def numbers_equal(prediction: str | None, gold: str) -> bool:
    """Whether two texts denote exactly the same number.

    Each is a number with or without decoration, or ends in "The answer is: N" or "#### N". 50% equals both 0.5 and 50,
    since questions that ask for a percentage have 50 as their answer. What can't be read equals nothing.
    """
    left, right = _read(prediction), _read(gold)
    if left is None or right is None:
        return False
    if left.percent == right.percent:
        return left.value == right.value
    percent, other = (left, right) if left.percent else (right, left)
    return other.value in (percent.value, percent.value / 100)


def _read(text: str | None) -> Number | None:
    if text is None:
        return None
    text = str(text).rpartition("####")[2]
    answer = extract_number(text) if MARKER in text else text
    return None if answer is None else parse_number(answer)
