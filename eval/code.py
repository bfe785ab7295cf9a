"""From a generation to a program: HumanEval and MBPP prompts, code extraction, tests, and the pass@k estimator."""

import ast
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from eval.sandbox import Program

_FENCE = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
# What a base model goes on with once the function is written (human-eval, bigcode-evaluation-harness).
_STOPS = re.compile(
    r"^(?:if __name__\b|print\(|assert\b|# (?:Example|Test|Usage)\b|\[/?[A-Z]+\]|\[DONE\]|</?\w+>|### |>>> )",
    re.MULTILINE,
)


def extract_code(text: str, prompt: str | None = None) -> str:
    """The Python code of a generation.

    The first fenced block marked as Python, else the first fenced block, else the text itself; of that, what comes
    before the next top-level statement that tests or shows rather than defines. With `prompt`, an echo of it at the
    beginning is removed (a completion is left to be appended to the prompt).
    """
    text = text.replace("\r\n", "\n").replace("\r", "")
    blocks = _FENCE.findall(text)
    if blocks:
        text = next(
            (body for language, body in blocks if language.lower() in ("python", "py", "python3")), blocks[0][1]
        )
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


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in generated strings
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


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
    code = extract_code(completion, prompt)
    if re.search(rf"^def {re.escape(entry)}\b", code, re.MULTILINE):
        return complete_part(f"{prompt_helpers(prompt, entry)}\n{code}")
    if code and not code.startswith((" ", "\t", "\n")):
        lines = code.splitlines(keepends=True)  # the first line's indentation is easily lost with the prompt's newline
        code = "    " + lines[0] + "".join(lines[1:])
    return complete_part(prompt + code)


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
    reference, candidate = _tree(record["code"]), complete_part(extract_code(completion))
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
