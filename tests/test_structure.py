"""The tree: imports point downwards, the library knows no Prefect, and no module or function outgrows its reader."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each may import what stands in lines below it; packages of one line know nothing of each other.
LAYERS = """
deployments
flows cli
blocks
pipeline review
evaluation
export
report
telemetry
results
job
serving proof
inference images grounding inputs
recipe
storage
own_packages threads cores version
errors
printable
"""
LAZY = {("cli", "flows"), ("cli", "blocks")}  # the command line knows Prefect once it needs it, and within functions
LONGEST_MODULE, LONGEST_FUNCTION = 300, 60
PACKAGES = ("vllm_annotate", "flows", "blocks", "deployments")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEIGHT = {unit: -row for row, line in enumerate(LAYERS.split("\n")) for unit in line.split()}


def unit_of(module: str) -> str:
    """The room of the house that a module is in."""
    first, *rest = module.split(".")
    return (rest[0] if rest else "errors") if first == "vllm_annotate" else first


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.Module) -> list[tuple[ast.stmt, str, bool]]:
    """(statement, imported module, whether it is within a function), but for what a type checker alone reads."""
    found: list[tuple[ast.stmt, str, bool]] = []

    def visit(node: ast.AST, *, lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
                continue
            if isinstance(child, ast.Import):
                found.extend((child, alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.append((child, child.module, lazy))
                found.extend((child, f"{child.module}.{alias.name}", lazy) for alias in child.names)
            visit(child, lazy=lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(tree, lazy=False)
    return found


def test_imports_point_downwards() -> None:
    for path in MODULES:
        own = unit_of(name_of(path))
        for statement, module, lazy in imports_of(ast.parse(path.read_text())):
            other = unit_of(module)
            if module.split(".")[0] not in PACKAGES or other == own or (lazy and (own, other) in LAZY):
                continue
            where = f"{path}:{statement.lineno}: {own} imports {other} ({module})"
            assert other in HEIGHT, f"{where}, which has no place among the layers"
            assert HEIGHT[other] < HEIGHT[own], where


def test_the_library_knows_no_prefect() -> None:
    for path in MODULES:
        for statement, module, lazy in imports_of(ast.parse(path.read_text())):
            if "vllm_annotate" in path.parts and module.split(".")[0] == "prefect":
                where = f"{path}:{statement.lineno}: {module}"
                assert lazy, where
                assert path.parts[-2:] == ("cli", "with_prefect.py"), where


def test_no_module_is_part_of_a_cycle() -> None:
    names = {name_of(path): path for path in MODULES}
    edges = {
        name: {module for _, module, _ in imports_of(ast.parse(path.read_text())) if module in names and module != name}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in names:
        visit(name, ())


def test_modules_and_functions_are_short() -> None:
    for path in MODULES:
        text = path.read_text()
        assert len(text.splitlines()) <= LONGEST_MODULE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body  # a flow's signature is its form
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert lines <= LONGEST_FUNCTION, f"{path}: {node.name} has {lines} lines"


@pytest.mark.parametrize("folder", ["demo", "benchmarks", "stand_in"])
def test_what_is_no_test_imports_nothing_from_the_tests(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        modules = [module for _, module, _ in imports_of(ast.parse(path.read_text()))]
        assert not [module for module in modules if module.split(".")[0] == "tests"], path


def test_compatibility_modules_are_five_lines_at_most() -> None:
    for name in ("merge_shards", "reparse", "serving"):
        lines = (ROOT / "flows" / f"{name}.py").read_text().splitlines()
        assert len([line for line in lines if line]) <= 5


def test_what_the_code_imports_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["s3"], *extras["fast"]]
    declared = {re.split(r"[\[<>=]", line)[0] for line in lines}
    distributions = metadata.packages_distributions()
    for path in MODULES:
        for _, module, _ in imports_of(ast.parse(path.read_text())):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in PACKAGES and module:
                names = {name.lower().replace("_", "-") for name in distributions[top]}
                assert declared & names, f"{path} imports {top}"
