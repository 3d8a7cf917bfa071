"""What came out? Reads the records and predictions of a campaign's cells and writes `results.json` and
`results.parquet`, from which every report is made.

It must not run or train anything, and computes each score from stored predictions only once.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from hftl.compare.budget import plan_steps
from hftl.compare.campaign import Campaign, list_cell_folders, read_sessions
from hftl.compare.cells import CELL_FILE, compute_key
from hftl.compare.curve_report import draw_curves
from hftl.compare.experiment import FRAMES
from hftl.compare.parity import check_parity
from hftl.compare.plan import list_cells
from hftl.compare.stats import alpha_at_look, score_interval
from hftl.compare.tune import interpolate
from hftl.compare.verdict import compare_pair, finish_pairs, overall_verdict
from hftl.cost.energy import estimate_energy
from hftl.cost.ledger import BUCKETS
from hftl.cost.prices import Prices, load_prices, price_cell
from hftl.errors import UserError
from hftl.metrics.base import SHARE, Spread
from hftl.metrics.power import EXPECTED_DISAGREEMENT, minimum_detectable_difference
from hftl.records import RunRecord, read_predictions, write_atomically

RESULTS_FILE, TABLE_FILE = "results.json", "results.parquet"
SCHEMA = 2
NUM_BINS = 10  # of the reliability diagram
STORED_PRECISION = 1e-3  # probabilities are stored as float32: two that differ beyond it are a tie there
LEAK = 0.01  # share of validation or test inputs that train has as well


@dataclass(frozen=True)
class Finished:
    """A finished cell as it lies on disk."""

    arm: str
    size: int
    seed: int
    role: str
    folder: Path
    key: str
    code: str
    record: RunRecord

    @property
    def is_final(self) -> bool:
        return self.role == "final" and self.record.status == "completed"


def read_cells(folder: Path) -> list[Finished]:
    """Every finished cell of a campaign folder."""
    cells = []
    for path in list_cell_folders(folder):
        content = json.loads((path / CELL_FILE).read_text(encoding="utf-8"))
        names = ("arm", "size", "seed", "role", "key", "code")
        cells.append(Finished(**{name: content[name] for name in names}, folder=path, record=RunRecord.read(path)))
    return cells


def write_results(
    campaign: Campaign, chosen: dict[tuple[str, int], dict[str, Any]], tuned: dict[str, Any], command: str
) -> dict[str, Any]:
    """Compute everything that the report shows from what the campaign folder holds, and write it there."""
    experiment, facts = campaign.experiment, campaign.facts
    planned = list_cells(experiment, facts.modality, chosen)
    keys = {compute_key(cell, facts.fingerprint): cell for cell in planned}
    everything = read_cells(campaign.folder)
    cells = [cell for cell in everything if cell.role == "tuning" or cell.key in keys]
    prices = load_prices(None, experiment.prices)
    rows = [describe_cell(cell, campaign, prices) for cell in cells]
    finals = {(cell.arm, cell.size, cell.seed): cell for cell in cells if cell.is_final}
    scores = {place: Scores.read(cell, experiment.metric, campaign.score.by_row) for place, cell in finals.items()}
    question = describe_question(campaign, tuned)
    summary = summarize(campaign, scores, rows)
    pairs = compare_arms(campaign, scores)
    cost = add_up(campaign, rows, summary, prices)
    parity = judge_parity(campaign, cells, rows, question, tuned)
    curves = compute_curves(campaign, scores)
    results = {
        "schema": SCHEMA,
        "name": experiment.name,
        "date": date.today().isoformat(),
        "command": command,
        "question": question,
        "arms": [describe_arm(arm, cells) for arm in experiment.arms],
        "sizes": list(experiment.sizes),
        "seeds": list(experiment.seeds),
        "cells": rows,
        "summary": summary,
        "pairs": pairs,
        **curves,
        "verdict": overall_verdict(
            pairs,
            summary,
            curves["curves"],
            parity,
            cost,
            question,
            roles={arm.name: arm.kind.role for arm in experiment.arms},
            titles={arm.name: arm.title for arm in experiment.arms},
        ),
        "parity": parity,
        "cost": cost,
        "test_reads": count_test_reads(rows),
        "missing": [
            {"arm": cell.arm, "size": cell.size, "seed": cell.seed}
            for key, cell in keys.items()
            if key not in {other.key for other in cells}
        ],
        "failures": [
            {name: row[name] for name in ("arm", "size", "seed", "status", "error")}
            for row in rows
            if row["status"] != "completed"
        ],
        **describe_errors(campaign, finals),
        "environment": cells[0].record.environment if cells else {},
    }
    text = json.dumps(_finite(results), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(campaign.folder / RESULTS_FILE, text.encode())
    write_table(campaign.folder, rows)
    return json.loads(text)


@dataclass(frozen=True)
class Scores:
    """What one cell scored on the test set.

    Attributes:
        score: as in `run.json`; the mean of `by_row` where that is undefined, as a correlation with a constant is.
        by_row: [N], how the score varies over new rows; see `hftl.metrics.base.Score`.
    """

    score: float
    by_row: np.ndarray

    @classmethod
    def read(cls, cell: Finished, metric: str, spread: Spread) -> "Scores":
        """From the record and the stored predictions, which must agree."""
        score, by_row = cell.record.metrics["test"][metric], spread(read_predictions(cell.folder))
        mean = float(by_row.mean())
        if score is None or math.isnan(score):
            return cls(mean, by_row)
        if not math.isclose(mean, score, rel_tol=STORED_PRECISION, abs_tol=STORED_PRECISION):
            raise UserError(
                f"{cell.folder}: the stored predictions give {metric} {mean:.6f}, run.json says {score:.6f}. "
                "One of the two files was changed; remove the folder and run the cell again."
            )
        return cls(score, by_row)


def describe_cell(cell: Finished, campaign: Campaign, prices: Prices) -> dict[str, Any]:
    """A row of the table of cells."""
    record, split = cell.record, "test" if cell.role == "final" else "validation"
    metrics = {k: v for k, v in record.metrics.get(split, {}).items() if isinstance(v, (int, float)) or v is None}
    cost = record.cost
    environment = record.environment
    num_devices = environment.get("num_devices", 1)
    energy = estimate_energy(
        cost.get("wall_seconds", 0.0),
        environment.get("device", "cpu"),
        environment.get("num_threads", 1),
        prices,
        num_devices=num_devices / campaign.cells_per_device,
    )
    names = ("wall_seconds", *(f"{bucket}_seconds" for bucket in BUCKETS), "train_flops", "peak_memory_bytes")
    return {
        "arm": cell.arm,
        "size": cell.size,
        "seed": cell.seed,
        "role": cell.role,
        "status": record.status,
        "score": metrics.get(campaign.experiment.metric),
        "metrics": metrics,
        "num_train_examples": record.data.get("num_train_examples"),
        "num_validation_examples": record.data.get("num_validation_examples"),
        **{name: cost.get(name) for name in (*names, "num_examples_seen", "num_steps", "artifact_bytes")},
        "spent_share": record.spent_seconds / cost["wall_seconds"] if cost.get("wall_seconds") else 1.0,
        "energy_kwh": energy.kwh,
        "energy_kind": energy.kind,
        **price_cell(cost | {"num_labels": cell.size}, environment, num_workers=campaign.num_workers, prices=prices),
        "folder": cell.folder.name,
        "key": cell.key,
        "error": record.error,
    }


def describe_question(campaign: Campaign, tuned: dict[str, Any]) -> dict[str, Any]:
    """What was asked, in the words of the experiment file."""
    experiment, facts = campaign.experiment, campaign.facts
    checkpoints = sorted(
        {a.settings["model_name_or_path"] for a in experiment.arms if "model_name_or_path" in a.settings}
    )
    trials = experiment.trials
    tuning = (
        f"Every trained arm had {trials} trials on a chain that is not evaluated, judged on validation rows."
        if trials
        else "Nothing was tuned: every arm ran with its defaults."
    )
    return {
        "task": experiment.data.get("task", "text-classification"),
        "data": experiment.data.get("dataset") or experiment.data.get("train_file"),
        "checkpoint": ", ".join(checkpoints),
        "metric": experiment.metric,
        "greater_is_better": campaign.score.greater_is_better,
        "margin": experiment.margin,
        "alpha": experiment.alpha,
        "looks": list(experiment.looks),
        "num_test_examples": facts.num_rows["test"],
        "minimum_detectable_difference": minimum_detectable_difference(facts.num_rows["test"], EXPECTED_DISAGREEMENT),
        "num_classes": len(facts.label_names),
        "label_names": list(facts.label_names),
        "validation_fraction": experiment.validation_fraction,
        "budget": {"frame": experiment.frame, "sentence": FRAMES[experiment.frame]},
        "reference": experiment.reference,
        "trials": trials,
        "tuning_sentence": tuning,
        "tuning": tuned,
    }


def describe_arm(arm: Any, cells: Sequence[Finished]) -> dict[str, Any]:
    """An arm and the size of its network."""
    own = [cell.record for cell in cells if cell.arm == arm.name and cell.record.status == "completed"]
    model = own[-1].model if own else {}
    return {
        "name": arm.name,
        "title": arm.title,
        "mode": arm.mode,
        "role": arm.kind.role.value,
        "settings": arm.settings,
        "num_parameters": model.get("num_parameters"),
        "num_trainable_parameters": model.get("num_trainable_parameters"),
        "file_bytes": (own[-1].cost.get("artifact_bytes") or None) if own else None,
    }


def common_seeds(scores: dict[tuple, Scores], arms: Sequence[str], size: int, seeds: Sequence[int]) -> list[int]:
    """The chains on which all of the arms are finished."""
    return [seed for seed in seeds if all((arm, size, seed) in scores for arm in arms)]


def summarize(campaign: Campaign, scores: dict[tuple, Scores], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, interval and mean cost of each arm at each size."""
    entries = []
    for arm in campaign.experiment.arms:
        for size in campaign.experiment.sizes:
            seeds = common_seeds(scores, [arm.name], size, campaign.experiment.seeds)
            if not seeds:
                continue
            own = [scores[arm.name, size, seed] for seed in seeds]
            values = np.array([entry.score for entry in own])
            by_row = np.stack([entry.by_row for entry in own])
            interval = score_interval(by_row, campaign.score.bounds, campaign.experiment.alpha)
            costs = [
                row
                for row in rows
                if (row["arm"], row["size"], row["role"]) == (arm.name, size, "final") and row["status"] == "completed"
            ]
            entries.append(
                {
                    "arm": arm.name,
                    "size": size,
                    "num_seeds": len(seeds),
                    "mean": float(values.mean()),
                    "low": interval.low,
                    "high": interval.high,
                    "min": float(values.min()),
                    "max": float(values.max()),
                    "std": float(values.std(ddof=1)) if len(values) > 1 else None,
                    **{name: _mean(row[name] for row in costs) for name in _MEANS},
                    "money": _mean(row["compute_money"] for row in costs),
                }
            )
    return entries


_MEANS = ("wall_seconds", "train_seconds", "evaluation_seconds", "train_flops", "peak_memory_bytes")


def compare_arms(campaign: Campaign, scores: dict[tuple, Scores]) -> list[dict[str, Any]]:
    """Every pair of arms at every size; those with the reference are claimed, the others explored.

    Chance is compared with the reference alone.
    """
    experiment = campaign.experiment
    alpha = alpha_at_look(experiment.alpha, experiment.looks, len(experiment.seeds))
    arms, pairs = [arm.name for arm in experiment.arms], []
    chance = {arm.name for arm in experiment.arms if arm.is_chance}
    for size in experiment.sizes:
        for one, other in itertools.combinations(arms, 2):
            a, b = (other, one) if one == experiment.reference else (one, other)
            seeds = common_seeds(scores, [a, b], size, experiment.seeds)
            if seeds and (experiment.reference in (a, b) or not chance & {a, b}):
                rows = [np.stack([scores[arm, size, seed].by_row for seed in seeds]) for arm in (a, b)]
                pair = compare_pair(
                    a,
                    b,
                    *rows,
                    size=size,
                    margin=experiment.margin,
                    alpha=alpha,
                    greater_is_better=campaign.score.greater_is_better,
                    is_share=campaign.score.bounds == SHARE,
                )
                pairs.append(pair | {"is_primary": experiment.reference in (a, b)})
    return finish_pairs(pairs, alpha, titles={arm.name: arm.title for arm in experiment.arms})


def compute_curves(campaign: Campaign, scores: dict[tuple, Scores]) -> dict[str, Any]:
    """Curves, crossovers and label multipliers, from the errors of whole chains."""
    experiment = campaign.experiment
    is_up = campaign.score.greater_is_better
    errors = {}
    for arm in experiment.arms:
        table = np.full((len(experiment.seeds), len(experiment.sizes)), np.nan)
        for i, seed in enumerate(experiment.seeds):
            for j, size in enumerate(experiment.sizes):
                if (arm.name, size, seed) in scores:
                    score = scores[arm.name, size, seed].score
                    table[i, j] = 1 - score if is_up else score
        if not arm.is_chance and np.isfinite(table).any():
            errors[arm.name] = table
    rows = {name: _stack_errors(name, campaign, scores) for name in errors}
    roles = {arm.name: arm.kind.role for arm in experiment.arms if arm.name in errors}
    titles = {arm.name: arm.title for arm in experiment.arms}
    return draw_curves(experiment.sizes, errors, roles, rows, titles=titles, is_score=is_up)


def _stack_errors(arm: str, campaign: Campaign, scores: dict[tuple, Scores]) -> np.ndarray:
    """[S, L, N] errors of each test row, NaN where a cell is missing."""
    experiment = campaign.experiment
    own = {place: entry for place, entry in scores.items() if place[0] == arm}
    first = next(iter(own.values()))
    table = np.full((len(experiment.seeds), len(experiment.sizes), len(first.by_row)), np.nan)
    for (_, size, seed), entry in own.items():
        error = 1 - entry.by_row if campaign.score.greater_is_better else entry.by_row
        table[experiment.seeds.index(seed), experiment.sizes.index(size)] = error
    return table


def judge_parity(
    campaign: Campaign,
    cells: Sequence[Finished],
    rows: Sequence[dict[str, Any]],
    question: dict[str, Any],
    tuned: dict[str, Any],
) -> dict[str, Any]:
    """The parity contract over the finished final cells."""
    experiment = campaign.experiment
    described = [
        row | _evidence(cell, campaign, tuned) for cell, row in zip(cells, rows, strict=True) if cell.role == "final"
    ]
    if not described:
        return {"is_blocked": False, "equal": [], "flags": []}
    expected = {
        "seeds": list(experiment.seeds),
        "sizes": list(experiment.sizes),
        "arms": {arm.name: arm.kind.role for arm in experiment.arms},
        "trials": experiment.trials,
        "frame": experiment.frame,
        "schedules": {
            arm.name: {
                "max_steps": {
                    str(size): plan_steps(experiment, arm, size, campaign.facts.modality, {})
                    for size in experiment.sizes
                }
            }
            for arm in experiment.arms
            if arm.is_trained and experiment.frame == "own_schedule"
        },
        "minimum_detectable_difference": question["minimum_detectable_difference"],
    }
    arms = [
        {"name": arm.name, "role": arm.kind.role, "keeps_base": arm.kind.keeps_base, "settings": arm.settings}
        for arm in experiment.arms
    ]
    return check_parity(described, question, arms, expected=expected)


def _evidence(cell: Finished, campaign: Campaign, tuned: dict[str, Any]) -> dict[str, Any]:
    """What the contract is judged by, beyond the row of the table of cells."""
    record, experiment = cell.record, campaign.experiment
    history = [{"step": entry["step"], "loss": entry["eval_loss"]} for entry in record.history if "eval_loss" in entry]
    audit = record.data.get("audit", {})
    duplicates, sizes = audit.get("num_duplicates", {}), audit.get("num_rows", {})
    own = tuned.get(cell.arm)
    return {
        "data_fingerprints": record.data.get("fingerprints"),
        # A few equal inputs are a property of the data, reported as such; a leak is a matter of whole parts.
        "overlaps": {f"train_{s}": n if n > LEAK * sizes[s] else 0 for s, n in duplicates.items()},
        "config": record.config,
        "pretrained": record.model.get("pretrained"),
        "environment": record.environment,
        "code": cell.code,
        "validation_history": history or None,
        "num_test_reads": 1 if record.status == "completed" else 0,
        "tuning": {
            "trials": experiment.trials,
            "best_at_edge": any(found["best_at_edge"] for found in own.values()),
            "best": interpolate(own, cell.size),
        }
        if own
        else None,
    }


def add_up(
    campaign: Campaign, rows: Sequence[dict[str, Any]], summary: Sequence[dict[str, Any]], prices: Prices
) -> dict[str, Any]:
    """What the campaign cost: worker seconds by bucket, which add up to the sessions' wall time x workers, and money.

    Labels are paid for once: every arm and smaller rung of a chain uses rows of its largest rung.
    """
    sessions = read_sessions(campaign.folder)
    capacity = sum(session["wall_seconds"] * session["num_workers"] for session in sessions)
    everything = [
        (cell.role, cell.record) for cell in read_cells(campaign.folder)
    ]  # pilots and cells of earlier settings were paid for as well
    buckets = {name: sum(record.cost.get(f"{name}_seconds", 0.0) for _, record in everything) for name in BUCKETS}
    # A cell is charged for a pretraining that another one had made: once is enough here.
    buckets["train"] -= sum(record.cost.get("wall_seconds", 0.0) - record.spent_seconds for _, record in everything)
    buckets["idle"] = max(0.0, capacity - sum(buckets.values()))  # waiting, and importing libraries in the workers
    experiment = campaign.experiment
    labels = prices.label * max(experiment.sizes) * len(experiment.seeds)
    compute = sum((row["compute_money"] or 0.0) * row["spent_share"] for row in rows)
    return {
        "wall_seconds": sum(session["wall_seconds"] for session in sessions),
        "worker_seconds": capacity,
        "buckets": buckets,
        "num_workers": campaign.num_workers,
        "num_cells": len(rows),
        "money": labels + compute,
        "label_money": labels,
        "compute_money": compute,
        "energy_kwh": sum((row["energy_kwh"] or 0.0) * row["spent_share"] for row in rows),
        "energy_kind": sorted({row["energy_kind"] for row in rows}),
        "tuning_seconds": sum(record.spent_seconds for role, record in everything if role == "tuning"),
        "failed_seconds": sum(
            (row["wall_seconds"] or 0.0) * row["spent_share"] for row in rows if row["status"] != "completed"
        ),
        "prices": prices.as_dict(),
        "to_target": reach_target(campaign, summary, prices),
    }


def reach_target(campaign: Campaign, summary: Sequence[dict[str, Any]], prices: Prices) -> list[dict[str, Any]]:
    """The smallest measured size at which each arm reaches the target score, and what labels and one run cost there.

    The target is that of the experiment, else what the reference arm scores at the middle of the ladder.
    """
    experiment = campaign.experiment
    middle = experiment.sizes[len(experiment.sizes) // 2]
    means = {(entry["arm"], entry["size"]): entry for entry in summary}
    target = experiment.target
    if target is None:
        if (experiment.reference, middle) not in means:
            return []
        target = means[experiment.reference, middle]["mean"]
    is_up, entries = campaign.score.greater_is_better, []
    for arm in experiment.arms:
        reached = [
            size
            for size in experiment.sizes
            if (arm.name, size) in means and (means[arm.name, size]["mean"] >= target) == is_up
        ]
        entry: dict[str, Any] = {"arm": arm.name, "target": target, "size": min(reached, default=None)}
        labels = prices.label * min(reached) if reached else None
        compute = means[arm.name, min(reached)]["money"] if reached else None
        total = None if labels is None or compute is None else labels + compute
        entries.append(entry | {"label_money": labels, "compute_money": compute, "money": total})
    return entries


def count_test_reads(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often the test set was looked at."""
    total = sum(row["role"] == "final" and row["status"] == "completed" for row in rows)
    sentence = (
        f"The test set was read {total} times: once by each finished cell, after its training, and never to choose a "
        "setting."
    )
    return {"total": total, "per_cell": 1, "sentence": sentence}


def describe_errors(campaign: Campaign, finals: dict[tuple, Finished]) -> dict[str, Any]:
    """Per class, calibration and confusions at the largest size that has cells, for classes only."""
    experiment = campaign.experiment
    sizes = [size for size in experiment.sizes if any(place[1] == size for place in finals)]
    empty = {"per_class": None, "calibration": None, "confusion": None}
    if not sizes or campaign.facts.problem_type != "single_label_classification":
        return empty
    size = sizes[-1]
    by_arm = defaultdict(list)
    for (arm, other, _), cell in finals.items():
        if other == size:
            by_arm[arm].append(cell)
    per_class, bins = [], []
    for arm, cells in by_arm.items():
        tables = [cell.record.metrics["test"]["per_class"] for cell in cells]
        for label in campaign.facts.label_names:
            own = [table[label] for table in tables if label in table]
            if own:
                names = ("f1", "precision", "recall", "support")
                per_class.append({"arm": arm, "label": label} | {n: _mean(row[n] for row in own) for n in names})
        bins += [{"arm": arm} | entry for entry in bin_confidence([read_predictions(cell.folder) for cell in cells])]
    best = max(by_arm, key=lambda arm: np.mean([cell.record.metrics["test"]["accuracy"] for cell in by_arm[arm]]))
    counts = sum(np.array(cell.record.metrics["test"]["confusion_matrix"]) for cell in by_arm[best])
    labels = list(campaign.facts.label_names)
    return {
        "per_class": {"size": size, "rows": per_class},
        "calibration": {"size": size, "bins": bins},
        "confusion": {"size": size, "arm": best, "labels": labels, "counts": counts.tolist()},
    }


def bin_confidence(tables: Sequence[dict[str, np.ndarray]]) -> list[dict[str, float]]:
    """Mean confidence and accuracy of the rows of several cells in equal bins of confidence."""
    confidence = np.concatenate([table["probabilities"].max(1) for table in tables])
    correct = np.concatenate([table["label"] == table["prediction"] for table in tables])
    place = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        {
            "confidence": float(confidence[place == index].mean()),
            "accuracy": float(correct[place == index].mean()),
            "count": int((place == index).sum()),
        }
        for index in np.unique(place)
    ]


def write_table(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """`results.parquet`: one row a cell, metrics as columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [
        {name: value for name, value in row.items() if name != "metrics"}
        | {f"metric_{name}": value for name, value in row["metrics"].items()}
        for row in rows
    ]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(flat), buffer)
    write_atomically(folder / TABLE_FILE, buffer.getvalue().to_pybytes())


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _finite(value: Any) -> Any:
    """Plain JSON types; what is not a finite number is None."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
