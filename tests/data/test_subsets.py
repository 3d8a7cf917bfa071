import logging
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from hftl.data.subsets import nested_order, nested_order_per_class, split_validation, take_subsets
from hftl.errors import UserError


def draw_labels(seed):
    """Labels with a random number of classes of very different sizes, shuffled."""
    rng = np.random.default_rng(seed)
    counts = np.maximum(1, (rng.pareto(rng.uniform(0.5, 3), rng.integers(2, 40)) * 10).astype(int)).clip(max=400)
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


SEEDS = range(30)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_order_is_a_permutation_that_depends_on_the_seed_alone(seed):
    labels = draw_labels(seed)
    order = nested_order(labels, seed)
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    assert np.array_equal(order, nested_order(labels.tolist(), seed))
    assert all(np.array_equal(order[:size], nested_order(labels, seed, size)) for size in (1, len(labels) // 2))
    assert len(labels) < 20 or not np.array_equal(order, nested_order(labels, seed + 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_an_order_starts_with_each_class_once(seed):
    labels = draw_labels(seed)
    num_classes = labels.max() + 1
    assert len(set(labels[nested_order(labels, seed)[:num_classes]])) == num_classes


@pytest.mark.parametrize("seed", SEEDS)
def test_every_prefix_has_its_share_of_each_class_to_within_one_row(seed):
    labels = draw_labels(seed)
    num_classes, total = labels.max() + 1, len(labels)
    counts = np.cumsum(np.eye(num_classes)[labels[nested_order(labels, seed)]], axis=0)  # [N, C]
    share = np.arange(1, total + 1)[:, None] * counts[-1] / total
    # No class is ever ahead, but for the one row that each class has from the start.
    assert np.all((counts - share < 1 + 1e-9) | (counts == 1))
    # None is behind once the first rows of all classes fit into their shares.
    fits = np.maximum(share, 1).sum(axis=1) <= np.arange(1, total + 1) + 1e-9
    assert np.all(share[fits] - counts[fits] < 1 + 1e-9)


def test_balanced_classes_differ_by_one_row_in_every_prefix():
    labels = np.arange(700) % 7
    counts = np.cumsum(np.eye(7)[labels[nested_order(labels, 3)]], axis=0)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() == 1


def test_the_order_is_the_same_on_every_machine_and_library_version():
    assert nested_order([0, 0, 0, 1, 1, 2, 0, 0], 42).tolist() == [3, 1, 5, 7, 6, 0, 4, 2]
    assert nested_order([0.5, 1.5, 2.5, 3.5], 42).tolist() == [1, 3, 0, 2]


def test_each_row_of_a_class_is_as_likely_to_come_first():
    labels = np.array([0] * 5 + [1] * 5)
    firsts = np.array([nested_order(labels, seed)[:2] for seed in range(2000)])
    counts = np.bincount(firsts.ravel(), minlength=10)
    assert counts.sum() == 4000
    assert np.all(np.abs(counts - 400) < 90)  # 5 standard deviations of a binomial(2000, 1/5)
    assert abs((labels[firsts[:, 0]] == 0).sum() - 1000) < 112


@pytest.mark.parametrize("labels", [np.eye(4)[np.arange(40) % 4], np.linspace(0, 1, 40)])
def test_multi_label_and_value_rows_are_permuted(labels):
    order = nested_order(labels, 1)
    assert np.array_equal(np.sort(order), np.arange(40))
    assert not np.array_equal(order, nested_order(labels, 2))


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_per_class_are_nested_and_exact(seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(5), [8, 9, 20, 100, 8]))
    few, more = (nested_order_per_class(labels, k, seed) for k in (4, 8))
    assert np.bincount(labels[few]).tolist() == [4] * 5
    assert np.bincount(labels[more]).tolist() == [8] * 5
    assert len(set(more)) == 40
    assert np.array_equal(few, more[:20])


def test_classes_with_too_few_rows_are_named():
    with pytest.raises(UserError, match="is 3, but class 1 has 2, 2 has 1 in train"):
        nested_order_per_class([0, 0, 0, 1, 1, 2], 3, 0)
    with pytest.raises(UserError, match="class cat has 1 in train"):
        nested_order_per_class([0, 0, 1], 2, 0, ["dog", "cat"])
    with pytest.raises(UserError, match="needs one class a row; use --num_train_examples"):
        nested_order_per_class([0.5, 1.5], 1, 0)


def dataset(labels):
    return datasets.Dataset.from_dict({"row_id": list(range(len(labels))), "label": [*labels]})


@pytest.mark.parametrize("seed", SEEDS)
def test_a_held_out_split_is_stratified_and_leaves_every_class_in_train(seed):
    labels = draw_labels(seed)
    num_classes, total = labels.max() + 1, len(labels)
    train, validation = split_validation(dataset(labels), 0.2, seed)
    assert sorted(train["row_id"][:] + validation["row_id"][:]) == list(range(total))
    assert set(train["label"][:]) == set(labels)
    assert len(validation) == min(round(0.2 * total), total - num_classes)
    if len(train) >= 4 * num_classes:
        share = len(validation) * np.bincount(labels) / total
        assert np.all(np.abs(np.bincount(validation["label"][:], minlength=num_classes) - share) < 2)


def test_a_held_out_split_is_never_empty():
    assert [len(rows) for rows in split_validation(dataset([0, 0, 1]), 0.01)] == [2, 1]
    assert [len(rows) for rows in split_validation(dataset([0.1, 0.2]), 0.99)] == [1, 1]
    with pytest.raises(UserError, match="Train has 2 rows for 2 classes, too few to hold out.*--validation_file"):
        split_validation(dataset([0, 1]), 0.5)


def take(splits, seed=0, names=(), **given):
    sizes = "num_train_examples num_train_examples_per_class num_validation_examples num_test_examples validation_seed"
    args = SimpleNamespace(**{"validation_fraction": 0.2, **dict.fromkeys(sizes.split()), **given})
    return take_subsets(datasets.DatasetDict(splits), args, seed, names)


def ids(rows):
    return set(rows["row_id"][:])


def full(num_rows=200):
    labels = np.arange(num_rows) % 4
    return {"train": dataset(labels), "validation": dataset(labels), "test": dataset(labels)}


def test_without_sizes_rows_are_as_they_were():
    splits = full()
    taken = take(splits, seed=5)
    assert {split: rows.to_list() for split, rows in taken.items()} == {
        split: rows.to_list() for split, rows in splits.items()
    }


def test_smaller_train_subsets_are_inside_larger_ones():
    for seed in range(5):
        chain = [ids(take(full(), seed, num_train_examples=n)["train"]) for n in (10, 20, 40, 80, 160)]
        assert [len(rows) for rows in chain] == [10, 20, 40, 80, 160]
        assert all(small < large for small, large in zip(chain, chain[1:], strict=False))
        few, more = (ids(take(full(), seed, num_train_examples_per_class=k)["train"]) for k in (5, 10))
        assert few < more


def test_only_the_train_subset_depends_on_the_seed():
    for splits in (full(), {"train": full()["train"], "test": full()["test"]}):
        sizes = {"num_train_examples": 40, "num_validation_examples": 20, "num_test_examples": 30}
        one, two = (take(splits, seed, **sizes) for seed in (1, 2))
        assert ids(one["train"]) != ids(two["train"])
        assert ids(one["validation"]) == ids(two["validation"])
        assert ids(one["test"]) == ids(two["test"])
        assert [len(one[split]) for split in ("train", "validation", "test")] == [40, 20, 30]


def test_with_its_own_seed_the_validation_subset_is_drawn_too_and_nested():
    splits = full()
    one, two = (ids(take(splits, validation_seed=s, num_validation_examples=20)["validation"]) for s in (1, 2))
    assert one != two
    assert ids(take(splits, validation_seed=1, num_validation_examples=10)["validation"]) < one


def test_validation_is_held_out_before_train_is_cut_and_never_from_test(caplog):
    caplog.set_level(logging.INFO)
    splits = {"train": full()["train"], "test": full()["test"]}
    taken = take(splits, num_train_examples=40)
    assert len(taken["validation"]) == 40
    assert not ids(taken["validation"]) & ids(taken["train"])
    assert taken["test"].to_list() == splits["test"].to_list()
    assert "Held out 40 of the train rows" in caplog.text
    assert set(splits) == {"train", "test"}


def test_subsets_of_encoded_multi_label_rows_are_taken():
    splits = {split: dataset(np.eye(4)[np.arange(40) % 4].tolist()) for split in ("train", "test")}
    taken = take(splits, num_train_examples=3, num_test_examples=5)
    assert [len(taken[split]) for split in ("train", "validation", "test")] == [3, 8, 5]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"num_train_examples": 9, "num_train_examples_per_class": 2}, "not both"),
        ({"num_train_examples": 201}, "--num_train_examples is 201, but train has 200 rows"),
        ({"num_train_examples": 3}, "--num_train_examples is 3, but there are 4 classes"),
        ({"num_train_examples_per_class": 51}, "is 51, but class a has 50, b has 50, c has 50, d has 50 in train"),
        ({"num_validation_examples": 201}, "--num_validation_examples is 201, but validation has 200 rows"),
        ({"num_test_examples": 201}, "--num_test_examples is 201, but test has 200 rows"),
    ],
)
def test_sizes_that_the_data_do_not_have_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        take(full(), names="abcd", **given)


def test_validation_is_held_out_in_whole_groups_and_train_keeps_every_class():
    labels, groups = [i % 3 for i in range(60)], [f"g{i // 5}" for i in range(60)]
    rows = datasets.Dataset.from_dict({"label": labels, "group": groups})
    train, validation = split_validation(rows, 0.2)
    assert not set(train["group"][:]) & set(validation["group"][:])
    assert len(train) + len(validation) == 60 and 5 <= len(validation) <= 12
    assert set(train["label"][:]) == {0, 1, 2}
    assert split_validation(rows, 0.2, seed=1)[1]["group"][:] != validation["group"][:]


def test_a_group_that_is_larger_than_the_share_is_held_out_rather_than_none():
    rows = datasets.Dataset.from_dict({"label": [0, 1] * 10, "group": ["a"] * 10 + ["b"] * 10})
    train, validation = split_validation(rows, 0.2)
    assert (len(train), len(validation)) == (10, 10)


def test_groups_that_cannot_be_parted_are_refused():
    rows = datasets.Dataset.from_dict({"label": [0, 1] * 10, "group": ["a"] * 20})
    with pytest.raises(UserError, match="No group of --group_column can be held out.*--validation_file"):
        split_validation(rows, 0.2)
