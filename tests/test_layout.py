"""Imports point one way: scripts, command lines, training and eval, dataset, utils, astra; and never in a circle."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = (("astra",), ("utils",), ("dataset",), ("training", "eval"), ("calibrate", "train", "export"), ("scripts",))
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Dotted module name -> file, for every module of the house."""
    files = [path for room in FLOOR for path in [ROOT / f"{room}.py", *sorted((ROOT / room).rglob("*.py"))]]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.is_file()}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def statements(node: ast.AST, at_load: bool) -> Iterator[ast.stmt]:
    """Every statement below a node; `at_load` leaves out what runs later, in functions, or never, for types alone."""
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef) or (isinstance(child, ast.If) and "TYPE" in ast.unparse(child.test))
        if isinstance(child, ast.stmt | ast.ExceptHandler) and not (at_load and later):
            if isinstance(child, ast.stmt):
                yield child
            yield from statements(child, at_load)


def imports(path: Path, at_load: bool = False) -> set[str]:
    """Dotted names that a module imports: all of them, or only those imported when it is loaded."""
    found: set[str] = set()
    for node in statements(tree(path), at_load):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(name: str) -> str:
    return name.split(".")[0]


def test_no_import_runs_upwards_or_sideways_and_none_is_of_a_command_line():
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in imports(path)
        if room(other) in FLOOR and room(other) != room(name) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert not wrong


def test_no_import_goes_in_a_circle():
    there = modules()
    graph = {name: {other for other in imports(path, at_load=True) if other in there} for name, path in there.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_rooms_are_those_of_the_house():
    found = {
        path.relative_to(ROOT).parts[0].removesuffix(".py") for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    }
    assert found - {"tests", "benchmarks"} == set(FLOOR)


def test_what_the_house_imports_is_declared():
    lines = [line for path in ROOT.glob("requirements*.txt") for line in path.read_text(encoding="utf-8").splitlines()]
    names = {re.split(r"[<>=]", line)[0].replace("-", "_").lower() for line in lines if line and line[0] not in "#-"}
    declared = names | {"yaml" if "pyyaml" in names else "", "pydantic_core" if "pydantic" in names else ""}
    used = {room(other) for path in modules().values() for other in imports(path)}
    assert used - set(FLOOR) - set(sys.stdlib_module_names) <= declared
