"""Which rows are used? Nested, class-stratified orders, a held-out validation split, and subsets of splits.

Orders are a pure function of labels and seed: they come from the raw 64-bit stream of PCG64, which numpy keeps the
same in every version, unlike `Generator.permutation` (NEP 19). This module must not read the inputs.

Train subsets follow the training seed. The held-out validation split and validation and test subsets follow a fixed
seed, so that runs with different seeds are scored on the same rows; a comparison, where validation labels are part of
what was labelled, draws the validation subset anew for each seed.
"""

import heapq
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import datasets
import numpy as np

from hftl.errors import UserError

if TYPE_CHECKING:
    from hftl.config import DataArguments

logger = logging.getLogger(__name__)

EVALUATION_SEED = 0


def nested_order(labels: Sequence | np.ndarray, seed: int, size: int | None = None) -> np.ndarray:
    """Orders rows so that every prefix is class-stratified; a shorter prefix is inside any longer one.

    One row of each class comes first, classes in random order. Then each class has its share of every prefix, to
    within one row, as soon as the rows that came first allow. Several labels a row (2-D) and decimal values are not
    stratified: their order is a plain permutation.

    Args:
        labels: class of each row [N], or multi-hot labels [N, C], or values [N].
        size: of the prefix that is needed; the rest is left out.

    Returns:
        Permutation of 0..N-1, int64 [N], or the start of it, [size].
    """
    labels = np.asarray(labels)
    if not _is_stratifiable(labels):
        return _shuffle(np.arange(len(labels)), seed)[:size]
    classes = _shuffled_classes(labels, seed)
    taken = [0] * len(classes)
    order = []
    for index in itertools.islice(_class_sequence([len(rows) for rows in classes]), size):
        order.append(classes[index][taken[index]])
        taken[index] += 1
    return np.array(order, dtype=np.int64)


def nested_order_per_class(
    labels: Sequence | np.ndarray, per_class: int, seed: int, names: Sequence[str] = ()
) -> np.ndarray:
    """Takes `per_class` rows of every class; fewer of them are a prefix of more.

    Args:
        labels: class of each row [N].
        names: class names for the message, by class index.

    Returns:
        Row indices, int64 [per_class * C].

    Raises:
        UserError: a class has fewer rows, or rows do not have one class each.
    """
    labels = np.asarray(labels)
    if not _is_stratifiable(labels):
        raise UserError("--num_train_examples_per_class needs one class a row; use --num_train_examples.")
    classes = _shuffled_classes(labels, seed)
    if small := [rows for rows in classes if len(rows) < per_class]:
        found = sorted(f"{names[labels[rows[0]]] if names else labels[rows[0]]} has {len(rows)}" for rows in small)
        raise UserError(f"--num_train_examples_per_class is {per_class}, but class {', '.join(found)} in train.")
    return np.stack([rows[:per_class] for rows in classes], axis=1).ravel()  # [k, C] -> [k * C]


def split_validation(
    dataset: datasets.Dataset, fraction: float, seed: int = EVALUATION_SEED
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Holds out about `fraction` of the rows, class-stratified; every class keeps a row in train.

    Rows with a `group` are held out in whole groups, which are not stratified.

    Returns:
        Train and validation, disjoint, both in the order of `dataset`, neither empty.

    Raises:
        UserError: there is no row to spare.
    """
    labels = _labels(dataset)
    num_classes = len(np.unique(labels)) if _is_stratifiable(labels) else 1
    num_validation = min(max(1, round(fraction * len(labels))), len(labels) - num_classes)
    if num_validation < 1:
        raise UserError(
            f"Train has {len(labels)} rows for {num_classes} classes, too few to hold out a validation split; "
            "give one with --validation_file, or more rows."
        )
    if "group" in dataset.column_names:
        validation = _choose_groups(np.asarray(dataset["group"][:]), labels, num_validation, seed)
        return dataset.select(np.setdiff1d(np.arange(len(labels)), validation)), dataset.select(validation)
    # What a stratified prefix leaves is stratified as well, and the prefix begins with a row of each class.
    train, validation = np.split(nested_order(labels, seed), [len(labels) - num_validation])
    return dataset.select(np.sort(train)), dataset.select(np.sort(validation))


def _choose_groups(groups: np.ndarray, labels: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Rows of whole groups, about `num_rows`, in random order of the groups; train keeps a row of every class.

    Args:
        groups: [N].
        labels: [N], or [N, C].
        num_rows: of validation.
        seed: draws the groups.

    Returns:
        Row indices, int64, sorted.

    Raises:
        UserError: no group can be taken out.
    """
    names, codes = np.unique(groups, return_inverse=True)
    classes = (
        np.unique(labels, return_inverse=True)[1] if _is_stratifiable(labels) else np.zeros(len(labels), np.int64)
    )
    left, taken = np.bincount(classes), []
    for group in _shuffle(np.arange(len(names)), seed):
        rows = np.flatnonzero(codes == group)
        without = left - np.bincount(classes[rows], minlength=len(left))
        if without.min() > 0 and sum(map(len, taken)) + len(rows) <= max(num_rows, len(rows) if not taken else 0):
            left = without
            taken.append(rows)
    if not taken:
        raise UserError(
            f"No group of --group_column can be held out for validation: each of the {len(names)} has the last rows "
            "of a class. Give a --validation_file."
        )
    return np.sort(np.concatenate(taken))


def take_subsets(
    splits: datasets.DatasetDict, args: "DataArguments", seed: int, names: Sequence[str] = ()
) -> datasets.DatasetDict:
    """Holds out validation from train if there is none, then takes the subsets that `args` asks for.

    Only the train subset depends on `seed`, and the validation subset on `args.validation_seed`, if given; for two
    sizes and one seed, the smaller is inside the larger.

    Args:
        splits: with encoded labels.
        names: class names for messages.

    Raises:
        UserError: more rows are asked for than there are, fewer than there are classes, or two sizes of train.
    """
    if args.num_train_examples is not None and args.num_train_examples_per_class is not None:
        raise UserError("Give --num_train_examples or --num_train_examples_per_class, not both.")
    splits = datasets.DatasetDict(splits)
    if "validation" not in splits:
        splits["train"], splits["validation"] = split_validation(splits["train"], args.validation_fraction)
        logger.info("Held out %d of the train rows for validation.", len(splits["validation"]))
    splits["train"] = _take_train(splits["train"], args, seed, names)
    validation_seed = EVALUATION_SEED if args.validation_seed is None else args.validation_seed
    for split, num_examples, draw in (
        ("validation", args.num_validation_examples, validation_seed),
        ("test", args.num_test_examples, EVALUATION_SEED),
    ):
        if num_examples is not None and split in splits:
            splits[split] = _take(splits[split], num_examples, draw, split)
    return splits


def _take_train(rows: datasets.Dataset, args: "DataArguments", seed: int, names: Sequence[str]) -> datasets.Dataset:
    labels = _labels(rows)
    if args.num_train_examples_per_class is not None:
        return rows.select(np.sort(nested_order_per_class(labels, args.num_train_examples_per_class, seed, names)))
    if args.num_train_examples is None:
        return rows
    num_classes = len(np.unique(labels)) if _is_stratifiable(labels) else 1
    if args.num_train_examples < num_classes:
        raise UserError(f"--num_train_examples is {args.num_train_examples}, but there are {num_classes} classes.")
    return _take(rows, args.num_train_examples, seed, "train")


def _take(rows: datasets.Dataset, num_examples: int, seed: int, split: str) -> datasets.Dataset:
    if num_examples > len(rows):
        raise UserError(f"--num_{split}_examples is {num_examples}, but {split} has {len(rows)} rows; ask for fewer.")
    return rows.select(np.sort(nested_order(_labels(rows), seed, num_examples)))


def _labels(rows: datasets.Dataset) -> np.ndarray:
    if "label" not in rows.column_names:
        return np.zeros(len(rows))  # nothing to stratify by
    return np.asarray(rows.with_format(None)["label"][:])


def _is_stratifiable(labels: np.ndarray) -> bool:
    return labels.ndim == 1 and labels.dtype.kind in "biuU"


def _shuffle(rows: np.ndarray, seed: int) -> np.ndarray:
    return rows[np.argsort(np.random.PCG64(seed).random_raw(len(rows)), kind="stable")]


def _shuffled_classes(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """The row indices of each class, shuffled, classes in random order."""
    names, codes = np.unique(labels, return_inverse=True)
    keys = np.random.PCG64(seed).random_raw(len(names) + len(labels))
    class_order, row_order = np.argsort(keys[: len(names)]), np.argsort(keys[len(names) :], kind="stable")
    by_class = np.split(row_order[np.argsort(codes[row_order], kind="stable")], np.cumsum(np.bincount(codes))[:-1])
    return [by_class[index] for index in class_order]


def _class_sequence(counts: list[int]) -> Iterator[int]:
    """The class of each position: all once, then so that every prefix has its share of each class.

    Row r of a class with c of N rows belongs at a position in [floor(r N / c), ceil((r + 1) N / c)); taking the
    earliest deadline among the rows whose window is open keeps every prefix within one row of its share (the windows
    of Pfair scheduling: Baruah et al. 1996, "Proportionate progress").
    """
    total = sum(counts)
    yield from range(len(counts))
    waiting = [(total // count, index, 1) for index, count in enumerate(counts) if count > 1]  # (opens, class, r)
    heapq.heapify(waiting)
    open_rows: list[tuple[int, int, int]] = []  # (deadline, class, r)
    for position in range(len(counts), total):
        while waiting and (waiting[0][0] <= position or not open_rows):
            _, index, row = heapq.heappop(waiting)
            heapq.heappush(open_rows, (-(-(row + 1) * total // counts[index]), index, row))
        _, index, row = heapq.heappop(open_rows)
        yield index
        if row + 1 < counts[index]:
            heapq.heappush(waiting, ((row + 1) * total // counts[index], index, row + 1))
