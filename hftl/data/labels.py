"""What do the labels mean? The problem type, the names of the classes, and labels as numbers for the loss.

Works on splits with the columns `row_id` and `label`, before any subset is taken. It must not know the inputs, the
model or the loss.
"""

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import datasets

from hftl.data.label_lists import parse_lists
from hftl.data.label_spelling import clean_label, find_joined, make_key
from hftl.errors import UserError, unknown_name

IGNORED = -100  # a label that counts nowhere, as in torch.nn.functional.cross_entropy
_WITH_COMMAS = re.compile(r"\s*[-+]?\d+(?:\.\d{3})*(?:,\d+)+(?:\.\d+)?\s*")  # 1,5 and 1,500 and 1.500,25
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class LabelInfo:
    """The problem type and the name of each output of the model, in order; the only name in regression is `value`.

    Attributes:
        spellings: name -> how it stands in the data, where that is in several ways which are read as one.
    """

    problem_type: str
    names: tuple[str, ...]
    spellings: Mapping[str, list[str]] = field(default_factory=dict, compare=False)

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
    kept, names = {}, [clean_label(name) for name in names]
    for split, rows in splits.items():
        labels = [name for (name,) in _read_names(rows, split, SINGLE, ",", None)]
        if split == "train" and (unknown := sorted(set(names) - set(labels))):
            raise unknown_name("class in --only_labels:", unknown[0], set(labels))
        indices = [index for index, name in enumerate(labels) if name in names]
        if not indices:
            raise UserError(f"The {split} split has no row of the classes in --only_labels.")
        kept[split] = rows.select(indices)
        if _kind(rows.features["label"]) != "string":
            kept[split] = kept[split].remove_columns("label").add_column("label", [labels[i] for i in indices])
    return datasets.DatasetDict(kept)


def read_label_texts(splits: datasets.DatasetDict, problem_type: str | None = None) -> datasets.DatasetDict:
    """Labels that are texts which stand for lists, such as "['a', 'b']" or "0 1 0", as lists.

    Raises:
        UserError: some texts are lists and others are not, or it cannot be told.
    """
    if _kind(next(iter(splits.values())).features["label"]) != "string":
        return splits
    texts = [text for rows in splits.values() for text in rows["label"][:]]
    lists = parse_lists(texts, problem_type, "the label column")
    if lists is None:
        return splits
    dtype = _choose_dtype({type(item) for row in lists for item in row or []})
    if dtype == "string":
        lists = [row and [str(item) for item in row] for row in lists]
    feature, read, start = datasets.List(datasets.Value(dtype)), {}, 0
    for split, rows in splits.items():
        part = lists[start : start + len(rows)]
        start += len(rows)
        read[split] = rows.remove_columns("label").add_column("label", part, feature=feature)
    return datasets.DatasetDict(read)


def _choose_dtype(types: set[type]) -> str:
    if types and types <= {bool}:
        return "bool"
    if types and types <= {int, float}:
        return "float64" if float in types else "int64"
    return "string"


def build_labels(splits: datasets.DatasetDict, problem_type: str | None = None, delimiter: str = ",") -> LabelInfo:
    """Decides the problem type and the class names from full splits.

    A ClassLabel keeps its order, strings are sorted, integers are sorted by value. Several labels a row are lists, or
    (with `multi_label_classification`) strings with a delimiter; lists of 0s and 1s of one length are multi-hot.

    Raises:
        UserError: labels that do not fit the problem type, are missing or out of range; one class only in train; a
            label that train never has. Up to five row ids are named.
    """
    _check_labelled(splits)
    feature, is_asked = splits["train"].features["label"], problem_type is not None
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
    if problem_type == MULTI and _kind(feature) == "string":
        _check_delimiter(seen, delimiter)
    if not is_asked and _kind(feature) == "string":
        _check_joined(seen)
        _check_commas(seen)
    spellings = find_joined(name for rows in splits.values() for name in _written_names(rows, problem_type, delimiter))
    return LabelInfo(problem_type, tuple(_order_names(feature, seen, width)), spellings)


def _written_names(rows: datasets.Dataset, problem_type: str, delimiter: str) -> set[str]:
    """The names as they stand in the data, of labels that are texts or classes."""
    feature, values = rows.features["label"], rows["label"][:]
    item = feature.feature if _kind(feature) == "list" else feature
    if _kind(item) == "class":
        return set(item.names)
    if _kind(item) != "string":
        return set()
    if _kind(feature) == "list":
        return {name for row in values for name in row or []}
    if problem_type == MULTI:  # blanks around a delimiter are no spelling
        return {name.strip(" ") for value in values for name in (value or "").split(delimiter) if name.strip()}
    return {value for value in values if value}


def _check_delimiter(names: set[str], delimiter: str) -> None:
    """Labels that are others of them joined by another delimiter.

    Raises:
        UserError: there are such labels.
    """
    for mark in (mark for mark in (",", ";", "|", "\t", "#", "/", "+", "&", " ") if mark != delimiter):
        if joined := _find_joined(names, mark):
            raise UserError(
                f"{len(joined)} labels are others of them with {mark!r} between, such as {min(joined)!r}: give "
                f"`--label_delimiter {mark!r}`. What separates labels is {delimiter!r} now."
            )


def _find_joined(names: set[str], mark: str) -> list[str]:
    """The names with a mark in them, if the parts of each are names without one."""
    joined = [name for name in names if mark in name]
    plain = {clean_label(name) for name in names} - {clean_label(name) for name in joined}
    parts = {name: [clean_label(part) for part in name.split(mark) if clean_label(part)] for name in joined}
    return joined if all(found and plain.issuperset(found) for found in parts.values()) else []


def _check_joined(names: set[str]) -> None:
    """Classes that are others of them joined, where a row could have several.

    Raises:
        UserError: there are such classes.
    """
    for mark in (",", ";", "|"):
        if joined := _find_joined(names, mark):
            raise UserError(
                f"{len(joined)} labels are others of them with {mark!r} between, such as {min(joined)!r}. If a row "
                f"can have several labels, give `--problem_type {MULTI} --label_delimiter {shlex.quote(mark)}`; if "
                f"each text is one class, give `--problem_type {SINGLE}`."
            )


def _check_commas(names: set[str]) -> None:
    """Numbers with a comma before the decimals, which would be a class each.

    Raises:
        UserError: all labels are such numbers.
    """
    if all(map(_WITH_COMMAS.fullmatch, names)):
        raise UserError(
            f"The labels look like numbers with commas, such as {min(names)!r}. To learn values, write them with a "
            f"point before the decimals and give `--problem_type {REGRESSION}`; if each text is one class, give "
            f"`--problem_type {SINGLE}`."
        )


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
        # Names of a checkpoint of somebody else are as they are.
        index = {clean_label(name): place for place, name in enumerate(info.names)} | info.label2id
        _check_known(names, rows, f"in {split} but not among the labels of the model", set(index))
        if info.problem_type == SINGLE:
            values, feature = [index[name] for (name,) in names], datasets.Value("int64")
        else:
            found = [{index[name] for name in row} for row in names]
            values = [[float(place in row) for place in range(info.num_labels)] for row in found]
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
        "decimal": f"type `--problem_type {REGRESSION}`, or turn them into strings or integers, as `--problem_type "
        f"{SINGLE}` does if all of them are whole",
        "list": f"type `--problem_type {MULTI}`",
    }.get(kind, f"expected {', '.join(fitting[problem_type])}; choose another column with --label_column")
    if isinstance(feature, datasets.Json):
        kind, hint = "one kind in some rows and another in others", "write all of them as texts, or all as lists"
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
        return [[clean_label(name) for name in (value or "").split(delimiter) if name.strip()] for value in values]
    _check_rows(rows, map(_is_missing, values), f"{split} has missing labels", "Fill in or remove these rows")
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
        names = [clean_label(name) for name in feature.names]
        return [[names[value] for value in row] for row in lists]
    if kind not in ("string", "integer", "bool"):
        raise UserError(f"The labels are lists of {kind}; expected lists of strings or integers, or of 0 and 1.")
    is_bad = [any(map(_is_missing, row)) for row in lists]
    _check_rows(rows, is_bad, f"{split} has missing labels", "Fill in or remove these rows")
    if kind == "string":
        clean = {value: clean_label(value) for value in {value for row in lists for value in row}}
        return [[clean[value] for value in row] for row in lists]
    return [[str(value).lower() if kind == "bool" else str(value) for value in row] for row in lists]


def _is_missing(value: object) -> bool:
    """A text of blanks is no label either."""
    return value is None or isinstance(value, str) and not clean_label(value)


def _read_values(rows: datasets.Dataset, split: str) -> list[float]:
    values = [_parse_value(value) for value in rows["label"][:]]
    is_bad = [not math.isfinite(value) for value in values]
    written = [value for value, bad in zip(rows["label"][:], is_bad, strict=True) if bad and isinstance(value, str)]
    advice = "Fix or remove these rows"
    if written and all(map(_WITH_COMMAS.fullmatch, written)):
        advice = f"Write numbers such as {written[0]!r} with a point before the decimals and no mark between thousands"
    _check_rows(rows, is_bad, f"{split} has labels that are not finite numbers", advice)
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
        alike = next((other for other in sorted(known) if make_key(other) == make_key(name)), None)
        others += f" There is {alike!r}." if alike else ""
        rows_found = _row_ids(rows, unknown[name])
        raise UserError(f"The label {name!r} is {where} ({rows_found}).{others} Correct it, or remove these rows.")


def _check_rows(rows: datasets.Dataset, is_bad: Iterable[bool], found: str, advice: str) -> None:
    if bad := [index for index, bad in enumerate(is_bad) if bad]:
        raise UserError(f"{found} ({_row_ids(rows, bad)}). {advice}.")


def _row_ids(rows: datasets.Dataset, indices: list[int]) -> str:
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return "row_id " + ", ".join(map(str, rows.select(indices[:5])["row_id"][:])) + more


def _order_names(feature: object, seen: set[str], width: int | None) -> list[str]:
    item = feature.feature if _kind(feature) == "list" else feature
    if width is not None:
        return [str(index) for index in range(width)]
    if _kind(item) == "class":
        return list(dict.fromkeys(map(clean_label, item.names)))
    return sorted(seen, key=int) if _kind(item) == "integer" else sorted(seen)
