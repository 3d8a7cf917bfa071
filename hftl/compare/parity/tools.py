"""What the rules of parity share: evidence gathered into findings, cells compared, fields of a cell read.

Of a field that a cell does not state a reader gives None.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hftl.compare.parity.study import Cell, Evidence, Finding, Study

DURATION = ("max_steps", "num_train_epochs")
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
CHECKPOINT = ("model_name_or_path", "model_revision")
INPUTS = ("max_length", "image_size", "text_columns", "image_column", "label_column")
PRECISION = ("bf16", "fp16", "tf32", "dtype")
HARDWARE = ("cpu", "device", "num_devices", "num_threads", "num_workers")


def gather(evidence: Iterable[Evidence], severity: str | None = None) -> list[Finding]:
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


def compare_cells(
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
        usual = next((f" against {show(value)}" for key, value in values.items() if key not in odd), "")
        evidence += [see(cells[index], field, f"{show(values[index])}{usual}") for index in sorted(odd)]
    return gather(evidence, severity) or (None if silent or not cells else [])


def show(value: Any) -> str:
    """A value in the words of a report."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def see(cell: Cell, field: str, text: str) -> Evidence:
    """What was seen in a cell, and at which size and seed."""
    return Evidence(cell["arm"], field, f"{text} at {say_where(cell.get('size'), cell.get('seed'))}")


def say_where(size: Any, seed: Any) -> str:
    """The place of a cell in the ladder."""
    return f"n={size}, seed {seed}"


def take_settings(cell: Cell, *names: str) -> dict[str, Any]:
    """These settings of a cell; None where it states none."""
    config = cell.get("config") or {}
    return {name: config.get(name) for name in names}


def omits_defaults(cell: Cell) -> bool:
    """A run of hftl records what differs from the defaults: there, what is absent is known, elsewhere it is not."""
    return "hftl" in ((cell.get("environment") or {}).get("packages") or {})


def count_trials(cell: Cell) -> int | None:
    """None when not stated; `tuning: None` states that there was none."""
    if "tuning" not in cell:
        return None
    return (cell["tuning"] or {}).get("trials") if cell["tuning"] else 0


def find_planned(study: Study, cell: Cell, name: str) -> Any:
    """The value which the cell should have by its arm's settings, else by tuning, else by its arm's defaults."""
    schedule = (study.expected.get("schedules") or {}).get(cell["arm"]) or {}
    for source in (study.settings(cell["arm"]), (cell.get("tuning") or {}).get("best") or {}, schedule):
        # Epochs that are declared replace the default steps, and the other way round.
        if name in source or (name in DURATION and any(other in source for other in DURATION)):
            value = source.get(name)
            sizes = (cell.get("size"), str(cell.get("size")))  # keys of JSON are text
            return next((value[s] for s in sizes if s in value), None) if isinstance(value, Mapping) else value
    return None


def read_fingerprints(cell: Cell) -> Mapping[str, Any]:
    """Of its rows, by split."""
    return cell.get("data_fingerprints") or {}


def read_precision(cell: Cell) -> Mapping[str, Any]:
    """What its settings say of bits, each in one spelling."""
    config = cell.get("config") or {}
    if not any(name in config for name in PRECISION) and not omits_defaults(cell):
        return {}
    dtype = str(config.get("dtype") or "float32").removeprefix("torch.")
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    return {name: bool(config.get(name)) for name in PRECISION[:3]} | {"dtype": names.get(dtype, dtype)}


def read_hardware(cell: Cell) -> Mapping[str, Any]:
    """Device, processes and threads."""
    return {name: (cell.get("environment") or {}).get(name) for name in HARDWARE}


def read_versions(cell: Cell) -> Mapping[str, Any]:
    """Python, packages and the code of hftl."""
    environment = cell.get("environment") or {}
    return {"python": environment.get("python"), **(environment.get("packages") or {}), "code": cell.get("code")}


def read_length(cell: Cell) -> Mapping[str, Any]:
    """How long it was trained, and in which batches."""
    config = cell.get("config") or {}
    per_device, is_by_steps = config.get(BATCH[0]), (config.get("max_steps") or -1) > 0
    return {
        "num_steps": cell.get("num_steps"),
        "num_examples_seen": cell.get("num_examples_seen"),
        "num_train_epochs": None if is_by_steps else config.get("num_train_epochs"),  # Trainer obeys max_steps
        "batch size": per_device and per_device * (config.get(BATCH[1]) or 1),
    }


def read_budget(frame: str, cell: Cell) -> Mapping[str, Any]:
    """What the frame holds equal."""
    if frame in ("flops", "wall_time"):
        name = "train_flops" if frame == "flops" else "train_seconds"
        value, before = cell.get(name), (cell.get("pretrained") or {}).get(name) or 0
        return {name: None if value is None else value - before}  # the budget is one of training on labels
    return read_length(cell)
