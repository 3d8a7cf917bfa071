"""What was held equal between the arms of a comparison, and what was not?

A literal list of rules reads plain dictionaries, one for each cell, and says which arms differ and what that costs:
`blocks` (no verdict on a pair with that arm), `warns` (say it next to the verdict), `notes` (by design, but visible).
What was not stated is said as well. This module must not know how a cell was run, open a file, or see a score.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from hftl.errors import UserError, unknown_name

FRAMES = ("own_schedule", "convergence", "steps", "flops", "wall_time")
OWN_LENGTH = ("own_schedule", "convergence")  # the frames in which arms may train for different numbers of steps
SEVERITIES = ("blocks", "warns", "notes")
UNTRAINED = {"majority", "prior", "tfidf", "knn", "probe"}  # no training loop: no schedule, no optimizer steps
PLAN = ("seeds", "sizes", "arms", "trials", "frame", "schedules", "overlaps", "minimum_detectable_difference")
DURATION = ("max_steps", "num_train_epochs")
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
RATES = ("learning_rate", "head_learning_rate", "weight_decay", "warmup_steps", "lr_scheduler_type")
TUNABLE = (*RATES, *DURATION, *BATCH)
NUM_LABELS = ("num_train_examples", "num_validation_examples")
PRECISION = ("bf16", "fp16", "tf32", "dtype")
CHECKPOINT = ("model_name_or_path", "model_revision")
INPUTS = ("max_length", "image_size", "text_columns", "image_column", "label_column")
HARDWARE = ("cpu", "device", "num_devices", "num_threads", "num_workers")
CHECKED = (*TUNABLE, *CHECKPOINT, *INPUTS)  # declared settings that a cell must have run with
STILL_FALLING = 0.02  # share of the validation loss, over the last fifth of the steps

Cell = Mapping[str, Any]


class Evidence(NamedTuple):
    """One thing that a rule saw, such as ("lora", "dtype", "bfloat16 against float32 at n=128, seed 1")."""

    arm: str
    field: str
    text: str


@dataclass(frozen=True)
class Finding:
    """What one rule found: `severity` only where it is not the rule's own."""

    arms: list[str]
    detail: str
    severity: str | None = None


@dataclass(frozen=True)
class Study:
    """The cells that enter a verdict, and what was planned."""

    cells: list[Cell]  # role final, any status
    arms: Mapping[str, Mapping[str, Any]]
    question: Mapping[str, Any]
    expected: Mapping[str, Any]
    frame: str

    @property
    def completed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.get("status", "completed") == "completed"]

    @property
    def trained(self) -> list[Cell]:
        return [cell for cell in self.completed if self.is_trained(cell["arm"])]

    def is_trained(self, name: str) -> bool:
        arm = self.arms[name]
        return arm.get("mode") not in UNTRAINED and arm.get("is_trained") is not False

    def settings(self, name: str) -> Mapping[str, Any]:
        """What the arm declares for itself alone."""
        return self.arms[name].get("settings") or {}


@dataclass(frozen=True)
class Rule:
    """One thing that must be equal.

    Attributes:
        find: the findings; None where what is stated does not suffice to say that it was equal.
        equal: the sentence for the report when there is no finding.
    """

    what: str
    severity: str
    reason: str
    find: Callable[[Study], list[Finding] | None]
    equal: str = ""


def check_parity(
    cells: Sequence[Cell],
    question: Mapping[str, Any],
    arms: Sequence[Mapping[str, Any]],
    *,
    expected: Mapping[str, Any],
) -> dict[str, Any]:
    """Say what was equal between the arms and flag the rest.

    Args:
        cells: One dictionary for each cell, with what is known of: arm, size (labels), seed, role, status,
            num_train_examples, num_validation_examples, num_steps, num_examples_seen, train_flops, train_seconds,
            train_seconds_include (what else is in them, such as "evaluation"), data_fingerprints and row_ids by
            split, overlaps (rows shared, such as {"train_test": 0}), config (settings, flat; all of them, or as hftl
            records them without those at their defaults), environment, code, validation_history ([{"step", "loss"}]),
            converged, num_test_reads, has_predictions (default: there is a folder), tuning (None: not tuned; or
            trials, best_at_edge, extended, range, and best: the settings which this very cell got from tuning),
            pretrained (steps, num_texts, num_examples_seen, train_flops, train_seconds, perplexity of what was
            trained on texts without labels before, which are in its train_flops and train_seconds).
        question: task, checkpoint, margin, budget, as in results.json.
        arms: name, mode, settings (what is declared for this arm alone), is_trained.
        expected: The plan: seeds, sizes, arms {name: mode}, trials, frame (one of `FRAMES`), schedules
            {arm: {setting: value or {size: value}}} with each arm's own defaults, overlaps for all cells, and
            minimum_detectable_difference in units of the metric. All are optional but the frame, which may also be
            in question["budget"]["frame"].

    Returns:
        {"is_blocked", "equal": [sentences], "flags": [{"severity", "what", "arms", "detail"}]}, worst flags first. A
        flag without arms is about all of them.

    Raises:
        UserError: a key of `expected`, a frame or the arm of a cell is unknown, or there is no cell.
    """
    study = _build_study(cells, question, arms, expected)
    equal, flags = [], []
    for rule in RULES:
        findings = rule.find(study)
        if findings == [] and rule.equal:
            equal.append(rule.equal)
        for item in findings or []:
            severity, detail = item.severity or rule.severity, " ".join(filter(None, (item.detail, rule.reason)))
            flags.append({"severity": severity, "what": rule.what, "arms": item.arms, "detail": detail})
    flags.sort(key=lambda flag: SEVERITIES.index(flag["severity"]))
    return {"is_blocked": any(flag["severity"] == "blocks" for flag in flags), "equal": equal, "flags": flags}


def check_table(
    rows: Sequence[Cell],
    *,
    question: Mapping[str, Any] | None = None,
    expected: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`check_parity` for somebody else's table, of which only some fields are known; one call for each task.

    Each row is a cell that also carries its arm's `mode` and `settings`, where known. A table that names no budget
    frame is read as one of equal training.
    """
    arms: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = {key: row[key] for key in ("mode", "settings") if row.get(key) is not None}
        arms.setdefault(row["arm"], {"name": row["arm"]}).update(known)
    question, plan = question or {}, dict(expected or {})
    plan.setdefault("frame", (question.get("budget") or {}).get("frame") or "steps")
    return check_parity(rows, question, list(arms.values()), expected=plan)


def _build_study(cells: Sequence[Cell], question: Mapping, arms: Sequence[Mapping], expected: Mapping) -> Study:
    for key in expected.keys() - set(PLAN):
        raise unknown_name("key of the expected plan", key, PLAN)
    frame = expected.get("frame") or (question.get("budget") or {}).get("frame") or "none"
    if frame not in FRAMES:
        raise unknown_name("budget frame", frame, FRAMES)
    by_name = {name: {"mode": mode} for name, mode in (expected.get("arms") or {}).items()}
    by_name |= {arm["name"]: {**by_name.get(arm["name"], {}), **arm} for arm in arms}
    finals = [cell for cell in cells if cell.get("role", "final") == "final"]
    if not finals:
        raise UserError("There is no finished cell to compare; expected one for each arm, size and seed. Run some.")
    for name in {cell["arm"] for cell in finals} - by_name.keys():
        raise unknown_name("arm of a cell", name, by_name)
    return Study(finals, by_name, question, expected, frame)


# --- tools of the rules


def _gather(evidence: Iterable[Evidence], severity: str | None = None) -> list[Finding]:
    """One finding for all the evidence: the first example of each arm and field, and how many there are."""
    examples: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in evidence:
        examples[item.arm, item.field].append(item.text)
    if not examples:
        return []
    clauses = [
        f"{arm}: {field} {texts[0]}" + (f" (and {len(texts) - 1} more like it)" if len(texts) > 1 else "")
        for (arm, field), texts in examples.items()
    ]
    rest = f"; and {len(clauses) - 6} more" if len(clauses) > 6 else ""
    return [Finding(sorted({arm for arm, _ in examples}), "; ".join(clauses[:6]) + rest + ".", severity)]


def _find_odd(values: Mapping[int, Any], tolerance: float = 0.0) -> set[int]:
    """Keys outside the largest set of values that agree within `tolerance`; in a tie, outside any of those sets.

    Of every two keys that disagree at least one is odd, so that blocking the odd ones blocks every unequal pair.
    """
    counts = Counter(values.values())
    windows = [{value for value in counts if _is_near(lowest, value, tolerance)} for lowest in counts]
    sizes = [sum(counts[value] for value in window) for window in windows]
    usual = set.intersection(*(w for w, size in zip(windows, sizes, strict=True) if size == max(sizes)))
    return {key for key, value in values.items() if value not in usual}


def _is_near(lowest: Any, value: Any, tolerance: float) -> bool:
    # 1e-9: what is left of a difference of exactly the tolerance after rounding
    return value == lowest or (tolerance > 0 and lowest <= value <= lowest * (1 + tolerance) * (1 + 1e-9))


def _compare(
    cells: Sequence[Cell],
    read: Callable[[Cell], Mapping[str, Any]],
    *,
    by: Sequence[str] = (),
    tolerance: float = 0.0,
    severity: str | None = None,
) -> list[Finding] | None:
    """Compare the fields that `read` finds between all cells with the same `by`; None where some state no field."""
    groups: dict[tuple, dict[int, Any]] = defaultdict(dict)
    silent = set(range(len(cells)))
    for index, cell in enumerate(cells):
        for field, value in read(cell).items():
            if value is not None:
                silent.discard(index)
                group = (field, *(cell.get(key) for key in by))
                groups[group][index] = tuple(value) if isinstance(value, list) else value
    evidence = []
    for (field, *_), values in groups.items():
        odd = _find_odd(values, tolerance)
        usual = next((f" against {_show(value)}" for key, value in values.items() if key not in odd), "")
        evidence += [_see(cells[index], field, f"{_show(values[index])}{usual}") for index in sorted(odd)]
    return _gather(evidence, severity) or (None if silent or not cells else [])


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _see(cell: Cell, field: str, text: str) -> Evidence:
    return Evidence(cell["arm"], field, f"{text} at {_where(cell.get('size'), cell.get('seed'))}")


def _where(size: Any, seed: Any) -> str:
    return f"n={size}, seed {seed}"


def _config(cell: Cell, *names: str) -> dict[str, Any]:
    config = cell.get("config") or {}
    return {name: config.get(name) for name in names}


def _omits_defaults(cell: Cell) -> bool:
    """A run of hftl records what differs from the defaults: there, what is absent is known, elsewhere it is not."""
    return "hftl" in ((cell.get("environment") or {}).get("packages") or {})


def _number_of_trials(cell: Cell) -> int | None:
    """None when not stated; `tuning: None` states that there was none."""
    if "tuning" not in cell:
        return None
    return (cell["tuning"] or {}).get("trials") if cell["tuning"] else 0


def _planned(study: Study, cell: Cell, name: str) -> Any:
    """The value which the cell should have by its arm's settings, else by tuning, else by its arm's defaults."""
    schedule = (study.expected.get("schedules") or {}).get(cell["arm"]) or {}
    for source in (study.settings(cell["arm"]), (cell.get("tuning") or {}).get("best") or {}, schedule):
        # Epochs that are declared replace the default steps, and the other way round.
        if name in source or (name in DURATION and any(other in source for other in DURATION)):
            value = source.get(name)
            sizes = (cell.get("size"), str(cell.get("size")))  # keys of JSON are text
            return next((value[s] for s in sizes if s in value), None) if isinstance(value, Mapping) else value
    return None


# --- readers: the fields that a rule compares; None is "not stated"


def _read_fingerprints(cell: Cell) -> Mapping[str, Any]:
    return cell.get("data_fingerprints") or {}


def _read_precision(cell: Cell) -> Mapping[str, Any]:
    config = cell.get("config") or {}
    if not any(name in config for name in PRECISION) and not _omits_defaults(cell):
        return {}
    dtype = str(config.get("dtype") or "float32").removeprefix("torch.")
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    return {name: bool(config.get(name)) for name in PRECISION[:3]} | {"dtype": names.get(dtype, dtype)}


def _read_hardware(cell: Cell) -> Mapping[str, Any]:
    return {name: (cell.get("environment") or {}).get(name) for name in HARDWARE}


def _read_versions(cell: Cell) -> Mapping[str, Any]:
    environment = cell.get("environment") or {}
    return {"python": environment.get("python"), **(environment.get("packages") or {}), "code": cell.get("code")}


def _read_length(cell: Cell) -> Mapping[str, Any]:
    config = cell.get("config") or {}
    per_device, is_by_steps = config.get(BATCH[0]), (config.get("max_steps") or -1) > 0
    return {
        "num_steps": cell.get("num_steps"),
        "num_examples_seen": cell.get("num_examples_seen"),
        "num_train_epochs": None if is_by_steps else config.get("num_train_epochs"),  # Trainer obeys max_steps
        "batch size": per_device and per_device * (config.get(BATCH[1]) or 1),
    }


def _read_budget(frame: str, cell: Cell) -> Mapping[str, Any]:
    if frame in ("flops", "wall_time"):
        name = "train_flops" if frame == "flops" else "train_seconds"
        value, before = cell.get(name), (cell.get("pretrained") or {}).get(name) or 0
        return {name: None if value is None else value - before}  # the budget is one of training on labels
    return _read_length(cell)


# --- rules: data


def _find_unequal_data(study: Study) -> list[Finding] | None:
    by_chain = _compare(study.completed, _read_fingerprints, by=("size", "seed"))
    found = by_chain or _compare(study.completed, lambda cell: {"test": _read_fingerprints(cell).get("test")})
    is_stated = all(_read_fingerprints(cell).get("train") for cell in study.completed)  # not the test rows alone
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
    return _gather(evidence) if chains else None


def _find_leaks(study: Study) -> list[Finding] | None:
    evidence, shared = [], study.expected.get("overlaps")
    for cell in study.completed:
        prints = _read_fingerprints(cell)
        for split in ("validation", "test"):
            if prints.get("train") and prints["train"] == prints.get(split):
                evidence.append(_see(cell, f"{split} rows", "are the training rows"))
        for splits, count in {**(shared or {}), **(cell.get("overlaps") or {})}.items():
            if count:
                evidence.append(_see(cell, splits.replace("_", " and "), f"share {count} rows"))
    # Unequal fingerprints alone do not show that no row is shared.
    counts = [{**(shared or {}), **(cell.get("overlaps") or {})} for cell in study.completed]
    is_counted = all(found and None not in found.values() for found in counts)
    return _gather(evidence) or ([] if is_counted else None)


def _find_selection_on_test(study: Study) -> list[Finding] | None:
    evidence = []
    for cell in study.completed:
        prints, metric = _read_fingerprints(cell), _config(cell, "metric_for_best_model")["metric_for_best_model"]
        if "test" in str(metric or "").replace("/", "_").split("_"):
            evidence.append(_see(cell, "metric_for_best_model", f"is {metric}"))
        if prints.get("test") and prints["test"] == prints.get("validation"):
            evidence.append(_see(cell, "validation rows", "are the test rows"))
    is_known = all(_read_fingerprints(cell) for cell in study.completed)
    return _gather(evidence) or ([] if is_known else None)


def _find_uncounted_labels(study: Study) -> list[Finding] | None:
    evidence, silent, known = [], set(), set()
    for cell in study.completed:
        num_train, num_validation, size = (cell.get(key) for key in (*NUM_LABELS, "size"))
        if None in (num_train, num_validation, size):
            silent.add(cell["arm"])
            continue
        known.add(cell["arm"])
        if num_train + num_validation > size:
            evidence.append(_see(cell, "labels", f"{num_train} + {num_validation} for a budget of {size}"))
    is_everybody = known == {item.arm for item in evidence}  # then the arms are equal, but the sizes say too little
    return _gather(evidence, "warns" if is_everybody else None) or (None if silent else [])


# --- rules: seeds and reads of the test set


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
        item = Evidence(arm, state, f"at {_where(size, seed)}")
        if state in ("diverged", "failed"):
            failed.append(item)
        elif state != "completed":
            (dropped if (size, seed) in reached else unfinished).append(item)
    findings = _gather(dropped) + _gather(failed, "warns") + _gather(unfinished, "warns")
    return findings or ([] if cells else None)


def _find_unplanned_cells(study: Study) -> list[Finding]:
    seeds, sizes = study.expected.get("seeds"), study.expected.get("sizes")
    counts = Counter((c["arm"], c.get("size"), c["seed"]) for c in study.completed if c.get("seed") is not None)
    twice, outside = [], []
    for (arm, size, seed), count in counts.items():
        if count > 1:
            twice.append(Evidence(arm, "counted twice", f"at {_where(size, seed)}"))
        if (seeds and seed not in seeds) or (sizes and size not in sizes):
            outside.append(Evidence(arm, "outside the plan", f"at {_where(size, seed)}"))
    return _gather(twice, "blocks") + _gather(outside)


def _find_single_seeds(study: Study) -> list[Finding]:
    seeds: dict[tuple, set] = defaultdict(set)
    for cell in study.completed:
        if cell.get("seed") is not None:
            seeds[cell["arm"], cell.get("size")].add(cell["seed"])
    single = [(arm, size) for (arm, size), found in seeds.items() if len(found) == 1]
    return _gather(Evidence(arm, "one seed", f"at n={size}") for arm, size in single)


def _find_repeated_reads(study: Study) -> list[Finding] | None:
    reads = [(cell, cell.get("num_test_reads")) for cell in study.completed]
    repeated = [_see(cell, "test set read", f"{count} times") for cell, count in reads if (count or 0) > 1]
    return _gather(repeated) or (None if any(count is None for _, count in reads) else [])


def _find_small_test_set(study: Study) -> list[Finding] | None:
    smallest, margin = study.expected.get("minimum_detectable_difference"), study.question.get("margin")
    if smallest is None or margin is None:
        return None
    rows = study.question.get("num_test_examples")
    detail = f"With {rows} test rows the smallest difference that can be shown is {smallest:.3g}, margin {margin:.3g}."
    return [Finding([], detail)] if smallest > margin else []


# --- rules: tuning, settings and budget


def _find_unequal_trials(study: Study) -> list[Finding] | None:
    planned = study.expected.get("trials")
    if planned is None:
        return _compare(study.trained, lambda cell: {"trials": _number_of_trials(cell)})
    counts = [(cell, _number_of_trials(cell)) for cell in study.trained]
    evidence = [
        _see(c, "trials", f"{count}, planned {planned},") for c, count in counts if count not in (None, planned)
    ]
    return _gather(evidence) or (None if any(count is None for _, count in counts) else [])


def _find_edges(study: Study) -> list[Finding] | None:
    found: dict[bool, list[Evidence]] = {False: [], True: []}
    tuned = [(cell, cell["tuning"]) for cell in study.trained if cell.get("tuning")]
    for cell, tuning in tuned:
        if tuning.get("best_at_edge"):
            item = _see(cell, "best value", f"at the edge of {tuning.get('range') or 'its range'}")
            found[bool(tuning.get("extended"))].append(item)
    is_known = bool(tuned) and all(tuning.get("best_at_edge") is not None for _, tuning in tuned)
    return _gather(found[False]) + _gather(found[True], "warns") or ([] if is_known else None)


def _find_undeclared_settings(study: Study) -> list[Finding] | None:
    schedules = study.expected.get("schedules") or {}
    skipped = () if study.frame in OWN_LENGTH else DURATION  # there the frame sets the length
    evidence = []
    for cell in study.trained:
        tuned = (cell.get("tuning") or {}).get("best") or {}
        own = (name for name in CHECKED if name in study.settings(cell["arm"]))
        for name in dict.fromkeys([*(schedules.get(cell["arm"]) or {}), *tuned, *own]):
            found, planned = _config(cell, name)[name], _planned(study, cell, name)
            if name in skipped or None in (found, planned) or (name == "max_steps" and found <= 0):
                continue  # a length given in epochs is judged by the steps taken, below
            if _differs(found, planned):
                evidence.append(_see(cell, name, f"{_show(found)}, declared {_show(planned)},"))
        evidence += _compare_steps(study, cell)
    return _gather(evidence) or ([] if schedules else None)


def _compare_steps(study: Study, cell: Cell) -> list[Evidence]:
    """Steps taken against those that the schedule asks for; fewer are fine where stopping early is declared."""
    planned = _planned(study, cell, "max_steps") or _config(cell, "max_steps")["max_steps"] or -1
    planned = int(planned)  # as text, if an experiment file declares it
    steps = cell.get("num_steps")
    if steps is None or planned <= 0 or study.frame not in OWN_LENGTH:
        return []
    may_stop = study.frame == "convergence" or _planned(study, cell, "early_stopping_patience")
    if steps == planned or (may_stop and steps < planned):
        return []
    return [_see(cell, "num_steps", f"{steps}, its schedule has {planned},")]


def _differs(found: Any, planned: Any) -> bool:
    """By more than 0.1 % if it is a number: a rate may have been written with four digits."""
    found, planned = (v[0] if isinstance(v, list | tuple) and len(v) == 1 else v for v in (found, planned))
    try:
        return abs(float(found) - float(planned)) > 1e-3 * abs(float(planned))
    except (TypeError, ValueError):  # not numbers; settings of a YAML file may be text ("true") where a run has a bool
        return str(found).casefold() != str(planned).casefold()


def _find_hand_set(study: Study) -> list[Finding]:
    untuned = dict.fromkeys(cell["arm"] for cell in study.trained if not _number_of_trials(cell))
    evidence = []
    for name in TUNABLE:
        values = {arm: study.settings(arm)[name] for arm in untuned if name in study.settings(arm)}
        if len(values) < len(untuned):
            evidence += [
                Evidence(arm, name, f"{_show(value)} by hand, without trials") for arm, value in values.items()
            ]
    return _gather(evidence)


def _find_unequal_budget(frame: str, tolerance: float, study: Study) -> list[Finding] | None:
    if study.frame != frame:
        return None
    return _compare(study.trained, partial(_read_budget, frame), by=("size", "seed"), tolerance=tolerance)


def _find_own_lengths(study: Study) -> list[Finding] | None:
    return _compare(study.trained, _read_length, by=("size", "seed")) if study.frame in OWN_LENGTH else None


def _find_unconverged(study: Study) -> list[Finding] | None:
    evidence, is_known = [], bool(study.trained)
    for cell in study.trained:
        fall, converged = _compute_late_fall(cell.get("validation_history") or []), cell.get("converged")
        if fall is not None and fall > STILL_FALLING:
            evidence.append(_see(cell, "validation loss", f"fell {fall:.1%} over the last fifth"))
        elif converged is False:
            evidence.append(_see(cell, "training", "stopped before it converged"))
        is_known = is_known and (fall is not None or converged is not None)
    return _gather(evidence, "blocks" if study.frame == "convergence" else None) or ([] if is_known else None)


def _compute_late_fall(history: Sequence[Mapping[str, float]]) -> float | None:
    """Share by which the loss fell from the last point within four fifths of the steps to the end."""
    points = sorted((point["step"], point["loss"]) for point in history if point.get("loss") is not None)
    early = [loss for step, loss in points if step <= 0.8 * points[-1][0]]
    if not early or early[-1] == 0:
        return None
    return (early[-1] - points[-1][1]) / abs(early[-1])


# --- rules: model and machine


def _find_differing(names: Sequence[str], study: Study) -> list[Finding] | None:
    """Arms that declare one of the settings may differ; the others must agree among themselves."""
    cells = [c for c in study.completed if study.is_trained(c["arm"]) or any(_config(c, *names).values())]

    def read(cell: Cell) -> dict[str, Any]:
        absent = "default" if study.is_trained(cell["arm"]) and _omits_defaults(cell) else None
        return {name: absent if value is None else value for name, value in _config(cell, *names).items()}

    plain = [cell for cell in cells if not set(names) & study.settings(cell["arm"]).keys()]
    declared = {cell["arm"] for cell in cells} - {cell["arm"] for cell in plain}
    blocking, every = _compare(plain, read) or [], _compare(cells, read)
    if not every or not declared:
        return blocking or every
    odd = declared & set(every[0].arms)
    noted = sorted(odd or ([] if blocking else declared))  # the usual value may be the declared one
    return blocking + ([Finding(noted, every[0].detail, "notes")] if noted else [])


def _find_unequal_precision(study: Study) -> list[Finding] | None:
    """Arms without a network have no precision; a trained arm that states none is not known to be equal."""
    stated = [any(name in (cell.get("config") or {}) for name in PRECISION) for cell in study.completed]
    cells = [
        c for c, is_stated in zip(study.completed, stated, strict=True) if is_stated or study.is_trained(c["arm"])
    ]
    return _compare(cells, _read_precision)


def _find_unequal_products(study: Study) -> list[Finding]:
    """What products are computed in where nobody has chosen: on a CPU that depends on the network."""
    trained = [cell for cell in study.completed if study.is_trained(cell["arm"])]
    return _compare(trained, lambda cell: {"precision": (cell.get("environment") or {}).get("precision")}) or []


def _read_pretraining(cell: Cell) -> Mapping[str, Any]:
    names = ("steps", "num_texts", "train_flops", "perplexity")
    return {name: (cell.get("pretrained") or {}).get(name) for name in names}


def _find_pretraining(study: Study) -> list[Finding]:
    """What an arm has read and spent before its first label: once for all of its cells, and charged to each."""
    pretrained = [cell for cell in study.completed if cell.get("pretrained")]
    details = []
    for arm in dict.fromkeys(cell["arm"] for cell in pretrained):
        own = [cell for cell in pretrained if cell["arm"] == arm]
        found = own[0]["pretrained"]
        shares = [cell["pretrained"]["train_flops"] / cell["train_flops"] for cell in own if cell.get("train_flops")]
        ends = dict.fromkeys(f"{end(shares):.0%}" for end in (min, max)) if shares else ()
        share = f", {' to '.join(ends)} of all FLOPs of its cells" if shares else ""
        details.append(
            f"{arm}: {found['steps']:,} steps on {found['num_texts']:,} texts without labels "
            f"({found['num_examples_seen']:,} read), {found['train_flops']:.2g} FLOPs{share}"
        )
    if not details:
        return []
    return [Finding(sorted({cell["arm"] for cell in pretrained}), "; ".join(details) + ".")]


def _find_unequal_pretraining(study: Study) -> list[Finding]:
    pretrained = [cell for cell in study.completed if cell.get("pretrained")]
    return _compare(pretrained, _read_pretraining, by=("arm",)) or []


def _find_quantized(study: Study) -> list[Finding]:
    noted, blocking = [], []
    for cell in study.completed:
        kind = _config(cell, "quantization")["quantization"]
        if kind in (None, "none"):
            continue
        is_frozen = study.arms[cell["arm"]].get("mode") in ("peft", "probe")
        is_declared = study.settings(cell["arm"]).get("quantization") == kind
        text = f"{kind}, {'declared' if is_declared else 'not declared'}, {'frozen' if is_frozen else 'not frozen'},"
        (noted if is_frozen and is_declared else blocking).append(_see(cell, "base", text))
    return _gather(blocking, "blocks") + _gather(noted)


def _find_unequal_hardware(study: Study) -> list[Finding] | None:
    return _compare(study.completed, _read_hardware, severity="blocks" if study.frame == "wall_time" else None)


def _find_impure_seconds(study: Study) -> list[Finding]:
    cells = [(cell, cell.get("train_seconds_include")) for cell in study.completed]
    return _gather(_see(cell, "train_seconds", f"include {' and '.join(parts)}") for cell, parts in cells if parts)


# --- what was not stated


def _read_predictions(cell: Cell) -> Any:
    return cell.get("has_predictions", bool(cell.get("folder"))) or None


@dataclass(frozen=True)
class Fact:
    """Something that every cell must state, and what is lost without it."""

    name: str
    severity: str
    read: Callable[[Cell], Any]
    lost: str
    is_training: bool = False  # only trained arms have it


def _find_unstated(study: Study) -> list[Finding]:
    severity = "warns" if study.frame in OWN_LENGTH else "blocks"
    lost = f"The budget frame ({study.frame}) cannot be checked."
    findings = []
    for fact in [*FACTS, Fact("length of training", severity, partial(_read_budget, study.frame), lost, True)]:
        cells = study.trained if fact.is_training else study.completed
        if silent := sorted({cell["arm"] for cell in cells if _is_silent(fact.read(cell))}):
            findings.append(Finding(silent, f"{fact.name} of {', '.join(silent)}. {fact.lost}", fact.severity))
    return findings


def _is_silent(value: Any) -> bool:
    return all(item is None for item in value.values()) if isinstance(value, Mapping) else value is None


FACTS = [
    Fact("seeds", "blocks", lambda c: c.get("seed"), "There are no pairs and no interval over seeds."),
    Fact("predictions", "blocks", _read_predictions, "No paired test can be made."),
    Fact("trials", "blocks", _number_of_trials, "A ranking may only show who was tuned more.", True),
    Fact("data", "warns", _read_fingerprints, "That all arms saw the same rows cannot be checked."),
    Fact("precision", "warns", _read_precision, "A lower precision can cost an arm its score.", True),
    Fact("hardware", "warns", _read_hardware, "Seconds and memory cannot be compared."),
    Fact("versions", "warns", _read_versions, "That one code made all scores cannot be checked."),
]

RULES: list[Rule] = [
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
    Rule(
        "unequal tuning",
        "blocks",
        "The arm with more trials wins more often.",
        _find_unequal_trials,
        "The same number of tuning trials for every trained arm.",
    ),
    Rule(
        "LR-edge",
        "blocks",
        "The optimum may be outside: no claim that this arm is worse, until its range is extended.",
        _find_edges,
        "The best value of every tuned arm lies inside its range.",
    ),
    Rule(
        "undeclared settings",
        "blocks",
        "The arm did not run as declared; a crippled opponent is easily beaten.",
        _find_undeclared_settings,
        "Every trained arm ran with the settings that were declared for it.",
    ),
    Rule("set by hand", "warns", "The other arms kept their defaults: uneven care.", _find_hand_set),
    Rule(
        "unequal training",
        "blocks",
        "The budget is said to be equal steps.",
        partial(_find_unequal_budget, "steps", 0.0),
        "The same optimizer steps, examples seen and batch size for every trained arm.",
    ),
    Rule(
        "unequal FLOPs",
        "blocks",
        "The budget is said to be equal FLOPs (within 5 %).",
        partial(_find_unequal_budget, "flops", 0.05),
        "The same training FLOPs for every trained arm, within 5 %.",
    ),
    Rule(
        "unequal training time",
        "blocks",
        "The budget is said to be equal training time (within 10 %).",
        partial(_find_unequal_budget, "wall_time", 0.10),
        "The same training time for every trained arm, within 10 %.",
    ),
    Rule(
        "different number of steps",
        "notes",
        "By design: each arm follows its own schedule.",
        _find_own_lengths,
        "The same optimizer steps, examples seen and batch size for every trained arm.",
    ),
    Rule(
        "not converged",
        "warns",
        "With a longer schedule this arm may score higher.",
        _find_unconverged,
        "No trained arm was still improving on validation when it stopped.",
    ),
    Rule(
        "different precision",
        "blocks",
        "A lower precision can cost an arm its score.",
        _find_unequal_precision,
        "The same numeric precision for every arm.",
    ),
    Rule(
        "different products",
        "notes",
        "Each network has the default for its kind and width; `settings: {bf16: false}` makes all of them float32.",
        _find_unequal_products,
    ),
    Rule(
        "pretraining on own texts",
        "notes",
        "That is what the arm is. It was made once, with one seed: that it might have come out otherwise is in no "
        "interval. Its seconds and FLOPs are in those of each cell; a budget is one of the training after it.",
        _find_pretraining,
    ),
    Rule(
        "more than one pretraining",
        "warns",
        "Cells of one arm should start from the same weights; every machine has a cache of its own.",
        _find_unequal_pretraining,
    ),
    Rule("quantized base", "notes", "Part of the arm where it is declared and frozen.", _find_quantized),
    Rule(
        "different checkpoint",
        "blocks",
        "Then the start differs, not only what is done with it.",
        partial(_find_differing, CHECKPOINT),
        "The same base checkpoint for every arm that has one.",
    ),
    Rule(
        "different inputs",
        "blocks",
        "The arms do not see the same part of a row.",
        partial(_find_differing, INPUTS),
    ),
    Rule(
        "different hardware",
        "warns",
        "No claim about cost: seconds and memory belong to a machine.",
        _find_unequal_hardware,
        "The same hardware for every cell, as far as stated.",
    ),
    Rule("training time with other work", "warns", "No claim about the cost of training.", _find_impure_seconds),
    Rule(
        "different versions",
        "blocks",
        "Another code may give another score with the same settings.",
        lambda study: _compare(study.completed, _read_versions),
        "The same code and library versions for every cell, as far as stated.",
    ),
    Rule("not stated", "blocks", "", _find_unstated),
]
