"""From upstream rows to records, one pure function per form. A converter returns None for rows that are not wanted."""

import re
from collections.abc import Collection

from dataset.records import Converter, Record, Row

METAMATH_TYPES = (
    "GSM_Rephrased", "GSM_AnsAug", "GSM_SV", "GSM_FOBAR", "MATH_Rephrased", "MATH_AnsAug", "MATH_SV", "MATH_FOBAR",
)  # fmt: skip
OPTIONS = re.compile(r"Answer format:\s*(\S+)\s*$")  # in a commonsense instruction, of LLM-Adapters' form
MBPP_TRAIN = range(601, 975)
MBPP_TEST = range(11, 511)


def instruction(types: Collection[str]) -> Converter:
    """Rows that already have `instruction`, `output` and `type`, if they are of one of these types."""

    def convert(row: Row) -> Record | None:
        return {key: row[key] for key in ("instruction", "output", "type")} if row["type"] in types else None

    return convert


def gsm8k(row: Row) -> Record:
    """Worked solution without the calculator marks `<<2*3=6>>`, ending in `The answer is: N` instead of `#### N`."""
    steps, answer = row["answer"].rsplit("####", 1)
    steps, answer = re.sub(r"<<.*?>>", "", steps).strip(), answer.strip().replace(",", "")
    output = f"{steps}\nThe answer is: {answer}"
    return {"instruction": row["question"], "output": output, "type": "gsm8k", "answer": answer}


def math(row: Row) -> Record:
    r"""A competition problem; `answer` is the whole solution, which holds the answer in `\boxed{}`."""
    solved = {"output": row["solution"], "answer": row["solution"]}
    return {"instruction": row["problem"], "type": row["type"], "level": row["level"], **solved}


def humaneval(row: Row) -> Record:
    """A function to complete; keeps `task_id`, `prompt`, `test` and `entry_point` to run its tests."""
    signature = row["prompt"]
    docstring = re.search(r'("""|\'\'\')(.*?)(>>>|"""|\'\'\')', signature, re.DOTALL)
    kept = {key: row[key] for key in ("task_id", "prompt", "test", "entry_point")}
    return {
        "instruction": f"Complete the Python function below.\n\n```python\n{signature.strip()}\n```",
        "output": f"```python\n{signature}{row['canonical_solution'].rstrip()}\n```",
        "type": "humaneval",
        "question": docstring.group(2).strip() if docstring else signature,
        **kept,
    }


def mbpp(tasks: range) -> Converter:
    """The tasks with these ids; keeps `task_id`, `test_list` and `test_setup_code` to run their tests."""

    def convert(row: Row) -> Record | None:
        return _mbpp(row, "mbpp", row["text"], "test_setup_code") if row["task_id"] in tasks else None

    return convert


def mbpp_plus(row: Row) -> Record:
    """A task of MBPP+; keeps `task_id`, `test_list`, and `test`, a program that runs all tests."""
    return _mbpp(row, "mbpp_plus", row["prompt"], "test")


def _mbpp(row: Row, task: str, question: str, kept: str) -> Record:
    tests, code = "\n".join(row["test_list"]), row["code"].replace("\r\n", "\n").strip()
    return {
        "instruction": f"{question}\nYour code should pass these tests:\n\n{tests}",
        "output": f"```python\n{code}\n```",
        "type": task,
        "question": question,
        **{key: row[key] for key in ("task_id", "test_list", kept)},
    }


def commonsense(task: str) -> Converter:
    """The LLM-Adapters form: the question with its options, and `the correct answer is OPTION`."""

    def convert(row: Row) -> Record:
        options = OPTIONS.search(row["instruction"])
        # Nothing is read back from the hub's mixed training set, which we have not seen in full.
        if task != "commonsense" and (options is None or row["answer"] not in options.group(1).split("/")):
            raise ValueError(f"answer {row['answer']!r} is not among the options after `Answer format:`")
        return _answered(task, row["instruction"], row["answer"]) | {"output": row["output"]}

    return convert


def _answered(task: str, instruction: str, answer: str) -> Record:
    """A record with its `question`: the instruction without the words that all of its set have in common."""
    found = re.search(r"(?:question|sentence): (.*)Answer format", instruction, re.DOTALL)
    return {
        "instruction": instruction,
        "output": f"the correct answer is {answer}",
        "type": task,
        "answer": answer,
        "question": found.group(1).strip() if found else instruction,
    }


def _choice(task: str, question: str, word: str, options: list[str], gold: int, separator: str = " ") -> Record:
    """A multiple-choice record in the LLM-Adapters form; `gold` counts from 0."""
    names = [f"{word}{number}" for number in range(1, len(options) + 1)]
    listed = separator.join(f"{name.capitalize()}: {text}" for name, text in zip(names, options, strict=True))
    before = " " if task == "winogrande" else "\n\n"  # as published: this one set has no line break there
    return _answered(task, f"{question}\n\n{listed}{before}Answer format: {'/'.join(names)}", names[gold])


def boolq(row: Row) -> Record:
    """google/boolq."""
    asked = f"Please answer the following question with true or false, question: {row['question'].rstrip('?')}?"
    return _answered("boolq", f"{asked}\n\nAnswer format: true/false", "true" if row["answer"] else "false")


def piqa(row: Row) -> Record:
    """ybisk/piqa."""
    question = f"Please choose the correct solution to the question: {row['goal']}"
    return _choice("piqa", question, "solution", [row["sol1"], row["sol2"]], int(row["label"]), separator="\n\n")


def social_i_qa(row: Row) -> Record:
    """allenai/social_i_qa, whose labels count from 1."""
    question = f"Please choose the correct answer to the question: {row['context']} {row['question']}"
    options = [row["answerA"], row["answerB"], row["answerC"]]
    return _choice("social_i_qa", question, "answer", options, int(row["label"]) - 1)


def hellaswag(row: Row) -> Record:
    """Rowan/hellaswag."""
    begun = f"{row['activity_label']}: {row['ctx']}"
    question = f"Please choose the correct ending to complete the given sentence: {begun}"
    return _choice("hellaswag", question, "ending", row["endings"], int(row["label"]))


def winogrande(row: Row) -> Record:
    """allenai/winogrande, whose answers count from 1."""
    task = "Please choose the correct answer to fill in the blank to complete the given sentence"
    options = [row["option1"], row["option2"]]
    return _choice("winogrande", f"{task}: {row['sentence']}", "option", options, int(row["answer"]) - 1)


def science(task: str) -> Converter:
    """allenai/ai2_arc and allenai/openbookqa: `choices` with texts and labels, `answerKey`."""
    question_key = "question_stem" if task == "openbookqa" else "question"

    def convert(row: Row) -> Record:
        question = f"Please choose the correct answer to the question: {row[question_key]}"
        choices = row["choices"]
        return _choice(task, question, "answer", choices["text"], list(choices["label"]).index(row["answerKey"]))

    return convert
