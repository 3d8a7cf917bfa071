"""Are the rows usable, and is there anything suspicious about them? Looks, compares, and does what the user chose.

Bad rows are an error or are dropped. For what else is found there is a policy each: an error, a warning, a note in the
record, or dropping rows, always from train. This module must not look at the model.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import datasets
import numpy as np

from hftl.data.faults import MAX_NAMED
from hftl.data.findings import Finding, Rows, act_on, find_all, parse_policies
from hftl.data.inputs import Look, look_at
from hftl.data.labels import REGRESSION, SINGLE, LabelInfo
from hftl.data.similarity import group_images, group_texts
from hftl.errors import UserError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# What a run looks through for near duplicates without being asked: about 10 s. `hftl audit` has no limit.
MAX_CHARACTERS = 20_000_000
MAX_IMAGES = 200_000


@dataclass(frozen=True)
class AuditReport:
    """Counts by split, for `run.json`."""

    num_rows: dict[str, int]  # after rows were dropped
    bad_rows: dict[str, dict[str, int]]  # split -> kind -> rows dropped
    num_duplicates: dict[str, int]  # validation and test rows whose input is in train as well
    label_counts: dict[str, dict[str, int]]  # split -> class -> rows; empty unless rows have one class each
    findings: list[Finding] = field(default_factory=list)
    looked_for_near_duplicates: bool = True
    detectable_difference: float | None = None  # in accuracy, of two models, on test; see hftl.metrics.power

    def as_dict(self) -> dict[str, object]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {"findings": [finding.as_dict() for finding in self.findings]}


def audit(
    splits: datasets.DatasetDict,
    info: LabelInfo,
    modality: str,
    on_bad_rows: str = "error",
    policies: Mapping[str, str] | None = None,
    *,
    is_thorough: bool = False,
    find_faults: Callable[[datasets.Dataset, LabelInfo], Iterable[str | None]] | None = None,
) -> tuple[datasets.DatasetDict, AuditReport]:
    """Looks at every input once, compares them, and does what the policies say.

    Args:
        splits: canonical columns with encoded labels, and `group` where there are groups.
        info: what labels mean.
        modality: text, language or image.
        on_bad_rows: `error` or `skip`.
        policies: of `parse_policies`.
        is_thorough: look for near duplicates however many rows there are.
        find_faults: what else makes a row bad, such as a target that does not fit its input.

    Raises:
        UserError: bad rows and `on_bad_rows` is `error`, with up to five row ids of each kind and split; a split, or a
            class in train, of which nothing would be left; something whose policy is `error`.
    """
    splits = datasets.DatasetDict({split: splits[split] for split in SPLITS if split in splits})
    looks = {split: look_at(rows, split, modality) for split, rows in splits.items()}
    if find_faults is not None:
        looks = {split: _add_faults(found, find_faults(splits[split], info)) for split, found in looks.items()}
    bad = {split: _group_by_fault(found) for split, found in looks.items()}
    if any(bad.values()) and on_bad_rows == "error":
        raise UserError(_describe_bad_rows(splits, looks, bad))
    kept = datasets.DatasetDict(
        {split: _drop_bad_rows(rows, split, looks[split], bad[split]) for split, rows in splits.items()}
    )
    counts = {split: _count_labels(rows, info) for split, rows in kept.items()}
    if lost := sorted(set(_count_labels(splits["train"], info)) - set(counts["train"])):
        raise UserError(f"Without its bad rows, train has nothing of class {', '.join(lost)}; repair some of them.")
    good = {split: [look for look in found if look.fault is None] for split, found in looks.items()}
    is_searched = is_thorough or _is_quick(good)
    findings = find_all(_number_rows(kept, good, info, is_searched), info, counts)
    kept["train"] = _apply(policies or parse_policies(None), findings, kept, info)
    findings = _list_bad_rows(splits, looks, bad) + findings
    report = AuditReport(
        num_rows={split: len(rows) for split, rows in kept.items()},
        bad_rows={split: {kind: len(rows) for kind, rows in kinds.items()} for split, kinds in bad.items()},
        num_duplicates=_count_duplicates(findings, kept),
        label_counts={split: _count_labels(rows, info) for split, rows in kept.items()},
        findings=findings,
        looked_for_near_duplicates=is_searched,
    )
    return kept, report


def _add_faults(looks: list[Look], faults: Iterable[str | None]) -> list[Look]:
    return [
        replace(look, fault=fault) if fault and not look.fault else look
        for look, fault in zip(looks, faults, strict=True)
    ]


def _is_quick(looks: Mapping[str, list[Look]]) -> bool:
    every = [look for found in looks.values() for look in found]
    is_image = any(look.signature is not None for look in every[:1])
    characters = sum(len(text) for look in every for text in look.texts)
    return len(every) <= MAX_IMAGES if is_image else characters <= MAX_CHARACTERS


def _number_rows(
    splits: datasets.DatasetDict, looks: Mapping[str, list[Look]], info: LabelInfo, is_searched: bool
) -> Rows:
    """The rows of all splits as numbers that are equal where something is equal."""
    names = list(splits)
    every = [look for name in names for look in looks[name]]
    exact = np.unique([look.digest for look in every], return_inverse=True)[1]
    labels = None if info.problem_type == REGRESSION else _number_column(splits, names, "label")
    return Rows(
        names=names,
        split=np.repeat(np.arange(len(names)), [len(splits[name]) for name in names]),
        row_id=np.concatenate([np.asarray(splits[name]["row_id"][:]) for name in names]),
        exact=exact,
        near=_group_near(every, exact) if is_searched else None,
        label=labels,
        group=_number_column(splits, names, "group"),
        is_constant=np.array([look.is_constant for look in every], bool),
    )


def _group_near(looks: list[Look], exact: np.ndarray) -> np.ndarray:
    """Numbers of near duplicates, made from one row of each set of equal ones."""
    first = np.unique(exact, return_index=True)[1]
    if looks[0].signature is not None:
        groups = group_images(np.stack([looks[index].signature for index in first]))
    else:
        groups = group_texts([looks[index].texts for index in first])
    return groups[exact]


def _number_column(splits: datasets.DatasetDict, names: list[str], column: str) -> np.ndarray | None:
    """Equal numbers for equal values, over all splits; None: there is no such column."""
    if column not in splits["train"].column_names:
        return None
    values = [value for name in names for value in splits[name].with_format(None)[column][:]]
    numbers: dict[object, int] = {}
    keys = (tuple(value) if isinstance(value, list) else value for value in values)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _apply(
    policies: Mapping[str, str], findings: list[Finding], splits: datasets.DatasetDict, info: LabelInfo
) -> datasets.Dataset:
    """Train without the rows that are to be dropped; says what is to be said."""
    num_rows = {split: len(rows) for split, rows in splits.items()}
    act_on(findings, policies, num_rows)
    dropped = np.zeros(num_rows["train"], bool)
    for finding in findings:
        if finding.policy == "drop" and len(finding.drop):
            dropped[finding.drop] = True
            finding.num_dropped = len(finding.drop)
            logger.warning("%s: dropped %d of %d train rows.", finding.kind, finding.num_dropped, num_rows["train"])
    if not dropped.any():
        return splits["train"]
    kept = splits["train"].select(np.flatnonzero(~dropped))
    before, after = _count_labels(splits["train"], info), _count_labels(kept, info)
    if lost := sorted(set(before) - set(after)) or ([] if len(kept) else ["any"]):
        raise UserError(f"With what --audit drops, train has nothing of class {', '.join(lost)}; give another policy.")
    return kept


def _group_by_fault(looks: list[Look]) -> dict[str, list[int]]:
    """Fault -> indices of the bad rows."""
    faults = defaultdict(list)
    for index, look in enumerate(looks):
        if look.fault:
            faults[look.fault].append(index)
    return dict(faults)


def _describe_bad_rows(
    splits: datasets.DatasetDict, looks: dict[str, list[Look]], bad: dict[str, dict[str, list[int]]]
) -> str:
    lines = []
    for split, faults in bad.items():
        for fault, indices in sorted(faults.items(), key=lambda pair: -len(pair[1]))[:MAX_NAMED]:
            ids = splits[split].select(indices[:5])["row_id"][:]
            paths = [looks[split][index].path for index in indices[:5]]
            named = [f"{row_id} {path}" if path else str(row_id) for row_id, path in zip(ids, paths, strict=True)]
            more = ", ..." if len(indices) > 5 else ""
            lines.append(f"{split}: {len(indices)} x {fault} (row_id {', '.join(named)}{more})")
        if len(faults) > MAX_NAMED:
            lines.append(f"{split}: {len(faults) - MAX_NAMED} other faults")
    return "Some rows cannot be used. " + "; ".join(lines) + ". Repair them, or drop them with `--on_bad_rows skip`."


def _list_bad_rows(
    splits: datasets.DatasetDict, looks: dict[str, list[Look]], bad: dict[str, dict[str, list[int]]]
) -> list[Finding]:
    """The rows that were dropped because they cannot be used, as a finding."""
    counts = {split: sum(map(len, faults.values())) for split, faults in bad.items() if faults}
    if not counts:
        return []
    examples = [
        f"{split} {splits[split]['row_id'][indices[0]]}: {fault}"
        for split, faults in bad.items()
        for fault, indices in faults.items()
    ]
    return [Finding("bad_rows", counts, examples, policy="drop", num_dropped=sum(counts.values()))]


def _drop_bad_rows(
    rows: datasets.Dataset, split: str, looks: list[Look], bad: dict[str, list[int]]
) -> datasets.Dataset:
    if not bad:
        return rows
    good = [index for index, look in enumerate(looks) if look.fault is None]
    found = ", ".join(f"{len(indices)} x {fault}" for fault, indices in list(bad.items())[:MAX_NAMED])
    found += f" and {len(bad) - MAX_NAMED} other faults" if len(bad) > MAX_NAMED else ""
    if not good:
        raise UserError(f"No row of {split} can be used ({found}); repair the data.")
    logger.warning("Dropped %d of %d rows of %s: %s.", len(rows) - len(good), len(rows), split, found)
    return rows.select(good)


def _count_duplicates(findings: list[Finding], splits: datasets.DatasetDict) -> dict[str, int]:
    """Inputs of validation and test that train shares, none where they were dropped from train."""
    counts = dict.fromkeys((split for split in splits if split != "train"), 0)
    for finding in findings:
        if finding.kind == "duplicates_across_splits" and not finding.num_dropped:
            counts |= finding.counts
    return counts


def _count_labels(rows: datasets.Dataset, info: LabelInfo) -> dict[str, int]:
    if info.problem_type != SINGLE:
        return {}
    counts = Counter(rows["label"][:])
    return {name: counts[index] for index, name in enumerate(info.names) if counts[index]}
