"""Did all arms see the same rows, and none of those that they are judged on?"""

from collections import defaultdict

from hftl.compare.parity.study import Evidence, Finding, Rule, Study
from hftl.compare.parity.tools import compare_cells, gather, read_fingerprints, see, take_settings

NUM_LABELS = ("num_train_examples", "num_validation_examples")


def _find_unequal_data(study: Study) -> list[Finding] | None:
    by_chain = compare_cells(study.completed, read_fingerprints, by=("size", "seed"))
    found = by_chain or compare_cells(study.completed, lambda cell: {"test": read_fingerprints(cell).get("test")})
    is_stated = all(read_fingerprints(cell).get("train") for cell in study.completed)  # not the test rows alone
    return found or (found if is_stated else None)


def _find_broken_chains(study: Study) -> list[Finding] | None:
    chains: dict[tuple, dict[int, set]] = defaultdict(dict)
    for cell in study.completed:
        if ids := cell.get("row_ids"):
            chains[cell["arm"], cell.get("seed")][cell["size"]] = {*ids.get("train", ()), *ids.get("validation", ())}
    evidence = []
    for (arm, seed), rows in chains.items():
        sizes = sorted(rows)
        for small, large in zip(sizes, sizes[1:], strict=False):
            if lost := len(rows[small] - rows[large]):
                evidence.append(Evidence(arm, "chain", f"of seed {seed}: {lost} rows of n={small} not in n={large}"))
    return gather(evidence) if chains else None


def _find_leaks(study: Study) -> list[Finding] | None:
    evidence, shared = [], study.expected.get("overlaps")
    for cell in study.completed:
        prints = read_fingerprints(cell)
        for split in ("validation", "test"):
            if prints.get("train") and prints["train"] == prints.get(split):
                evidence.append(see(cell, f"{split} rows", "are the training rows"))
        for splits, count in {**(shared or {}), **(cell.get("overlaps") or {})}.items():
            if count:
                evidence.append(see(cell, splits.replace("_", " and "), f"share {count} rows"))
    # Unequal fingerprints alone do not show that no row is shared.
    counts = [{**(shared or {}), **(cell.get("overlaps") or {})} for cell in study.completed]
    is_counted = all(found and None not in found.values() for found in counts)
    return gather(evidence) or ([] if is_counted else None)


def _find_selection_on_test(study: Study) -> list[Finding] | None:
    evidence = []
    for cell in study.completed:
        prints, metric = read_fingerprints(cell), take_settings(cell, "metric_for_best_model")["metric_for_best_model"]
        if "test" in str(metric or "").replace("/", "_").split("_"):
            evidence.append(see(cell, "metric_for_best_model", f"is {metric}"))
        if prints.get("test") and prints["test"] == prints.get("validation"):
            evidence.append(see(cell, "validation rows", "are the test rows"))
    is_known = all(read_fingerprints(cell) for cell in study.completed)
    return gather(evidence) or ([] if is_known else None)


def _find_uncounted_labels(study: Study) -> list[Finding] | None:
    evidence, silent, known = [], set(), set()
    for cell in study.completed:
        num_train, num_validation, size = (cell.get(key) for key in (*NUM_LABELS, "size"))
        if None in (num_train, num_validation, size):
            silent.add(cell["arm"])
            continue
        known.add(cell["arm"])
        if num_train + num_validation > size:
            evidence.append(see(cell, "labels", f"{num_train} + {num_validation} for a budget of {size}"))
    is_everybody = known == {item.arm for item in evidence}  # then the arms are equal, but the sizes say too little
    return gather(evidence, "warns" if is_everybody else None) or (None if silent else [])


RULES = [
    Rule(
        "different data",
        "blocks",
        "Then a difference in score may be one of rows, not of arms.",
        _find_unequal_data,
        "The same training, validation and test rows for every arm at each size and seed; one test set for all cells.",
    ),
    Rule(
        "chain not nested",
        "blocks",
        "A curve over labels needs the smaller sets inside the larger ones.",
        _find_broken_chains,
        "Within each seed the smaller label sets are inside the larger ones.",
    ),
    Rule(
        "rows leaked into training",
        "blocks",
        "A score on rows that were trained on says nothing about new ones.",
        _find_leaks,
        "No leak from validation or test into training, as far as overlaps were counted.",
    ),
    Rule(
        "selection on the test split",
        "blocks",
        "The best of several looks at the test set is too good.",
        _find_selection_on_test,
        "Nothing was selected on the test set.",
    ),
    Rule(
        "validation labels not counted",
        "blocks",
        "They were paid for as well: this arm had more labels than its size says.",
        _find_uncounted_labels,
        "Validation labels count in the label budget of every arm.",
    ),
]
