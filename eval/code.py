"""From a generation to a program: finding the code in a text, HumanEval's and MBPP's tests, and the pass@k estimator.

The code is found as evalplus does it (`evalplus.sanitize`): of what parses in the text, the imports, the function that
is asked for, and what that depends on. Beyond that the last complete version of a definition counts, since models
correct themselves, and blocks are read together, since they put helpers into blocks of their own.
"""

import ast
import math
import re
import symtable
import textwrap
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from eval.sandbox import Program

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FENCE = re.compile(
    r"^([ \t]*)(?:(?:[-*+]|\d+[.)])[ \t]+)?```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE
)
_MARKERS = re.compile(r"\[/?(?:PYTHON|CODE)\]|</?code>")
_DEFINITION = re.compile(r"^(?:async def|def|class|import|from|@)", re.MULTILINE)
_STATEMENT = re.compile(r"(?:async def|def|class|import|from|try|with|if|for|while)\b|@|[\w., ]+(?::.*)?=[^=]")
_FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)
_LONGEST = 60  # chunks that one statement may be spread over, by text at the left margin inside it
_ATTEMPTS = 500  # to put chunks together, per text: models repeat themselves


class _Piece:
    """A top-level statement, `whole` or cut back to what parses.

    It has its source, the names that it binds or changes, and those of the module's that it reads.
    """

    def __init__(self, node: ast.stmt, whole: bool) -> None:
        self.node, self.source = node, ast.unparse(node)
        self.defines = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        parts = [node, *node.body] if isinstance(node, ast.Try) else [node]
        self.imports = any(isinstance(part, (ast.Import, ast.ImportFrom)) for part in parts)
        ends = (ast.Return, ast.Yield, ast.YieldFrom, ast.ClassDef)
        self.complete = whole and (not self.defines or _contains(node, ends))  # not a signature alone, or cut
        self.binds, self.reads = set[str](), set[str]()
        for table in [module := symtable.symtable(self.source, "", "exec"), *_inner(module)]:
            for symbol in table.get_symbols():
                if table is not module and symbol.is_global() or table is module and symbol.is_referenced():
                    self.reads.add(symbol.get_name())
                if table is module and (symbol.is_assigned() or symbol.is_imported()):
                    self.binds.add(symbol.get_name())
        for part in ast.walk(node) if not self.defines else ():  # table[0] = 1; table.append(1)
            changed = isinstance(getattr(part, "ctx", None), ast.Store) or isinstance(part, ast.Call)
            owner = getattr(part, "func", part) if changed else None
            if isinstance(owner, (ast.Attribute, ast.Subscript)) and isinstance(owner.value, ast.Name):
                self.binds.add(owner.value.id)


def _inner(table: symtable.SymbolTable) -> list[symtable.SymbolTable]:
    return [found for child in table.get_children() for found in (child, *_inner(child))]


def _contains(node: ast.AST, kinds: tuple[type[ast.AST], ...]) -> bool:
    return any(isinstance(part, kinds) for part in ast.walk(node))


def find_program(text: str, entries: set[str]) -> str:
    """The program in a generation: imports, the functions `entries`, and what they depend on; "" without them.

    Text inside `<think>` is no part of the answer. Of each definition the last complete version counts.
    """
    for source in _sources(text, entries):
        pieces = _pieces(source)
        if any(entries & piece.binds for piece in pieces if not piece.imports):
            return _program(pieces, entries)
    return ""


def _sources(text: str, entries: set[str]) -> list[str]:
    """Where the code may stand, best first: the blocks together, the text, an indented part of it."""
    text = plain(text)
    found = ["\n".join(textwrap.dedent(block) for block in blocks(text)), text]
    for name in entries:
        for indent in re.findall(rf"^([ \t]+)(?:async )?def {re.escape(name)}\b", text, re.MULTILINE):
            found.append(re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
    return found


def plain(text: str) -> str:
    """A text without thoughts and markers of code, its lines ended by newlines alone."""
    text = _THOUGHT.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).rpartition("</think>")[2]
    return _MARKERS.sub("\n", text)


def blocks(text: str) -> list[str]:
    """The fenced blocks, those of other languages left out, without the indentation of their fences."""
    languages = ("", "python", "py", "python3")
    return [
        re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        for indent, language, body in _FENCE.findall(text)
        if language.strip().lower() in languages
    ]


def _pieces(text: str) -> list[_Piece]:
    """The top-level statements of a text that may hold prose, and end in the middle of a statement."""
    starts = [match.start() for match in re.finditer(r"^(?![\s#)\]}]).", text, re.MULTILINE)] + [len(text)]
    found, at, left = [], 0, _ATTEMPTS
    while at < len(starts) - 1:
        chunk, after = text[starts[at] : starts[at + 1]], at + 1
        tree, whole = _parse(chunk), True
        if tree is None and _STATEMENT.match(chunk):
            for end in range(at + 2, min(at + _LONGEST, len(starts), at + left)):
                left -= 1
                if tree := _parse(text[starts[at] : starts[end]]):
                    after = end
                    break
            else:
                lines, whole = chunk.splitlines(keepends=True), False
                ends = range(len(lines) - 1, max(0, len(lines) - _LONGEST), -1)
                tree = next(filter(None, (_parse("".join(lines[:end])) for end in ends)), None)
        with suppress(RecursionError):  # of a sum of a thousand terms, say
            found += [_Piece(node, whole) for node in tree.body] if tree else []
        at = after
    return found


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in generated strings
            tree = ast.parse(source)
            compile(tree, "", "exec")  # a `return` outside a function only fails here
            return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _program(pieces: list[_Piece], wanted: set[str]) -> str:
    """The imports, and of the other statements those that the `wanted` names depend on."""
    definitions = sorted((piece for piece in pieces if piece.defines), key=lambda piece: piece.complete)
    last = {name: piece for piece in definitions for name in piece.binds}
    kept = [piece for piece in pieces if not piece.defines or piece in last.values()]
    kept = [piece for piece in kept if not piece.imports and "__name__" not in piece.reads]
    names: set[str] = set()
    while new := wanted - names:
        names |= new
        wanted = wanted.union(*(piece.reads for piece in kept if piece.binds & new))
    imports = [piece.source for piece in pieces if piece.imports]
    rest = [piece.source for piece in kept if piece.binds & names or "setrecursionlimit" in piece.source]
    return _joined(*imports, *rest)


def _joined(*parts: str) -> str:
    """Return parts of a module as one, with what has to stand first."""
    source = "\n".join(parts) + "\n"
    return "".join(_FUTURE.findall(source)) + _FUTURE.sub("", source)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of pass@k from `c` passes in `n` samples: 1 - C(n-c, k) / C(n, k) (Chen et al., 2021)."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def humaneval_program(record: Mapping[str, Any], text: str) -> Program:
    """The program of a HumanEval (or HumanEval+) record: a completion of its prompt, or the function anew.

    What the prompt defines beside the function (`poly`, `encode_cyclic`, ...) stands before the function.
    """
    entry, prompt = record["entry_point"], record["prompt"]
    code = _completed(prompt, entry, plain(text)) or find_program(text, {entry})
    tree = ast.parse(prompt + "\n    pass\n")
    helpers = [ast.unparse(node) for node in tree.body if getattr(node, "name", None) != entry]
    return Program(_joined(*helpers, code), f"{record['test']}\ncheck({entry})\n")


def _completed(prompt: str, entry: str, text: str) -> str:
    """The prompt with the body that a text begins with, its indentation perhaps lost; "" if it doesn't.

    What follows the body, perhaps the function anew, was not asked for.
    """
    for part in [*blocks(text)[:1], text]:
        body = re.split(rf"^(?:async )?def {re.escape(entry)}\b|^```", part, maxsplit=1, flags=re.MULTILINE)[0]
        prose = re.match(r"(?:\S.*\n|[ \t]*\n)*(?=[ \t]+\S)", body)
        tries = [body]
        if not re.match(r"\s*\n[ \t]|[ \t]", body) and not _DEFINITION.search(body):
            tries = [f"    {body.lstrip()}", textwrap.indent(body, "    ")]
        if prose and not any(map(_STATEMENT.match, prose.group().splitlines())):
            tries.append(body[prose.end() :])
        for attempt in tries:
            pieces = _pieces(prompt + attempt)
            if any(entry in piece.binds and _contains(piece.node, (ast.Return, ast.Yield)) for piece in pieces):
                return _program(pieces, {entry})
    return ""


def mbpp_program(record: Mapping[str, Any], text: str) -> Program:
    """The program of an MBPP (or MBPP+) record, whose `code` is the reference solution.

    What the tests take from the candidate is what the reference defines and they name. The reference's imports stand
    before the candidate; the set-up code uses the candidate's classes and stands after it.
    """
    reference = _pieces(plain(record["code"]))
    setup = (record.get("test_setup_code") or "").replace("\r\n", "\n")
    tests = "\n".join(record["test_list"])
    defined = set().union(*(piece.binds for piece in reference if not piece.imports))
    used = {node.id for node in ast.walk(ast.parse(f"{setup}\n{tests}")) if isinstance(node, ast.Name)}
    imports = [piece.source for piece in reference if piece.imports]
    candidate = find_program(text, defined & used)
    test = record.get("test") or "\n".join([*(record.get("test_imports") or ()), tests])
    return Program(_joined(*imports, candidate, setup), test)
