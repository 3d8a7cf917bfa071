"""Has every arm all of its seeds, and was the test set read once?"""

import itertools
from collections import Counter, defaultdict

from hftl.compare.parity.study import Evidence, Finding, Rule, Study
from hftl.compare.parity.tools import gather, say_where, see


def _find_missing_seeds(study: Study) -> list[Finding] | None:
    cells = [cell for cell in study.cells if cell.get("seed") is not None]
    sizes = study.expected.get("sizes") or list(dict.fromkeys(cell.get("size") for cell in cells))
    seeds = study.expected.get("seeds") or sorted({cell["seed"] for cell in cells})
    in_order = sorted(cells, key=lambda cell: cell.get("status", "completed") == "completed")  # a success counts last
    states = {(c["arm"], c.get("size"), c["seed"]): c.get("status", "completed") for c in in_order}
    reached = {(size, seed) for (_, size, seed), state in states.items() if state != "interrupted"}
    failed, dropped, unfinished = [], [], []
    for arm, size, seed in itertools.product(study.arms, sizes, seeds):
        state = states.get((arm, size, seed), "missing")
        item = Evidence(arm, state, f"at {say_where(size, seed)}")
        if state in ("diverged", "failed"):
            failed.append(item)
        elif state != "completed":
            (dropped if (size, seed) in reached else unfinished).append(item)
    findings = gather(dropped) + gather(failed, "warns") + gather(unfinished, "warns")
    return findings or ([] if cells else None)


def _find_unplanned_cells(study: Study) -> list[Finding]:
    seeds, sizes = study.expected.get("seeds"), study.expected.get("sizes")
    counts = Counter((c["arm"], c.get("size"), c["seed"]) for c in study.completed if c.get("seed") is not None)
    twice, outside = [], []
    for (arm, size, seed), count in counts.items():
        if count > 1:
            twice.append(Evidence(arm, "counted twice", f"at {say_where(size, seed)}"))
        if (seeds and seed not in seeds) or (sizes and size not in sizes):
            outside.append(Evidence(arm, "outside the plan", f"at {say_where(size, seed)}"))
    return gather(twice, "blocks") + gather(outside)


def _find_single_seeds(study: Study) -> list[Finding]:
    seeds: dict[tuple, set] = defaultdict(set)
    for cell in study.completed:
        if cell.get("seed") is not None:
            seeds[cell["arm"], cell.get("size")].add(cell["seed"])
    single = [(arm, size) for (arm, size), found in seeds.items() if len(found) == 1]
    return gather(Evidence(arm, "one seed", f"at n={size}") for arm, size in single)


def _find_repeated_reads(study: Study) -> list[Finding] | None:
    reads = [(cell, cell.get("num_test_reads")) for cell in study.completed]
    repeated = [see(cell, "test set read", f"{count} times") for cell, count in reads if (count or 0) > 1]
    return gather(repeated) or (None if any(count is None for _, count in reads) else [])


def _find_small_test_set(study: Study) -> list[Finding] | None:
    smallest, margin = study.expected.get("minimum_detectable_difference"), study.question.get("margin")
    if smallest is None or margin is None:
        return None
    rows = study.question.get("num_test_examples")
    detail = f"With {rows} test rows the smallest difference that can be shown is {smallest:.3g}, margin {margin:.3g}."
    return [Finding([], detail)] if smallest > margin else []


RULES = [
    Rule(
        "missing seeds",
        "blocks",
        "Seeds that are left out may be the bad ones; a recorded failure counts against its arm.",
        _find_missing_seeds,
        "The same seeds for every arm at each size.",
    ),
    Rule("cells beside the plan", "warns", "Extra looks favour whoever gets them.", _find_unplanned_cells),
    Rule("single seed", "warns", "There is no interval over seeds.", _find_single_seeds),
    Rule(
        "test set read more than once",
        "warns",
        "Each further read makes the score a little more optimistic.",
        _find_repeated_reads,
        "Every cell read the test set once.",
    ),
    Rule(
        "test set too small",
        "warns",
        "More seeds do not mend that; more test rows do.",
        _find_small_test_set,
        "The test set is large enough to show a difference of the margin.",
    ),
]
