"""From a generation to a program: HumanEval and MBPP prompts, code extraction, tests, and the pass@k estimator."""

import ast
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from eval.sandbox import Program

_FENCE = re.compile(r"```([^\n`]*)\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_STATEMENT = re.compile(r"^(?:(?:async def|def|class|import|from)\b|@|\w+ *=)", re.MULTILINE)
# What a base model goes on with once the function is written (human-eval, bigcode-evaluation-harness).
_STOPS = re.compile(
    r"^(?:if __name__\b|print\(|assert\b|# (?:Example|Test|Usage)\b|\[/?[A-Z]+\]|\[DONE\]|</?\w+>|### |>>> )",
    re.MULTILINE,
)


def extract_code(text: str, prompt: str | None = None, entry: str = r"\w+") -> str:
    """The Python code of a generation.

    Of the fenced blocks (those marked as Python, if any are) the first that defines `entry`, a pattern of names, else
    the first; without blocks the text itself. Of that, what comes before the next top-level statement that tests or
    shows rather than defines. With `prompt`, an echo of it at the beginning is removed (a completion is left to be
    appended to the prompt).
    """
    text = text.replace("\r\n", "\n").replace("\r", "")
    blocks = _FENCE.findall(text)
    if blocks:
        marked = [body for language, body in blocks if language.strip().lower() in ("python", "py", "python3")]
        found = marked or [body for _, body in blocks]
        defines = re.compile(rf"^[ \t]*(?:async def|def|class)\s+{entry}\b", re.MULTILINE)
        text = next(filter(defines.search, found), found[0])
    if prompt is not None and text.lstrip("\n").startswith(prompt.strip("\n")):
        text = text.lstrip("\n")[len(prompt.strip("\n")) :]
    stop = _STOPS.search(text, len(text) - len(text.lstrip()) + 1)
    if stop:
        text = text[: stop.start()]
    return text.rstrip() + "\n" if text.strip() else ""


def complete_part(code: str) -> str:
    """The longest beginning of `code`, cut before a top-level line, that compiles; `code` itself if none does.

    A generation that ends at the length limit stops in the middle of a function it had no need to begin.
    """
    lines = code.splitlines(keepends=True)
    tops = [i for i, line in enumerate(lines) if line.strip() and line[0] not in " \t)]}#"]
    for end in [len(lines), *reversed(tops[1:][-20:])]:
        if _compiles(beginning := "".join(lines[:end])):
            return beginning
    return code


def without_prose(code: str) -> str:
    """The part of `code` that compiles (see `complete_part`), what a model says before it left out; else `code`."""
    starts = [0, *(match.start() for match in _STATEMENT.finditer(code))][:20]
    parts = (complete_part(code[start:]) for start in starts)
    return next(filter(_compiles, parts), code)


def _compiles(code: str) -> bool:
    """Whether `code` is Python, and not a word such as "Solution" that only happens to be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in generated strings
            body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return not any(isinstance(node, ast.Expr) and isinstance(node.value, ast.Name) for node in body)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of pass@k from `c` passes in `n` samples: 1 - C(n-c, k) / C(n, k) (Chen et al., 2021).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


# ----------------------------------------------------------------------------------------------------------- HumanEval


def humaneval_prompt(record: Mapping[str, Any]) -> str:
    """The prompt as published: imports, signature and docstring, to be completed."""
    return record["prompt"]


def humaneval_program(record: Mapping[str, Any], completion: str) -> Program:
    """The program for a HumanEval record and a generation: a completion of the prompt, or the whole function anew.

    The helpers that a prompt defines (`poly`, `encode_cyclic`, ...) belong to the test too, and are defined there
    anew, so that a candidate can't replace the test's own.
    """
    entry = record["entry_point"]
    test = f"{prompt_helpers(record['prompt'], entry)}\n{record['test']}\ncheck({entry})\n"
    return Program(humaneval_candidate(record, completion), test, (entry,))


def humaneval_candidate(record: Mapping[str, Any], completion: str) -> str:
    """Prompt and completion; or, if the generation defines the function, it alone after the prompt's helpers."""
    prompt, entry = record["prompt"], record["entry_point"]
    code = extract_code(completion, prompt, re.escape(entry))
    whole = re.search(rf"^def {re.escape(entry)}\b", code, re.MULTILINE)
    if whole is None:
        return _completed(prompt, entry, code)
    body = _completed(prompt, entry, code[: whole.start()])
    if _returns(body, entry):  # the completion, after which the model began anew
        return body
    return f"{prompt_helpers(prompt, entry)}\n{without_prose(code)}"


def _completed(prompt: str, entry: str, body: str) -> str:
    """The prompt with a body after it that may lack its first line's indentation, or have prose before it."""
    if not body.strip() or body[0] in " \t\n":
        return complete_part(prompt + body)
    completed = complete_part(f"{prompt}    {body}")  # the indentation is lost with the prompt's newline
    prose = re.match(r"(?:(?:[^\s].*)?\n)+(?=[ \t])", body)
    if prose is None or _STATEMENT.search(prose.group()) or _returns(completed, entry):
        return completed
    return complete_part(prompt + body[prose.end() :])


def _returns(source: str, entry: str) -> bool:
    """Whether the function does something beyond what its prompt says: whether it has a `return` or a `yield`."""
    functions = (
        [node for node in _tree(source).body if getattr(node, "name", None) == entry] if _compiles(source) else []
    )
    return any(isinstance(node, (ast.Return, ast.Yield)) for f in functions for node in ast.walk(f))


def prompt_helpers(prompt: str, entry: str) -> str:
    """A prompt without the function to complete: its imports and helper functions."""
    tree = ast.parse(prompt + "\n    pass\n")
    tree.body = [node for node in tree.body if getattr(node, "name", None) != entry]
    return ast.unparse(tree)


# ---------------------------------------------------------------------------------------------------------------- MBPP


def mbpp_prompt(record: Mapping[str, Any]) -> str:
    """The task in words and its tests, which name the function (Austin et al., 2021, section 3)."""
    tests = "\n".join(record["test_list"][:3])
    return f"{record.get('text') or record['prompt']} Your code should pass these tests:\n\n{tests}"


def mbpp_program(record: Mapping[str, Any], completion: str) -> Program:
    """The program for an MBPP record and a generation; `test_setup_code` uses the candidate's classes: it goes after.

    What the test takes from the candidate are the names that the reference solution and the set-up code define (among
    them `sum`, in one task); the reference's imports are available to the test.
    """
    setup = record.get("test_setup_code") or "\n".join(record.get("test_imports") or ())
    reference, candidate = _tree(record["code"]), without_prose(extract_code(completion))
    names = {name for tree in (reference, _tree(setup)) for node in tree.body for name in _defined(node)}
    imports = [ast.unparse(node) for node in reference.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    test = "\n".join([*imports, *record["test_list"]])
    used = {node.id for node in ast.walk(_tree(test)) if isinstance(node, ast.Name)}
    return Program(f"{candidate}\n{setup}\n", test, tuple(sorted(names & used)))


def _tree(source: str) -> ast.Module:
    return ast.parse(source.replace("\r\n", "\n"))


def _defined(node: ast.stmt) -> set[str]:
    """The names a top-level statement defines, imports not counted."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
