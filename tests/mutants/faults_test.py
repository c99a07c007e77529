"""The table of faults fits the tree: texts that stand once, and tests that exist."""

import ast
import pathlib
import re

import pytest

from tests.mutants import faults

ROOT = pathlib.Path(__file__).parents[2]


def test_names_are_unique():
    assert len({fault.name for fault in faults.ALL}) == len(faults.ALL) >= 45


@pytest.mark.parametrize("fault", faults.ALL, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault):
    content = (ROOT / fault.file).read_text()
    planted = fault.planted(content)
    assert planted != content
    if fault.file.endswith(".py"):
        compile(planted, fault.file, "exec")


def quick_tests(file):
    """Names of the tests that are marked neither slow nor extra."""
    body = ast.parse((ROOT / "tests" / file).read_text()).body
    marks = {"pytest.mark.slow", "pytest.mark.extra"}
    return [
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not marks & set(map(ast.unparse, node.decorator_list))
    ]


@pytest.mark.parametrize("fault", faults.ALL, ids=lambda fault: fault.name)
def test_quick_tests_of_a_fault_exist(fault):
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("::")
        found = quick_tests(file)
        assert name.partition("[")[0] in found if name else found, test


def test_the_readme_has_a_row_for_every_fault():
    rows = re.findall(
        r"^\| ([\w-]+) \| `", (ROOT / "tests/README.md").read_text(), re.MULTILINE
    )
    assert [name for name in rows if name != "Fault"] == [f.name for f in faults.ALL]
