"""What do the labels mean? The problem type, the names of the classes, and labels as numbers for the loss.

Works on splits with the columns `row_id` and `label`, before any subset is taken. It must not know the inputs, the
model or the loss.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import datasets

from hftl.errors import UserError, unknown_name

IGNORED = -100  # a label that counts nowhere, as in torch.nn.functional.cross_entropy
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class LabelInfo:
    """The problem type and the name of each output of the model, in order; the only name in regression is `value`."""

    problem_type: str
    names: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


def keep_labels(splits: datasets.DatasetDict, names: list[str]) -> datasets.DatasetDict:
    """The rows whose class is one of `names`; their labels become these texts.

    Raises:
        UserError: train has no row of a name, a split has none of any, or rows do not have one class each.
    """
    if _kind(next(iter(splits.values())).features["label"]) not in ("class", "string", "bool", "integer"):
        raise UserError("--only_labels needs one class a row.")
    kept = {}
    for split, rows in splits.items():
        labels = [name for (name,) in _read_names(rows, split, SINGLE, ",", None)]
        if split == "train" and (unknown := sorted(set(names) - set(labels))):
            raise unknown_name("class in --only_labels:", unknown[0], set(labels))
        indices = [index for index, name in enumerate(labels) if name in names]
        if not indices:
            raise UserError(f"The {split} split has no row of the classes in --only_labels.")
        rows = rows.select(indices).remove_columns("label")
        kept[split] = rows.add_column("label", [labels[index] for index in indices])
    return datasets.DatasetDict(kept)


def build_labels(splits: datasets.DatasetDict, problem_type: str | None = None, delimiter: str = ",") -> LabelInfo:
    """Decides the problem type and the class names from full splits.

    A ClassLabel keeps its order, strings are sorted, integers are sorted by value. Several labels a row are lists, or
    (with `multi_label_classification`) strings with a delimiter; lists of 0s and 1s of one length are multi-hot.

    Raises:
        UserError: labels that do not fit the problem type, are missing or out of range; one class only in train; a
            label that train never has. Up to five row ids are named.
    """
    _check_labelled(splits)
    feature = splits["train"].features["label"]
    problem_type = _decide_type(feature, problem_type)
    if problem_type == REGRESSION:
        for split, rows in splits.items():
            _read_values(rows, split)
        return LabelInfo(REGRESSION, ("value",))
    width = _multi_hot_width(splits["train"]["label"][:], feature)
    labels = {split: _read_names(rows, split, problem_type, delimiter, width) for split, rows in splits.items()}
    seen = {name for row in labels["train"] for name in row}
    if len(seen) < 2:
        raise UserError(f"Train has one class only ({', '.join(seen) or 'none'}); at least two are needed.")
    for split, rows in labels.items():
        _check_known(rows, splits[split], f"in {split} but never in train", seen)
    return LabelInfo(problem_type, tuple(_order_names(feature, seen, width)))


def encode_labels(splits: datasets.DatasetDict, info: LabelInfo, delimiter: str = ",") -> datasets.DatasetDict:
    """Replaces `label`: class index (int64), multi-hot list (float32, [num_labels]) or value (float32).

    Raises:
        UserError: a missing label, or one that `info` does not have.
    """
    return datasets.DatasetDict({split: _encode(rows, split, info, delimiter) for split, rows in splits.items()})


def _encode(rows: datasets.Dataset, split: str, info: LabelInfo, delimiter: str) -> datasets.Dataset:
    if info.problem_type == REGRESSION:
        values, feature = _read_values(rows, split), datasets.Value("float32")
    else:
        width = _multi_hot_width(rows["label"][:], rows.features["label"])
        width = width if width == info.num_labels else None
        names = _read_names(rows, split, info.problem_type, delimiter, width)
        _check_known(names, rows, f"in {split} but not among the labels of the model", set(info.names))
        index = info.label2id
        if info.problem_type == SINGLE:
            values, feature = [index[name] for (name,) in names], datasets.Value("int64")
        else:
            values = [[float(name in row) for name in info.names] for row in map(set, names)]
            feature = datasets.List(datasets.Value("float32"), length=info.num_labels)
    return rows.remove_columns("label").add_column("label", values, feature=feature)


def _kind(feature: object) -> str:
    """One of class, list, string, bool, integer, decimal; any other type by its own name."""
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return "list"
    dtype = feature.dtype if isinstance(feature, datasets.Value) else str(feature)
    for part, kind in (("string", "string"), ("bool", "bool"), ("int", "integer"), ("float", "decimal")):
        if part in dtype and isinstance(feature, datasets.Value):
            return kind
    return dtype


def _decide_type(feature: object, given: str | None) -> str:
    kind = _kind(feature)
    fitting = {
        SINGLE: ("class", "string", "bool", "integer"),
        MULTI: ("list", "string"),
        REGRESSION: ("integer", "decimal", "string"),
    }
    problem_type = given or (MULTI if kind == "list" else SINGLE)
    if kind in fitting[problem_type]:
        return problem_type
    hint = {
        "decimal": f"type `--problem_type {REGRESSION}`, or turn them into strings or integers",
        "list": f"type `--problem_type {MULTI}`",
    }.get(kind, f"expected {', '.join(fitting[problem_type])}; choose another column with --label_column")
    raise UserError(f"The labels are of type {kind}, which does not fit {problem_type}: {hint}.")


def _check_labelled(splits: datasets.DatasetDict) -> None:
    """Hub test sets often hide their labels behind -1 or None; a -1 that train knows is a label."""
    labels = {split: rows["label"][:] for split, rows in splits.items()}
    for split, values in labels.items():
        hidden = (None,) if -1 in labels["train"] and split != "train" else (None, -1)
        if all(value in hidden for value in values):
            raise UserError(f"The {split} split has no labels (all {values[0]}): give another with --{split}_file.")


def _multi_hot_width(values: list, feature: object) -> int | None:
    """The common length of lists that hold nothing but 0 and 1, which a set of class ids would hold once each."""
    if _kind(feature) != "list" or _kind(feature.feature) not in ("bool", "integer", "decimal"):
        return None
    widths = {len(row) for row in values if row is not None}
    is_binary = all(value in (0, 1) for row in values if row is not None for value in row)
    return widths.pop() if len(widths) == 1 and max(widths) >= 2 and is_binary else None


def _read_names(
    rows: datasets.Dataset, split: str, problem_type: str, delimiter: str, width: int | None
) -> list[list[str]]:
    """The names of the labels of each row."""
    values, feature = rows["label"][:], rows.features["label"]
    if problem_type == MULTI and _kind(feature) == "string":  # an empty cell is a row without labels
        return [[name.strip() for name in (value or "").split(delimiter) if name.strip()] for value in values]
    _check_rows(
        rows, [value is None for value in values], f"{split} has missing labels", "Fill in or remove these rows"
    )
    if width is not None:
        return [[str(index) for index, value in enumerate(row) if value] for row in values]
    if _kind(feature) == "list":
        return _name_items(values, feature.feature, rows, split)
    return _name_items([[value] for value in values], feature, rows, split)


def _name_items(lists: list[list], feature: object, rows: datasets.Dataset, split: str) -> list[list[str]]:
    kind = _kind(feature)
    if kind == "class":
        valid = range(feature.num_classes)
        is_bad = [any(value not in valid for value in row) for row in lists]
        _check_rows(rows, is_bad, f"{split} has labels outside 0-{valid[-1]}", "Fix or remove these rows")
        return [[feature.names[value] for value in row] for row in lists]
    if kind not in ("string", "integer", "bool"):
        raise UserError(f"The labels are lists of {kind}; expected lists of strings or integers, or of 0 and 1.")
    is_bad = [any(value is None for value in row) for row in lists]
    _check_rows(rows, is_bad, f"{split} has missing labels", "Fill in or remove these rows")
    return [[str(value).lower() if kind == "bool" else str(value) for value in row] for row in lists]


def _read_values(rows: datasets.Dataset, split: str) -> list[float]:
    values = [_parse_value(value) for value in rows["label"][:]]
    is_bad = [not math.isfinite(value) for value in values]
    _check_rows(rows, is_bad, f"{split} has labels that are not finite numbers", "Fix or remove these rows")
    return values


def _parse_value(value: float | str | None) -> float:
    try:
        return math.nan if value is None else float(value)
    except ValueError:
        return math.nan


def _check_known(names: list[list[str]], rows: datasets.Dataset, where: str, known: set[str]) -> None:
    unknown = defaultdict(list)
    for index, row in enumerate(names):
        for name in set(row) - known:
            unknown[name].append(index)
    if unknown:
        name = min(unknown)
        others = f" So are {len(unknown) - 1} more labels." if len(unknown) > 1 else ""
        rows_found = _row_ids(rows, unknown[name])
        raise UserError(f"The label {name!r} is {where} ({rows_found}).{others} Correct it, or remove these rows.")


def _check_rows(rows: datasets.Dataset, is_bad: list[bool], found: str, advice: str) -> None:
    if any(is_bad):
        raise UserError(f"{found} ({_row_ids(rows, [i for i, bad in enumerate(is_bad) if bad])}). {advice}.")


def _row_ids(rows: datasets.Dataset, indices: list[int]) -> str:
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return "row_id " + ", ".join(map(str, rows.select(indices[:5])["row_id"][:])) + more


def _order_names(feature: object, seen: set[str], width: int | None) -> list[str]:
    item = feature.feature if _kind(feature) == "list" else feature
    if width is not None:
        return [str(index) for index in range(width)]
    if _kind(item) == "class":
        return list(item.names)
    return sorted(seen, key=int) if _kind(item) == "integer" else sorted(seen)
