"""What is suspicious about the rows taken together? Duplicates, leaks, contradicting labels, thin classes.

Each finding counts rows by split, names a few, and knows which train rows would have to go. What is then done about it
is the user's choice (`policies`); this module drops nothing.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hftl.data.label_spelling import find_alike
from hftl.data.labels import SINGLE, LabelInfo
from hftl.errors import UserError, unknown_name

logger = logging.getLogger(__name__)

POLICIES = ("error", "warn", "drop", "note")
MAX_EXAMPLES = 2
TINY_CLASS = 10  # train rows, below which a class has hardly any left to validate on
SMALL_DIFFERENCE = 0.02  # in accuracy
IMBALANCE = 20.0  # largest over smallest class


@dataclass(frozen=True)
class Kind:
    """What a finding means.

    Attributes:
        policy: what is done unless the user says otherwise.
        is_droppable: whether train rows can be dropped for it.
        meaning: one sentence, and what to do.
    """

    policy: str
    is_droppable: bool
    meaning: str


# Worst first: the order of the report. The default never changes data.
KINDS = {
    "bad_rows": Kind("error", True, "Empty texts or unreadable images. Repair them, or give --on_bad_rows skip."),
    "duplicates_across_splits": Kind(
        "warn", True, "The same inputs are in train: scores on them are too good. Drop the copies from train."
    ),
    "near_duplicates_across_splits": Kind(
        "warn", True, "Train holds inputs that are almost the same: scores on them are too good. Drop those of train."
    ),
    "group_leakage": Kind(
        "warn",
        True,
        "Train holds rows of the same groups: scores say little about new groups. Split by group, or drop.",
    ),
    "label_conflicts": Kind(
        "warn",
        True,
        "One input has several labels: nobody can be right about all. Correct them, or drop those of train.",
    ),
    "joined_labels": Kind(
        "warn",
        False,
        "Spellings that differ in blanks or Unicode form alone are read as one label. Correct them in the data.",
    ),
    "similar_labels": Kind(
        "warn",
        False,
        "Labels that differ in case, width or what joins their words are learnt apart. Join those that are one.",
    ),
    "constant_images": Kind(
        "warn", True, "Images of one color show nothing. Look whether they were saved as they should be, or drop them."
    ),
    "missing_classes": Kind("warn", False, "Classes without rows are not learnt, or not measured. Add rows of them."),
    "truncated_texts": Kind(
        "warn",
        False,
        "What is beyond --max_length is never read. Raise it, cut texts sensibly, or choose another model.",
    ),
    "tiny_classes": Kind(
        "note", False, f"Fewer than {TINY_CLASS} train rows: expect little of these classes. Add rows, or merge them."
    ),
    "class_imbalance": Kind(
        "note", False, "Accuracy is mostly that of the large classes. Look at macro F1 and the table per class."
    ),
    "duplicates_within_splits": Kind(
        "note", True, "The same input several times in a split: it counts several times. Drop the later ones of train."
    ),
    "near_duplicates_within_splits": Kind(
        "note", True, "Almost the same input several times: there is less data than it seems."
    ),
    "small_test_set": Kind("note", False, "Smaller differences between two models do not show. Add test rows."),
}


@dataclass
class Finding:
    """One kind of thing that was found.

    Attributes:
        kind: key of `KINDS`.
        counts: split -> rows.
        examples: a few, readable.
        figures: numbers that belong to it.
        drop: positions in train, int [K], of the rows that a policy of `drop` takes out.
        policy: what is done.
        num_dropped: train rows.
    """

    kind: str
    counts: dict[str, int]
    examples: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    drop: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    policy: str = ""
    num_dropped: int = 0

    def as_dict(self) -> dict[str, object]:
        names = ("kind", "policy", "counts", "num_dropped", "examples", "figures")
        return {name: getattr(self, name) for name in names} | {"num_droppable": len(self.drop)}


def parse_policies(words: Iterable[str] | None) -> dict[str, str]:
    """The policy of every kind of finding, from `KIND=POLICY` words, several in one with commas.

    Raises:
        UserError: an unknown kind or policy, or `drop` where no row is to blame.
    """
    policies = {name: kind.policy for name, kind in KINDS.items()}
    choices = [name for name in KINDS if name != "bad_rows"]
    for part in (part.strip() for word in words or () for part in word.split(",")):
        name, equals, policy = part.partition("=")
        if not equals:
            raise UserError(f"--audit has {part!r}; give FINDING=POLICY, such as duplicates_across_splits=drop.")
        if name not in choices:
            hint = "For empty texts and unreadable images there is --on_bad_rows." if name == "bad_rows" else ""
            raise unknown_name("finding in --audit:", name, choices, hint)
        if policy not in POLICIES:
            raise unknown_name(f"policy of {name} in --audit:", policy, POLICIES)
        if policy == "drop" and not KINDS[name].is_droppable:
            raise UserError(f"--audit {part}: no row is to blame for {name}; give error, warn or note.")
        policies[name] = policy
    return policies


@dataclass(frozen=True)
class Rows:
    """The usable rows of all splits, one after the other; train comes first. Every array is [N].

    Attributes:
        names: of the splits.
        split: position in `names`.
        row_id: as loaded.
        exact: equal numbers for equal inputs.
        near: equal numbers for inputs that are nearly the same, equal ones included; None: not looked for.
        label: equal numbers for equal labels; None: there are none.
        group: equal numbers for rows of one group; None: there are none.
        is_constant: images all of whose pixels are alike; None: not looked for.
    """

    names: Sequence[str]
    split: np.ndarray
    row_id: np.ndarray
    exact: np.ndarray
    near: np.ndarray | None = None
    label: np.ndarray | None = None
    group: np.ndarray | None = None
    is_constant: np.ndarray | None = None

    def count(self, is_in: np.ndarray) -> dict[str, int]:
        """Rows of each split for which `is_in` [N] holds; splits without any are left out."""
        counts = np.bincount(self.split[is_in], minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts, strict=True) if count}

    def show(self, index: int) -> str:
        return f"{self.names[self.split[index]]} {self.row_id[index]}"


def find_all(rows: Rows, info: LabelInfo, label_counts: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    """Everything that is suspicious, worst first.

    Args:
        rows: the usable rows.
        info: what labels mean.
        label_counts: split -> class -> rows; empty unless rows have one class each.
    """
    findings = [_across("duplicates_across_splits", rows, rows.exact)]
    if rows.near is not None:
        findings.append(_across("near_duplicates_across_splits", rows, rows.near, apart=rows.exact))
    if rows.group is not None:
        findings.append(_across("group_leakage", rows, rows.group))
    if rows.label is not None:
        findings.append(_find_conflicts(rows))
    findings += _look_at_names(info)
    if rows.is_constant is not None and rows.is_constant.any():
        findings.append(_list_constant(rows, rows.is_constant))
    if info.problem_type == SINGLE and label_counts:
        findings += _look_at_classes(info, label_counts)
    findings.append(_within("duplicates_within_splits", rows, rows.exact))
    if rows.near is not None:
        findings.append(_within("near_duplicates_within_splits", rows, rows.near, apart=rows.exact))
    order = list(KINDS)
    return sorted((f for f in findings if f is not None), key=lambda finding: order.index(finding.kind))


def describe(finding: Finding, num_rows: Mapping[str, int]) -> str:
    """One line: what, how many of how many, which, and what to do."""
    parts = [f"{count:,} of {num_rows[split]:,} rows of {split}" for split, count in finding.counts.items()]
    figures = [f"{name} {value:.3g}" for name, value in finding.figures.items() if isinstance(value, float)]
    found = ", ".join([*parts, *figures, *(f"{'e.g. ' * bool(parts)}{text}" for text in finding.examples[:1])])
    return f"{finding.kind}: {found}. {KINDS[finding.kind].meaning}"


def find_cut_texts(tokens: Mapping[str, Mapping[str, int]]) -> Finding | None:
    """Texts that the network does not read to their end.

    Args:
        tokens: split -> num_rows and num_cut, as tasks describe prepared rows.
    """
    cut = {split: count["num_cut"] for split, count in tokens.items() if count["num_cut"]}
    shares = {f"share of {split}": count / tokens[split]["num_rows"] for split, count in cut.items()}
    return Finding("truncated_texts", cut, figures=shares) if cut else None


def find_small_test(num_rows: int, difference: float | None) -> Finding | None:
    """A test set that shows no differences as small as people like to discuss.

    Args:
        num_rows: of test.
        difference: in accuracy, the smallest that shows; None: none does.
    """
    if difference is not None and difference <= SMALL_DIFFERENCE:
        return None
    shows = (
        "no difference shows" if difference is None else f"differences of {100 * difference:.1f} points or more show"
    )
    return Finding("small_test_set", {"test": num_rows}, [shows], {"detectable_difference": difference})


def act_on(findings: Sequence[Finding], policies: Mapping[str, str], num_rows: Mapping[str, int]) -> None:
    """Gives each finding its policy; errors are raised, warnings logged.

    Args:
        findings: any.
        policies: of `parse_policies`.
        num_rows: split -> rows.

    Raises:
        UserError: the policy of a finding is `error`.
    """
    for finding in findings:
        finding.policy = policies[finding.kind]
    if errors := [describe(finding, num_rows) for finding in findings if finding.policy == "error"]:
        raise UserError(
            f"The data are refused by --audit. {' '.join(errors)} Repair them, or give another policy than error."
        )
    for finding in findings:
        if finding.policy == "warn":
            logger.warning("%s", describe(finding, num_rows))


def _across(kind: str, rows: Rows, key: np.ndarray, apart: np.ndarray | None = None) -> Finding | None:
    """Rows of validation and test whose key is that of a train row.

    Args:
        kind: of the finding.
        rows: all of them.
        key: [N].
        apart: equal numbers of this key do not count: they are another finding.
    """
    is_train = rows.split == 0
    is_shared = np.isin(key, key[is_train]) & ~is_train
    is_copy = np.isin(key, key[~is_train]) & is_train
    if apart is not None:
        is_shared &= ~np.isin(apart, apart[is_train])
        is_copy &= ~np.isin(apart, apart[~is_train])
    if not is_shared.any():
        return None
    first = _first_positions(key, np.flatnonzero(is_train))
    examples = [f"{rows.show(i)} ~ {rows.show(first[key[i]])}" for i in np.flatnonzero(is_shared)[:MAX_EXAMPLES]]
    return Finding(kind, rows.count(is_shared), examples, drop=np.flatnonzero(is_copy))


def _within(kind: str, rows: Rows, key: np.ndarray, apart: np.ndarray | None = None) -> Finding | None:
    """Rows whose key an earlier row of the same split has."""
    is_first = _is_first(rows.split, key)
    is_repeated = ~is_first if apart is None else ~is_first & _is_first(rows.split, apart)
    if not is_repeated.any():
        return None
    examples = []
    for index in np.flatnonzero(is_repeated)[:MAX_EXAMPLES]:
        same = np.flatnonzero((key == key[index]) & (rows.split == rows.split[index]))
        examples.append(f"{rows.show(index)} ~ {rows.show(same[0])}")
    return Finding(kind, rows.count(is_repeated), examples, drop=np.flatnonzero(is_repeated & (rows.split == 0)))


def _find_conflicts(rows: Rows) -> Finding | None:
    """Rows of equal inputs that do not all have the same label."""
    order = np.lexsort((rows.label, rows.exact))
    exact, label = rows.exact[order], rows.label[order]
    is_torn = (exact[1:] == exact[:-1]) & (label[1:] != label[:-1])
    if not is_torn.any():
        return None
    is_conflict = np.isin(rows.exact, exact[1:][is_torn])
    examples = [
        f"{rows.show(min(order[i], order[i + 1]))} and {rows.show(max(order[i], order[i + 1]))}"
        for i in np.flatnonzero(is_torn)[:MAX_EXAMPLES]
    ]
    drop = np.flatnonzero(is_conflict & (rows.split == 0))
    return Finding("label_conflicts", rows.count(is_conflict), examples, drop=drop)


def _look_at_names(info: LabelInfo) -> list[Finding]:
    """Labels in several spellings: those that were joined, and those that were not."""
    found = []
    if info.spellings:
        examples = [" and ".join(map(ascii, names)) for names in info.spellings.values()]  # else they look the same
        found.append(Finding("joined_labels", {}, examples[:MAX_EXAMPLES], {"spellings": dict(info.spellings)}))
    if alike := find_alike(info.names):
        examples = [" and ".join(map(repr, names)) for names in alike]
        found.append(Finding("similar_labels", {}, examples[:MAX_EXAMPLES], {"labels": alike}))
    return found


def _list_constant(rows: Rows, is_constant: np.ndarray) -> Finding:
    """Images of one color."""
    examples = [rows.show(index) for index in np.flatnonzero(is_constant)[:MAX_EXAMPLES]]
    drop = np.flatnonzero(is_constant & (rows.split == 0))
    return Finding("constant_images", rows.count(is_constant), examples, drop=drop)


def _look_at_classes(info: LabelInfo, label_counts: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    missing = {
        split: [name for name in info.names if not counts.get(name)]
        for split, counts in label_counts.items()
        if split in ("train", "test")
    }
    train = label_counts["train"]
    tiny = sorted((name for name in train if train[name] < TINY_CLASS), key=train.__getitem__)
    ratio = max(train.values()) / min(train.values())
    found = []
    if any(missing.values()):
        examples = [f"{split}: {', '.join(names[:3])}" for split, names in missing.items() if names]
        found.append(Finding("missing_classes", {}, examples, {"classes": missing}))
    if tiny:
        examples = [f"{name}: {train[name]}" for name in tiny[:MAX_EXAMPLES]]
        figures = {"classes": {name: train[name] for name in tiny}}
        found.append(Finding("tiny_classes", {"train": sum(train[name] for name in tiny)}, examples, figures))
    if ratio >= IMBALANCE:
        ends = [max(train, key=train.__getitem__), min(train, key=train.__getitem__)]
        examples = [f"{name}: {train[name]:,}" for name in ends]
        found.append(Finding("class_imbalance", {}, examples, {"ratio": ratio}))
    return found


def _first_positions(key: np.ndarray, candidates: np.ndarray) -> dict[int, int]:
    """Key -> the first of the candidate positions that has it."""
    values, first = np.unique(key[candidates], return_index=True)
    return dict(zip(values.tolist(), candidates[first].tolist(), strict=True))


def _is_first(split: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Whether no earlier row of the same split has the same key, bool [N]."""
    pairs = split.astype(np.int64) * (int(key.max(initial=0)) + 1) + key
    is_first = np.zeros(len(key), bool)
    is_first[np.unique(pairs, return_index=True)[1]] = True
    return is_first
