"""One label in several spellings: what is joined, what is reported, and what is left alone."""

import unicodedata

import datasets
import pytest
from datasets import ClassLabel, Features, List, Value

from hftl.data.audit import audit
from hftl.data.findings import parse_policies
from hftl.data.label_spelling import clean_label, find_alike
from hftl.data.labels import LabelInfo, build_labels, encode_labels, keep_labels
from hftl.errors import UserError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
NFD = unicodedata.normalize("NFD", "bête")


def make(feature=None, **labels):
    splits = {}
    for split, values in labels.items():
        texts = [f"{split} text number {index}" for index in range(len(values))]
        table = datasets.Dataset.from_dict({"row_id": range(len(values)), "text": texts, "label": values})
        features = Features({"row_id": Value("int64"), "text": Value("string"), "label": feature or Value("string")})
        splits[split] = table.cast(features)
    return datasets.DatasetDict(splits)


SAME = [("cat", "cat "), ("cat", "\u00a0cat"), ("bête", NFD), ("big cat", "big  cat"), ("cat", "cat\u200b\t")]


@pytest.mark.parametrize("name, other", SAME)
def test_spellings_that_look_the_same_are_one_class_in_every_split(name, other):
    splits = make(train=[name, other, "dog"], test=[other, "dog "])
    info = build_labels(splits)
    assert info.names == (*sorted([name, "dog"]),)
    assert info.spellings[name] == sorted([name, other]) and info.spellings["dog"] == ["dog", "dog "]
    rows = encode_labels(splits, info)
    here = info.label2id[name]
    assert rows["train"]["label"][:] == [here, here, 1 - here] and rows["test"]["label"][:] == [here, 1 - here]


@pytest.mark.parametrize("name, other", SAME)
def test_a_spelling_that_train_never_had_is_known_to_the_model(name, other):
    for stored in (name, other):  # a checkpoint of somebody else may hold either
        info = LabelInfo(SINGLE, (stored, "dog"))
        assert encode_labels(make(test=[name, other, "dog"]), info)["test"]["label"][:] == [0, 0, 1]


def test_lists_and_declared_classes_are_joined_as_well():
    splits = make(List(Value("string")), train=[["cat", "dog "], ["cat "], []])
    assert build_labels(splits).names == ("cat", "dog")
    assert encode_labels(splits, build_labels(splits))["train"]["label"][:] == [[1, 1], [1, 0], [0, 0]]
    splits = make(ClassLabel(names=["dog", NFD, "bête"]), train=[0, 1, 2])
    info = build_labels(splits)
    assert info.names == ("dog", "bête") and info.spellings == {"bête": sorted([NFD, "bête"])}
    assert encode_labels(splits, info)["train"]["label"][:] == [0, 1, 1]


def test_the_classes_to_keep_are_named_in_any_spelling():
    kept = keep_labels(make(train=["cat ", "cat", "dog", "cow"]), [" cat", "dog"])
    assert build_labels(kept).names == ("cat", "dog") and build_labels(kept).spellings == {"cat": ["cat", "cat "]}


@pytest.mark.parametrize("empty", ["", "  ", "\u00a0", "\ufeff"])
def test_a_label_of_blanks_is_missing(empty):
    with pytest.raises(UserError, match=r"train has missing labels \(row_id 1\)"):
        build_labels(make(train=["cat", empty, "dog"]))


def find(splits, **policies):
    info = build_labels(splits)
    report = audit(
        encode_labels(splits, info), info, "text", policies=parse_policies(f"{k}={v}" for k, v in policies.items())
    )[1]
    return {finding.kind: finding for finding in report.findings}


@pytest.mark.parametrize("name, other", SAME)
def test_what_is_joined_is_a_finding(name, other):
    found = find(make(train=[name, other, "dog"]))["joined_labels"]
    assert found.policy == "warn" and found.figures == {"spellings": {name: sorted([name, other])}}
    assert ascii(other) in found.examples[0]
    with pytest.raises(UserError, match="joined_labels"):
        find(make(train=[name, other, "dog"]), joined_labels="error")


@pytest.mark.parametrize(
    "name, other",
    [("cat", "Cat"), ("not spam", "not_spam"), ("ｃａｔ", "cat"), ("e-mail", "e mail"), ("１", "1"), ("ÉTÉ", "été")],
)
def test_what_looks_alike_is_a_finding_and_stays_two_classes(name, other):
    splits = make(train=[name, other, "dog"])
    found = find(splits)["similar_labels"]
    assert found.policy == "warn" and found.figures == {"labels": [sorted([name, other])]}
    assert build_labels(splits).num_labels == 3


@pytest.mark.parametrize(
    "names",
    [("a", "A"), ("-1", "1"), ("1-2", "12"), ("C", "C++", "C#"), ("cat", "cats"), ("Maße", "Masse"), ("0", "00")],
)
def test_labels_that_are_different_are_no_finding(names):
    assert find_alike(names) == [] and [clean_label(name) for name in names] == list(names)
    assert not {"joined_labels", "similar_labels"} & set(find(make(train=list(names))))


def test_an_unknown_label_names_the_one_that_looks_like_it():
    with pytest.raises(UserError, match=r"The label 'Cat' is in test but never in train \(row_id 0\). There is 'cat'"):
        build_labels(make(train=["cat", "dog"], test=["Cat"]))
