"""The table of faults in the docs is the one of the tests, and every test that it names is there."""

import ast
from pathlib import Path

import pytest

from tests.faults.matrix import DOCS, OPEN, ROWS, replace_table

TESTS = Path(__file__).parents[1]
NAMED = sorted({row.test for row in ROWS if row.test != OPEN})


def test_the_table_of_the_docs_is_made_from_the_list():
    assert DOCS.read_text() == replace_table(DOCS.read_text()), "python tests/faults/matrix.py"


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_table_names_exists(name):
    file, _, function = name.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_no_row_is_there_twice():
    faults = [(row.number, row.fault) for row in ROWS]
    assert len(set(faults)) == len(faults) > 30
    assert [row.number for row in ROWS] == sorted(row.number for row in ROWS)
