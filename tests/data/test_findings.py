"""What is suspicious about rows taken together, and what is done about it."""

import datasets
import pytest

from hftl.data.audit import audit
from hftl.data.findings import KINDS, find_small_test, parse_policies
from hftl.data.labels import LabelInfo
from hftl.errors import UserError

INFO = LabelInfo("single_label_classification", ("a", "b"))
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def rows(texts, labels=None, start=0, **more):
    columns = {"row_id": range(start, start + len(texts)), "text": texts, **more}
    return datasets.Dataset.from_dict({**columns, "label": labels or [i % 2 for i in range(len(texts))]})


def filler(count, seed):
    """Texts that have no word in common."""
    return [" ".join(f"w{seed}x{index}y{place}" for place in range(6)) for index in range(count)]


def run(train, test=None, info=INFO, **policies):
    splits = datasets.DatasetDict(train=train) if test is None else datasets.DatasetDict(train=train, test=test)
    kept, report = audit(splits, info, "text", policies=parse_policies(f"{k}={v}" for k, v in policies.items()))
    return kept, {finding.kind: finding for finding in report.findings}, report


def test_duplicates_across_splits_name_both_rows_and_are_dropped_from_train_alone():
    train, test = rows([*filler(4, 0), "A  copy"]), rows(["a copy", *filler(3, 1)], start=50)
    found = run(train, test)[1]["duplicates_across_splits"]
    assert (found.counts, found.examples, found.policy) == ({"test": 1}, ["test 50 ~ train 4"], "warn")
    kept, findings, report = run(train, test, duplicates_across_splits="drop")
    assert kept["train"]["row_id"][:] == [0, 1, 2, 3] and len(kept["test"]) == 4
    assert findings["duplicates_across_splits"].num_dropped == 1
    assert report.num_duplicates == {"test": 0} and report.num_rows == {"train": 4, "test": 4}


def test_near_duplicates_are_another_finding_than_equal_rows():
    train = rows([LONG, "equal text", *filler(4, 0)])
    test = rows([LONG.replace("nine", "neun") + "!", "equal text", *filler(2, 1)])
    found = run(train, test)[1]
    assert found["duplicates_across_splits"].examples == ["test 1 ~ train 1"]
    assert found["near_duplicates_across_splits"].examples == ["test 0 ~ train 0"]
    kept, *_ = run(train, test, near_duplicates_across_splits="drop")
    assert kept["train"]["row_id"][:] == [1, 2, 3, 4, 5]


def test_repeats_within_a_split_keep_the_first_of_train():
    train = rows(["x y z", *filler(3, 0), "x y z", "X Y z", LONG, LONG + "!"], labels=[0, 1, 1, 1, 0, 0, 0, 0])
    found = run(train)[1]
    assert found["duplicates_within_splits"].counts == {"train": 2}
    assert found["near_duplicates_within_splits"].examples == ["train 7 ~ train 6"]
    kept, *_ = run(train, duplicates_within_splits="drop", near_duplicates_within_splits="drop")
    assert kept["train"]["row_id"][:] == [0, 1, 2, 3, 6]


def test_one_input_with_two_labels_is_a_conflict_and_with_one_label_is_not():
    train = rows(["same", "same", "twice", "twice", *filler(2, 0)], labels=[0, 1, 1, 1, 0, 1])
    found = run(train)[1]["label_conflicts"]
    assert (found.counts, found.examples) == ({"train": 2}, ["train 0 and train 1"])
    assert run(train, label_conflicts="drop")[0]["train"]["row_id"][:] == [2, 3, 4, 5]


def test_values_of_a_regression_cannot_contradict_each_other():
    train = rows(["same", "same", "other"], labels=[0.1, 0.2, 0.3])
    assert "label_conflicts" not in run(train, info=LabelInfo("regression", ("value",)))[1]


def test_several_labels_a_row_are_compared_as_a_whole():
    info = LabelInfo("multi_label_classification", ("a", "b"))
    found = run(rows(["same", "same", "x", "x"], labels=[[1, 0], [1, 1], [0, 1], [0, 1]]), info=info)[1]
    assert found["label_conflicts"].counts == {"train": 2}


def test_groups_in_two_splits_are_a_leak():
    train = rows(filler(4, 0), labels=[0, 0, 1, 1], group=["ann", "bob", "ann", "eve"])
    test = rows(filler(2, 1), group=["ann", "zoe"])
    found = run(train, test)[1]["group_leakage"]
    assert (found.counts, found.examples) == ({"test": 1}, ["test 0 ~ train 0"])
    assert run(train, test, group_leakage="drop")[0]["train"]["group"][:] == ["bob", "eve"]


def test_classes_that_are_missing_tiny_or_dwarfed_are_named():
    info = LabelInfo("single_label_classification", ("a", "b", "c"))
    train, test = rows(filler(210, 0), labels=[0] * 201 + [1] * 9), rows(filler(5, 1), labels=[0] * 5)
    found = run(train, test, info=info)[1]
    assert found["missing_classes"].examples == ["train: c", "test: b, c"]
    assert found["tiny_classes"].examples == ["b: 9"]
    assert found["class_imbalance"].figures == {"ratio": pytest.approx(201 / 9)}
    balanced = run(rows(filler(60, 0)), rows(filler(4, 1)))[1]
    assert not {"missing_classes", "tiny_classes", "class_imbalance"} & set(balanced)


def test_an_error_policy_refuses_and_says_what_to_do():
    train = rows(["same", "same", *filler(2, 0)], labels=[0, 1, 0, 1])
    with pytest.raises(
        UserError, match=r"refused by --audit. label_conflicts: 2 of 4 rows of train, e.g. train 0 and"
    ):
        run(train, label_conflicts="error")


def test_a_note_is_recorded_and_not_said(caplog):
    train = rows(["same", "same", *filler(2, 0)], labels=[0, 1, 0, 1])
    assert run(train, label_conflicts="note")[1]["label_conflicts"].policy == "note"
    assert "label_conflicts" not in caplog.text
    run(train)
    assert "label_conflicts" in caplog.text


def test_dropping_a_whole_class_is_refused():
    train, test = rows(["only b", *filler(2, 0)], labels=[1, 0, 0]), rows(["only b", *filler(2, 1)])
    with pytest.raises(UserError, match="With what --audit drops, train has nothing of class b; give another policy"):
        run(train, test, duplicates_across_splits="drop")


def test_no_default_changes_data():
    assert {kind.policy for name, kind in KINDS.items() if name != "bad_rows"} == {"warn", "note"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label_conflict=drop"], r"Unknown finding in --audit: 'label_conflict'. Did you mean 'label_conflicts'"),
        (["label_conflicts=delete"], r"Unknown policy of label_conflicts in --audit: 'delete'.*Valid: drop, error"),
        (["label_conflicts"], r"--audit has 'label_conflicts'; give FINDING=POLICY"),
        (["tiny_classes=drop"], r"no row is to blame for tiny_classes; give error, warn or note"),
        (["bad_rows=drop"], r"Unknown finding in --audit: 'bad_rows'.*--on_bad_rows"),
    ],
)
def test_a_mistyped_policy_is_answered(words, message):
    with pytest.raises(UserError, match=message):
        parse_policies(words)


def test_policies_are_several_words_or_one_with_commas():
    one, two = (
        parse_policies(["label_conflicts=error,group_leakage=note"]),
        parse_policies(["label_conflicts=error", "group_leakage=note"]),
    )
    assert one == two and (one["label_conflicts"], one["group_leakage"]) == ("error", "note")


@pytest.mark.parametrize(
    ("rows_", "difference", "is_small"), [(10, None, True), (500, 0.04, True), (9000, 0.009, False)]
)
def test_a_test_set_that_shows_large_differences_only_is_small(rows_, difference, is_small):
    assert (find_small_test(rows_, difference) is not None) is is_small
