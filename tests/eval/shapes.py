# ruff: noqa: E501 - programs, one per string
"""Correct programs as models write them: (the text, whether it answers HumanEval's prompt below or MBPP's)."""

PROMPT = 'import math\n\n\ndef half(x: int) -> int:\n    """ Half of x.\n    >>> half(4)\n    2\n    """\n'
HUMAN = {
    "task_id": "HumanEval/9",
    "prompt": PROMPT,
    "entry_point": "half",
    "canonical_solution": "    return x // 2\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(7) == 3\n",
}
MBPP = {
    "task_id": 2,
    "text": "Write a function to add.",
    "code": "import math\r\ndef add(a, b):\r\n  return a+b",
    "test_list": ["assert add(1, 2) == 3", "assert add(2, math.floor(2.5)) == 4"],
    "test_setup_code": "",
}
BODY = "    return x // 2\n"
WHOLE = "def half(x):\n    return math.floor(x / 2)\n"
ADD = "def add(a, b):\n    return a + b\n"

HUMANEVAL_SHAPES = {
    "a completion": BODY,
    "a completion without its first indentation": BODY.strip(),
    "a completion of two lines without the first indentation": "y = x // 2\n    return y\n",
    "a completion without any indentation": "y = x\nif y < 0:\n    return -(-y // 2)\nreturn y // 2\n",
    "a completion, then a test": BODY + "\nprint(half(4))\nassert half(4) == 3\n",
    "a completion, then the function anew and wrong": BODY + "\n\ndef half(x):\n    return 0\n",
    "a completion, then an unfinished function": BODY + "\ndef unfinished(",
    "a completion, then another task": BODY + "\n\n### Instruction:\nWrite a function that\n",
    "a completion with a helper after it": "    return other(x)\n\n\ndef other(x):\n    return x // 2\n",
    "prose, then a completion": "Here is the rest of it:\n" + BODY,
    "a completion in a block": f"```python\n{BODY}```",
    "a completion, then the end of a block": f"{BODY}```\n\nThis halves `x`, so half(4) is 2.\n",
    "the prompt and its completion": PROMPT + BODY,
    "the prompt and its completion in a block": f"```python\n{PROMPT}{BODY}```",
    "the function in a block": f"Sure!\n```python\n{WHOLE}```\nIt rounds down.",
    "the function without a block": WHOLE,
    "prose around the function": "Here is the function:\n\n" + WHOLE + "\nIt rounds down, as you asked.",
    "words that are Python, then the function": "Solution\n\nimport math\n\n" + WHOLE,
    "a comment about tests above the function": "import math\n\n# Test whether x is even first\n" + WHOLE,
    "a heading above the function": "### Solution\n\n# Example solution\n" + WHOLE,
    "a print above the function": "print('start')\n" + WHOLE,
    "a list in brackets above the function": "[A] = [2]\n" + WHOLE.replace("/ 2", "/ A"),
    "a helper above the function": "def floor(x):\n    return int(x)\n\n" + WHOLE.replace("math.", ""),
    "a call in a block, then the function": f"Call it so:\n```python\nhalf(4)\n```\nIt is:\n```python\n{WHOLE}```",
    "the function, then a test in a block": f"```python\n{WHOLE}```\n```python\nassert half(4) == 3\n```",
    "a correction": f"```python\ndef half(x):\n    return x / 2\n```\nNo, an integer:\n```python\n{WHOLE}```",
    "a stub, then the function": "```python\ndef half(x):\n    pass\n```\nFilled in:\n```python\n" + WHOLE + "```",
    "the function, then a correction that is cut off": WHOLE + "\nBetter:\n\ndef half(x):\n    y = x\n    if (y",
    "a main guard that reads": WHOLE + "\nif __name__ == '__main__':\n    print(half(int(input())))\n",
    "a top-level input of the same name as a local": "y = int(input())\n\ndef half(x):\n    y = x\n    return y // 2\n",
}

MBPP_SHAPES: dict[str, str] = {
    "the code alone": str(MBPP["code"]),
    "a block": f"```python\n{ADD}```",
    "a block without a language": f"```\n{ADD}```",
    "a block that is not closed": f"```python\n{ADD}",
    "prose around": "The function you want:\n\n" + ADD + "It adds.",
    "a helper in a second block": "```python\ndef add(a, b):\n    return plus(a, b)\n```\nwith\n"
    "```python\ndef plus(a, b):\n    return a + b\n```",
    "a helper in a first block": "```python\ndef plus(a, b):\n    return a + b\n```\nso\n"
    "```python\ndef add(a, b):\n    return plus(a, b)\n```",
    "thoughts": f"<think>\n```python\ndef add(a, b):\n    return a - b\n```\nNo.</think>\n```python\n{ADD}```",
    "thoughts that began in the prompt": "def add(a, b): return 0\nNo.</think>\n" + ADD,
    "an indented block of a list": "1. So:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n2. Done.",
    "a block that begins on a list's line": "- ```python\n  def add(a, b):\n      return a + b\n  ```\n",
    "indented code without a block": "So:\n\n    def add(a, b):\n        return a + b\n\nIt adds.",
    "markers of code": f"[PYTHON]\n{ADD}[/PYTHON]\n[TESTS]\n# Test case 1:\nassert add(1, 2) == 4\n[/TESTS]",
    "a shell's block too": f"```bash\npip install numpy\n```\n```python\n{ADD}```\n```\n3\n```",
    "NumPy": "import numpy as np\n\ndef add(a, b):\n    return int(np.add(a, b))\n",
    "a table that the function reads": "ONES = {}\nfor n in range(9):\n    ONES[n] = n\nADDED = []\nADDED.append(0)\n\n"
    "def add(a, b):\n    return ONES[a] + ONES[b] + ADDED[0]\n",
    "a class above": "class Adder:\n    def __init__(self, a):\n        self.a = a\n\n    def plus(self, b):\n"
    "        return self.a + b\n\n\ndef add(a, b):\n    return Adder(a).plus(b)\n",
    "an import that may fail": "try:\n    import nosuch\nexcept ImportError:\n    import operator as nosuch\n\n\n"
    "def add(a, b):\n    return nosuch.add(a, b)\n",
    "a lambda": "add = lambda a, b: a + b\nprint(add(1, 2))\n",
    "a decorator": "from functools import lru_cache\n\n\n@lru_cache(maxsize=None)\ndef add(a, b):\n    return a + b\n",
    "text at the margin in a docstring": 'def add(a, b):\n    """Adds.\n\nNothing else.\n    """\n    return a + b\n',
    "annotations from the future": "import math\n\n" + "from __future__ import annotations\n"
    "def add(a: Number, b: Number) -> Number:\n    return a + b\n",
    "a second function that is cut off": ADD + "\n\ndef test_add():\n    assert add(1, 2) ==",
    "the end of a line of Windows": ADD.replace("\n", "\r\n"),
}

WRONG = [
    (HUMAN, "    return x / 3\n"),
    (HUMAN, ""),
    (HUMAN, "I can't."),
    (HUMAN, "def other(x):\n    return x // 2\n"),
    (HUMAN, "    return\n" + BODY),
    (HUMAN, WHOLE + "\nNo:\n\ndef half(x):\n    return x\n"),
    (HUMAN, "def half(x):\n    return (x //"),
    (MBPP, "def add(a, b):\n    return a"),
    (MBPP, "def plus(a, b):\n    return a + b"),
    (MBPP, "<think>def add(a, b): return a + b"),
]
