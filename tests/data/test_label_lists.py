"""Texts that stand for lists of labels: every usual way of writing them, what is refused, and what is left alone."""

import json
import time

import datasets
import numpy as np
import pytest

from hftl.data.label_lists import parse_list, parse_lists
from hftl.data.labels import build_labels, encode_labels, read_label_texts
from hftl.errors import UserError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LISTS = [["very toxic", "it's"], ["a, b"], [], ["a, b", "very toxic"]]


def make(**labels):
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_dict({"row_id": range(len(v)), "label": v}) for split, v in labels.items()}
    )


def read(texts, problem_type=None):
    """Names and encoded labels."""
    splits = read_label_texts(make(train=texts), problem_type)
    info = build_labels(splits, problem_type)
    return info.problem_type, info.names, encode_labels(splits, info)["train"]["label"][:]


@pytest.mark.parametrize("problem_type", [None, MULTI])
@pytest.mark.parametrize(
    "write",
    [
        str,
        json.dumps,
        lambda row: str(tuple(row)),
        lambda row: str(set(row)),
        lambda row: repr(frozenset(row)),
        lambda row: str(np.array(row)),
        lambda row: repr(np.array(row, dtype=object)),
        lambda row: str(list(np.array(row))),  # np.str_('a') since numpy 2
        lambda row: "[\n  " + ",\n  ".join(map(repr, row)) + "\n]",
        lambda row: f" {row} ",
    ],
)
def test_a_list_of_names_is_read_however_it_is_written(write, problem_type):
    found, names, rows = read([write(row) for row in LISTS], problem_type)
    assert (found, names) == (MULTI, ("a, b", "it's", "very toxic"))
    assert rows == [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize("problem_type", [None, MULTI])
@pytest.mark.parametrize(
    "texts",
    [
        ["0 1 0", "1 1 0", "0 0 1"],
        ["0,1,0", "1,1,0", "0,0,1"],
        ["0.0;1.0;0.0", "1.0;1.0;0.0", "0.0;0.0;1.0"],
        ["0|1|0", "1|1|0", "0|0|1"],
        ["[0, 1, 0]", "[1, 1, 0]", "[0, 0, 1]"],
        ["[0 1 0]", "[1 1 0]", "[0 0 1]"],
        ["[0. 1. 0.]", "[1. 1. 0.]", "[0. 0. 1.]"],
        ["[False, True, False]", "[True, True, False]", "[False, False, True]"],
        ["tensor([0., 1., 0.])", "tensor([1., 1., 0.])", "tensor([0., 0., 1.])"],
        ["array([0, 1, 0], dtype=int8)", "array([1, 1, 0], dtype=int8)", "array([0, 0, 1], dtype=int8)"],
    ],
)
def test_zeros_and_ones_are_one_for_each_label(texts, problem_type):
    assert read(texts, problem_type) == (MULTI, ("0", "1", "2"), [[0, 1, 0], [1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("texts", [["[3, 11]", "[7]", "[]"], ["{3, 11}", "{7}", "set()"], ["(3, 11)", "(7,)", "()"]])
def test_numbers_in_a_list_are_labels_in_the_order_of_their_values(texts):
    assert read(texts) == (MULTI, ("3", "7", "11"), [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


def test_a_column_of_two_zeros_or_ones_is_multi_hot_where_that_is_asked_for():
    assert read(["0 1", "1 1", "0 0"], MULTI)[1:] == (("0", "1"), [[0, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize(
    "texts, problem_type, message",
    [
        (["['a', 'b']", "a", "b"], None, "Some labels .* are lists and 'a' is not one"),
        (["['a', 'b']", "['a', 'b'"], MULTI, r"are lists and \"\['a', 'b'\" is not one"),
        (["{'a': 1, 'b': 0}", "{'a': 0, 'b': 1}"], None, "Some labels .* is not one that can be read"),
        (["[0 1 ... 0]", "['a']"], None, "0 1 ... 0.* is not one that can be read"),
        (["['a', ['b']]", "['a']"], MULTI, "is not one that can be read"),
        (["[0.2, 0.9]", "[0.1, 0.3]"], MULTI, "lists of decimal"),
        (["[18, 25]", "[26, 35]", "[36, 99]"], None, "lists or ranges.*multi_label.* or .*single_label"),
        (["0 1", "1 0", "1 1"], None, "rows of zeros and ones.*multi_label.* or .*single_label"),
        (["010", "100", "001"], None, "rows of zeros and ones.*multi_label.* or .*single_label"),
        (["['a', None]", "['b']"], None, "is not one that can be read"),
        (["a|b", "a", "b"], MULTI, r"1 labels are others of them with '\|' between.*--label_delimiter '\|'"),
        (["a b", "a", "b"], MULTI, "give `--label_delimiter ' '`"),
        (["a; b", "a", "b"], MULTI, "give `--label_delimiter ';'`"),
    ],
)
def test_what_cannot_be_told_is_refused(texts, problem_type, message):
    with pytest.raises(UserError, match=message):
        read(texts, problem_type)


@pytest.mark.parametrize(
    "texts",
    [
        ["[INST]", "[PAD]", "word"],
        ["[a]", "[b]", "[b]"],
        ["(a)", "(b)", "(c)"],
        ["{curly}", "plain", "{curly}"],
        ["(0, 10]", "(10, 20]", "(0, 10]"],
        ["0|1", "1|1", "0|0"],
        ["0/1", "1/1", "0/0"],
        ["rock, pop", "jazz", "it's"],
        ["01", "02", "10"],
        ["'quoted'", "other", "third"],
        ["R&B", "C++", "a (b, c)"],
    ],
)
def test_names_that_only_look_like_lists_stay_classes(texts):
    problem_type, names, _ = read(texts)
    assert (problem_type, names) == (SINGLE, tuple(sorted(set(texts))))


def test_one_class_a_row_takes_every_text_as_it_is():
    texts = ["[18, 25]", "[26, 35]", "['a', 'b']"]
    assert read(texts, SINGLE)[:2] == (SINGLE, tuple(sorted(texts)))


def test_new_rows_are_read_as_in_training():
    info = build_labels(read_label_texts(make(train=["['a', 'b']", "['c']"]), None))
    rows = read_label_texts(make(test=["['c']", '["a"]', "[]"]), info.problem_type)
    assert encode_labels(rows, info)["test"]["label"][:] == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "text",
    ["[" + " " * 100_000 + "(", "['a'" + " 'a'" * 20_000 + " '", "[" * 100_000, "['" + "\\" * 100_001, "[,a" * 9_999],
)
def test_long_texts_take_no_time(text):
    begun = time.perf_counter()
    assert parse_list(text + "]") is None
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize(
    "texts",
    [
        ["['a', 'b', ...]", "['b']"],
        ["['a' 'b' ... 'c']", "['b']"],
        ["[['a'], ['b']]", "[['a']]"],
        ['[{"name": "a"}]', '[{"name": "b"}]'],
        ["[[0, 5], [2]]", "[[1]]"],
    ],
)
def test_lists_that_are_cut_or_hold_lists_are_no_classes(texts):
    with pytest.raises(UserError, match="is not one that can be read"):
        parse_lists(texts, None, "label")
    assert parse_lists(["[[A]]", "[[B]]", "[(c]"], None, "label") is None
