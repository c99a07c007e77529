"""docs/faults.md has every fault once, and names tests that are there."""

import pathlib
import re

TESTS = pathlib.Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs/faults.md").read_text()
ROWS = dict(re.findall(r"^\| (\d+) \|(.*)\|$", TEXT, re.MULTILINE))


def test_every_fault_has_a_row():
    numbers = [int(n) for n in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)]
    assert numbers == list(range(1, 71))


def test_every_row_names_a_test_and_all_of_them_exist():
    for number, row in ROWS.items():
        named = re.findall(r"`(\w+)::(\w+)`", row)
        assert named, number
        for file, test in named:
            found = list(TESTS.rglob(f"{file}.py"))
            assert len(found) == 1, (number, file)
            assert re.search(rf"^def {test}\(", found[0].read_text(), re.M), (
                number,
                test,
            )
