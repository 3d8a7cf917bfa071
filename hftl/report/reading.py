"""Is there a `results.json`, and which of its parts? Afterwards every key that the report reads exists.

A campaign that is half-way lacks parts; a report of it says so. It must not fill a gap with a number.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hftl.errors import UserError
from hftl.report.formats import is_number

RESULTS_FILE = "results.json"
SCHEMA = 2
AGAIN = "`hftl compare` with the same experiment and folder writes it anew; finished cells are not run again."

# Table -> (keys that every row must have, keys that may be missing and are None then).
TABLES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "arms": (
        ("name",),
        ("title", "mode", "role", "settings", "num_parameters", "num_trainable_parameters", "file_bytes"),
    ),
    "cells": (
        ("arm", "size", "seed"),
        (
            "role", "status", "score", "metrics", "num_train_examples", "num_validation_examples", "wall_seconds",
            "train_seconds", "train_flops", "peak_memory_bytes", "num_steps", "compute_money", "folder", "error",
        ),
    ),
    "summary": (
        ("arm", "size"),
        (
            "num_seeds", "mean", "low", "high", "min", "max", "std", "wall_seconds", "train_seconds", "train_flops",
            "peak_memory_bytes", "money",
        ),
    ),
    "pairs": (
        ("a", "b", "size"),
        (
            "difference", "low", "high", "p_value", "p_holm", "verdict", "num_seeds", "more_seeds", "more_test_rows",
            "sentence", "is_primary", "mcnemar_p",
        ),
    ),
    "curves": (("arm",), ("fit", "backtest", "refused")),
    "crossovers": ((), ("sentence",)),
    "multipliers": ((), ("sentence",)),
    "missing": (("arm", "size", "seed"), ()),
    "failures": (("arm", "size", "seed"), ("status", "error")),
}  # fmt: skip
OBJECTS: dict[str, Sequence[str]] = {
    "question": (
        "task", "data", "checkpoint", "metric", "greater_is_better", "margin", "alpha", "looks", "num_test_examples",
        "num_classes", "validation_fraction", "budget", "trials", "tuning_sentence",
    ),
    "verdict": ("headline", "status", "lines", "next_experiment"),
    "parity": ("is_blocked", "equal", "flags"),
    "cost": (
        "wall_seconds", "buckets", "num_workers", "money", "label_money", "compute_money", "energy_kwh",
        "tuning_seconds", "failed_seconds", "prices", "to_target",
    ),
    "test_reads": ("total", "per_cell", "sentence"),
    "per_class": ("size", "rows"),
    "calibration": ("size", "bins"),
    "confusion": ("size", "arm", "labels", "counts"),
    "environment": ("python", "platform", "cpu", "num_threads", "device", "packages", "git_commit"),
}  # fmt: skip
# Tables inside objects, as in TABLES.
INNER: dict[tuple[str, str], tuple[Sequence[str], Sequence[str]]] = {
    ("parity", "flags"): ((), ("severity", "what", "arms", "detail")),
    ("cost", "to_target"): (("arm",), ("target", "size", "label_money", "compute_money", "money")),
    ("per_class", "rows"): (("arm", "label"), ("f1", "precision", "recall", "support")),
    ("calibration", "bins"): (("arm",), ("confidence", "accuracy", "count")),
}
NAMES = ("arm", "a", "b", "name", "label")  # keys that must hold text
LISTS = (("verdict", "lines"), ("parity", "equal"), ("question", "looks"), ("confusion", "labels"))
MAPPINGS = (("cost", "buckets"), ("cost", "prices"), ("environment", "packages"), ("question", "budget"))


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a campaign folder's `results.json`, with every part that the report reads.

    Raises:
        UserError: The file is missing, broken, or of another schema.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.is_file():
        raise UserError(
            f"There is no {RESULTS_FILE} in {folder}; expected the folder of a comparison. Give the --output_dir of "
            "`hftl compare`, or run that first."
        )
    try:
        # Where another program wrote NaN, there is no number to show.
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is broken: {error}; expected JSON. {AGAIN}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds a {type(raw).__name__}; expected a JSON object. {AGAIN}")
    if raw.get("schema") != SCHEMA:
        raise UserError(
            f"{path} has schema {raw.get('schema')!r}; this version of hftl reads {SCHEMA}. Report with the version "
            f"that wrote it, or: {AGAIN}"
        )
    return complete(raw, path)


def complete(raw: Mapping[str, Any], path: Path | str = RESULTS_FILE) -> dict[str, Any]:
    """A copy of `raw` that has every key the report reads; values that are not there are None or empty."""
    results = {name: raw.get(name) for name in ("schema", "name", "date", "command")}
    for name, (required, optional) in TABLES.items():
        results[name] = _read_table(raw.get(name), f"{path}: {name}", required, optional)
    for name, keys in OBJECTS.items():
        value = _check(raw.get(name), dict, f"{path}: {name}")
        results[name] = dict.fromkeys(keys) | value
    for (name, key), (required, optional) in INNER.items():
        results[name][key] = _read_table(results[name][key], f"{path}: {name}.{key}", required, optional)
    for places, kind in ((LISTS, list), (MAPPINGS, dict)):
        for name, key in places:
            results[name][key] = _check(results[name][key], kind, f"{path}: {name}.{key}")
    for name in ("sizes", "seeds"):
        results[name] = _check(raw.get(name), list, f"{path}: {name}")
    for cell in results["cells"]:
        cell["metrics"] = cell["metrics"] or {}
    results["confusion"]["counts"] = _read_counts(results["confusion"], f"{path}: confusion.counts")
    return results


def _check(value: Any, kind: type, place: str) -> Any:
    """`value`, or an empty `kind` for None."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise UserError(f"{place} is a {type(value).__name__}; expected a {kind.__name__}. {AGAIN}")
    return value


def _read_table(value: Any, place: str, required: Sequence[str], optional: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for position, row in enumerate(_check(value, list, place)):
        lost = [key for key in required if not isinstance(row, dict) or row.get(key) is None]
        if not isinstance(row, dict) or lost:
            raise UserError(f"{place}[{position}] lacks {', '.join(lost) or 'its keys'}; found {row!r:.80}. {AGAIN}")
        if "size" in required and not (is_number(row["size"]) and row["size"] > 0):
            raise UserError(f"{place}[{position}].size is {row['size']!r:.40}; expected a number of labels. {AGAIN}")
        odd = [key for key in NAMES if key in required and not isinstance(row[key], str)]
        if odd:
            raise UserError(f"{place}[{position}].{odd[0]} is {row[odd[0]]!r:.40}; expected a name. {AGAIN}")
        rows.append(dict.fromkeys(optional) | row)
    return rows


def _read_counts(confusion: Mapping[str, Any], place: str) -> list[list[Any]]:
    """A square table, one row and one column for each label."""
    counts, side = _check(confusion["counts"], list, place), len(confusion["labels"])
    if counts and not (len(counts) == side and all(isinstance(row, list) and len(row) == side for row in counts)):
        raise UserError(f"{place} has {len(counts)} rows; expected a table of {side} times {side} numbers. {AGAIN}")
    return counts
