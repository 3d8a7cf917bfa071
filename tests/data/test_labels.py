import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, List, Value

from hftl.config import DataArguments
from hftl.data.labels import LabelInfo, build_labels, encode_labels, keep_labels
from hftl.errors import UserError
from hftl.training_data import load_rows

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def make(feature=None, **labels):
    def rows(values):
        table = datasets.Dataset.from_dict({"row_id": range(10, 10 + len(values)), "label": values})
        return table.cast(Features({"row_id": Value("int64"), "label": feature})) if feature else table

    return datasets.DatasetDict({split: rows(values) for split, values in labels.items()})


def encode(splits, *args):
    info = build_labels(splits, *args)
    return encode_labels(splits, info, *args[1:])["train"]


@pytest.mark.parametrize(
    "labels, feature, names, encoded",
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        (["10", "9", "9"], None, ("10", "9"), [0, 1, 1]),
        ([10, 9, -1], None, ("-1", "9", "10"), [2, 1, 0]),
        ([True, False, True], None, ("false", "true"), [1, 0, 1]),
        ([0, 2, 0], ClassLabel(names=["z", "unused", "a"]), ("z", "unused", "a"), [0, 2, 0]),
        ([3, 5], Value("uint8"), ("3", "5"), [0, 1]),
    ],
)
def test_single_labels_are_named_and_numbered(labels, feature, names, encoded):
    splits = make(feature, train=labels)
    assert build_labels(splits) == LabelInfo(SINGLE, names)
    rows = encode(splits)
    assert rows.features["label"] == Value("int64")
    assert rows["label"][:] == encoded
    assert rows["row_id"][:] == list(range(10, 10 + len(labels)))


@pytest.mark.parametrize(
    "labels, feature, names, encoded",
    [
        ([["b", "a"], [], ["b"]], None, ("a", "b"), [[1, 1], [0, 0], [0, 1]]),
        ([[10], [9, 10]], None, ("9", "10"), [[0, 1], [1, 1]]),
        ([[0], [2, 0]], List(ClassLabel(names=["z", "y", "x"])), ("z", "y", "x"), [[1, 0, 0], [1, 0, 1]]),
        ([[0, 1, 1], [0, 0, 1]], None, ("0", "1", "2"), [[0, 1, 1], [0, 0, 1]]),
        ([[0.0, 1.0], [1.0, 1.0]], None, ("0", "1"), [[0, 1], [1, 1]]),
        ([[True, False], [True, True]], None, ("0", "1"), [[1, 0], [1, 1]]),
        ([[0, 1], [1]], None, ("0", "1"), [[1, 1], [0, 1]]),
    ],
)
def test_lists_become_multi_hot_labels(labels, feature, names, encoded):
    splits = make(feature, train=labels)
    assert build_labels(splits) == LabelInfo(MULTI, names)
    rows = encode(splits)
    assert rows["label"][:] == encoded
    assert rows.features["label"].feature == Value("float32")


def test_delimited_strings_become_multi_hot_labels_and_empty_cells_none():
    splits = make(train=["b; a", "a", None, " ", "b;"])
    assert build_labels(splits, MULTI, ";").names == ("a", "b")
    assert encode(splits, MULTI, ";")["label"][:] == [[1, 1], [1, 0], [0, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("labels", [[1, -2], [1.0, -2.0], ["1", "-2e0"]])
def test_numbers_become_values_in_regression(labels):
    splits = make(train=labels)
    assert build_labels(splits, REGRESSION) == LabelInfo(REGRESSION, ("value",))
    rows = encode(splits, REGRESSION)
    assert rows.features["label"] == Value("float32")
    assert rows["label"][:] == [1.0, -2.0]


def test_info_maps_names_both_ways():
    info = LabelInfo(SINGLE, ("a", "b"))
    assert (info.num_labels, info.id2label, info.label2id) == (2, {0: "a", 1: "b"}, {"a": 0, "b": 1})
    assert LabelInfo(REGRESSION, ("value",)).num_labels == 1


@pytest.mark.parametrize(
    "labels, problem_type, message",
    [
        ([0.5, 1.0], None, "type decimal, which does not fit single_label.*`--problem_type regression`, or turn them"),
        ([0.5, 1.0], SINGLE, "--problem_type regression"),
        ([[1], [2]], SINGLE, "type list, which does not fit single.*`--problem_type multi_label_classification`"),
        ([1, 2], MULTI, "type integer, which does not fit multi_label.*expected list, string.*--label_column"),
        ([True, False], REGRESSION, "type bool, which does not fit regression"),
        ([{"a": 1}, {"a": 2}], None, "does not fit single_label_classification.*--label_column"),
        ([[0.5], [1.0]], None, "lists of decimal; expected lists of strings or integers"),
    ],
)
def test_labels_that_do_not_fit_the_problem_are_refused(labels, problem_type, message):
    with pytest.raises(UserError, match=message):
        build_labels(make(train=labels), problem_type)


def test_class_names_are_not_values():
    with pytest.raises(UserError, match="type class, which does not fit regression"):
        build_labels(make(ClassLabel(names=["a", "b"]), train=[0, 1]), REGRESSION)


@pytest.mark.parametrize(
    "labels, problem_type, message",
    [
        (["a", None, "b", None], None, r"train has missing labels \(row_id 11, 13\)"),
        ([["a"], None, ["b"]], None, r"train has missing labels \(row_id 11\)"),
        ([["a"], [None], ["b"]], None, r"train has missing labels \(row_id 11\)"),
        ([1.0, float("nan"), None], REGRESSION, r"not finite numbers \(row_id 11, 12\)"),
        ([1.0, float("inf")], REGRESSION, r"not finite numbers \(row_id 11\)"),
        (["1", "two"], REGRESSION, r"not finite numbers \(row_id 11\)"),
        (["a"] + [None] * 7, None, r"\(row_id 11, 12, 13, 14, 15 and 2 more\)"),
    ],
)
def test_missing_labels_are_named_by_row(labels, problem_type, message):
    with pytest.raises(UserError, match=message):
        build_labels(make(train=labels), problem_type)


def test_a_class_id_out_of_range_is_named_by_row():
    splits = make(train=[0, 1, -1]).cast(Features({"row_id": Value("int64"), "label": ClassLabel(names=["a", "b"])}))
    with pytest.raises(UserError, match=r"train has labels outside 0-1 \(row_id 12\)"):
        build_labels(splits)


@pytest.mark.parametrize("labels, problem_type", [([0, 1], None), ([0.5, 1.5], REGRESSION)])
@pytest.mark.parametrize("hidden", [-1, None])
def test_a_hub_test_set_without_labels_is_recognized(labels, problem_type, hidden):
    splits = make(Value("float64") if problem_type else Value("int64"), train=labels, test=[hidden, hidden])
    with pytest.raises(UserError, match=r"The test split has no labels \(all (-1|-1.0|None)\): give .* --test_file"):
        build_labels(splits, problem_type)


def test_minus_one_is_a_label_where_train_has_it():
    assert build_labels(make(train=[-1, 1], test=[-1])).names == ("-1", "1")


@pytest.mark.parametrize(
    "feature, train, test",
    [
        (None, ["a", "b"], ["a", "c", "c"]),
        (ClassLabel(names=["a", "b", "c"]), [0, 1], [0, 2, 2]),
        (None, [["a"], ["b"]], [["a"], ["c", "a"], ["c"]]),
    ],
)
def test_a_label_that_train_never_has_is_named_with_its_rows(feature, train, test):
    with pytest.raises(UserError, match=r"The label 'c' is in test but never in train \(row_id 11, 12\)"):
        build_labels(make(feature, train=train, test=test))


def test_several_unknown_labels_are_counted():
    with pytest.raises(UserError, match="The label 'c' is in test.* So are 2 more labels"):
        build_labels(make(train=["a", "b"], test=["e", "d", "c"]))


@pytest.mark.parametrize("labels", [["a", "a"], [["a"], []]])
def test_one_class_is_not_enough(labels):
    with pytest.raises(UserError, match=r"Train has one class only \(a\)"):
        build_labels(make(train=labels))


def test_encoding_with_the_labels_of_a_stored_run_keeps_their_numbers():
    info = LabelInfo(SINGLE, ("b", "a"))
    assert encode_labels(make(test=["a", "b"]), info)["test"]["label"][:] == [1, 0]
    features = ClassLabel(names=["a", "b"])
    assert encode_labels(make(features, test=[0, 1]), info)["test"]["label"][:] == [1, 0]
    with pytest.raises(UserError, match=r"'c' is in test but not among the labels of the model \(row_id 11\)"):
        encode_labels(make(test=["a", "c"]), info)


def test_encoding_reads_one_multi_hot_row_as_in_training():
    info = build_labels(make(train=[[0, 1, 1], [1, 0, 0]]))
    assert encode_labels(make(test=[[1, 0, 1]]), info)["test"]["label"][:] == [[1, 0, 1]]
    assert encode_labels(make(test=[[0, 2]]), info)["test"]["label"][:] == [[1, 0, 1]]


def test_encoding_a_large_split_keeps_every_label():
    values = np.random.default_rng(0).integers(0, 50, 20_000)
    assert encode(make(train=values.tolist()))["label"][:] == values.tolist()


@pytest.mark.parametrize("feature", [None, ClassLabel(names=["a", "b", "c"])])
def test_only_the_rows_of_the_named_classes_are_kept(feature):
    values = ["a", "b", "c", "a"] if feature is None else [0, 1, 2, 0]
    kept = keep_labels(make(feature, train=values, test=values), ["a", "c"])
    assert kept["train"]["label"][:] == ["a", "c", "a"]
    assert kept["test"]["row_id"][:] == [10, 12, 13]
    assert build_labels(kept).names == ("a", "c")


def test_a_class_to_keep_must_be_in_train_and_have_rows_elsewhere():
    with pytest.raises(UserError, match="Unknown class in --only_labels: 'aa'.*Did you mean 'a'"):
        keep_labels(make(train=["a", "b"]), ["aa"])
    with pytest.raises(UserError, match="The test split has no row of the classes"):
        keep_labels(make(train=["a", "b"], test=["b"]), ["a"])
    with pytest.raises(UserError, match="needs one class a row"):
        keep_labels(make(List(Value("string")), train=[["a"], ["b"]]), ["a"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a,b", "a", "b"], "--label_delimiter ,`; if each text is one class"),
        (["a; b", "a", "b", "c"], "--label_delimiter ';'`"),
        (["a|b", "b|a|", "a", "b"], r"--label_delimiter '\|'`"),
        (["1,5", "2,25", "-3,0"], "look like numbers with commas, such as '-3,0'"),
    ],
)
def test_labels_that_are_others_joined_or_numbers_with_commas_are_asked_about(labels, message):
    splits = make(train=labels)
    with pytest.raises(UserError, match=message):
        build_labels(splits)
    assert build_labels(splits, "single_label_classification").num_labels == len(labels)
    assert build_labels(make(train=["a, x", "a", "b"])).names == ("a", "a, x", "b")


@pytest.mark.parametrize("value", ["1,5", "1,500", "1.500,25"])
def test_numbers_with_commas_are_told_how_to_be_written(value):
    with pytest.raises(UserError, match=f"Write numbers such as '{value}' with a point"):
        build_labels(make(train=[value, value]), "regression")


@pytest.mark.parametrize("values", [[1.0, 0.0, 1.0], [2.0, 5.0, 2.0], [0.0, -1.0, 0.0]])
def test_whole_decimals_are_classes_where_one_class_a_row_is_asked_for(tmp_path, values):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"x{index},{value}\n" for index, value in enumerate(values)))
    args = DataArguments(task="text-classification", train_file=str(path), problem_type="single_label_classification")
    assert load_rows(args)[1].names == tuple(map(str, sorted(map(int, set(values)))))
