"""A made-up results.json of schema 2 that looks like a real experiment: seven arms, four sizes, five seeds."""

import math
import random
import statistics
from itertools import combinations

SIZES = [128, 256, 512, 1024]
SEEDS = [1, 2, 3, 4, 5]
LABELS = ["act", "animal", "artifact", "body", "cognition", "food", "person", "plant"]
T_QUANTILE = 2.776  # 97.5 %, 4 degrees of freedom: five seeds
# name, title, mode, trained, parameters, trained parameters, error at 128 labels, exponent, floor, seconds there
ARMS = [
    ("majority", "Majority class", "majority", False, None, None, 0.79, 0.0, 0.0, 0.02),
    ("tfidf", "TF-IDF + logistic regression", "tfidf", False, None, None, 0.60, 0.17, 0.05, 0.4),
    ("probe", "Linear probe", "probe", True, 22_730_504, 17_288, 0.52, 0.13, 0.12, 6.0),
    ("lora", "LoRA", "peft", True, 23_423_706, 693_165, 0.50, 0.33, 0.08, 41.0),
    ("full", "Full fine-tuning", "full", True, 22_730_504, 22_730_504, 0.52, 0.36, 0.08, 38.0),
    ("scratch", "From scratch", "scratch", True, 22_730_504, 22_730_504, 0.73, 0.21, 0.05, 160.0),
    ("small-scratch", "Small net from scratch", "scratch", True, 1_950_344, 1_950_344, 0.70, 0.21, 0.05, 31.0),
]
ROLES = {
    "majority": "chance",
    "tfidf": "cheap",
    "probe": "frozen",
    "peft": "tuned",
    "full": "tuned",
    "scratch": "scratch",
}
METRICS = ("f1_macro", "log_loss", "expected_calibration_error")


def build_results(seed=0):
    """The whole file as a dict. The same seed gives the same numbers."""
    rng = random.Random(seed)
    cells = [_build_cell(arm, size, run, rng) for arm in ARMS for size in SIZES for run in SEEDS]
    names = [arm[0] for arm in ARMS]
    summary = [_summarize(cells, name, size) for name in names for size in SIZES]
    pairs = [_compare(cells, a, b, size) for size in SIZES for a, b in combinations(reversed(names), 2)]
    return {
        "schema": 2,
        "name": "wordnet-quick",
        "date": "2026-11-25",
        "command": "hftl compare recipes/configs/compare-wordnet-quick.yaml --seeds 1 2 3 4 5",
        "question": _build_question(),
        "arms": [_build_arm(*arm[:6]) for arm in ARMS],
        "sizes": SIZES,
        "seeds": SEEDS,
        "cells": cells,
        "summary": summary,
        "pairs": pairs,
        "curves": [_build_curve(name, summary) for name in names],
        "crossovers": [_build_crossover("scratch", "full"), _build_crossover("scratch", "tfidf")],
        "multipliers": [_build_multiplier("full", "scratch", 256, 4.1), _build_multiplier("lora", "tfidf", 256, 2.7)],
        "verdict": _build_verdict(),
        "parity": _build_parity(),
        "cost": _build_cost(cells, summary),
        "test_reads": {
            "total": len(cells),
            "per_cell": 1,
            "sentence": f"The test set was read {len(cells)} times: once by each finished cell, never while training "
            "or tuning.",
        },
        "missing": [],
        "failures": [],
        "per_class": {"size": SIZES[-1], "rows": _build_per_class(rng)},
        "calibration": {"size": SIZES[-1], "bins": _build_bins(rng)},
        "confusion": {"size": SIZES[-1], "arm": "lora", "labels": LABELS, "counts": _build_confusion(rng)},
        "environment": {
            "python": "3.11.7",
            "platform": "Linux 6.1.0 x86_64",
            "cpu": "AMD EPYC 9B14",
            "num_threads": 1,
            "device": "cpu",
            "packages": {"hftl": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2"},
            "git_commit": "df81d58aa4d1f0a5a7f2f9c5f3b1f7c9f4d2e611",
        },
    }


def build_partial_results(seed=0):
    """The same experiment half-way: one seed, two sizes, some arms, and none of the parts that need more."""
    results = build_results(seed)
    for key in ("curves", "crossovers", "multipliers"):
        results[key] = []
    for key in ("per_class", "calibration", "confusion"):
        results[key] = None
    results["cells"] = [cell for cell in results["cells"] if cell["seed"] == 1 and cell["size"] <= 256][:9]
    results["cells"][-1] |= {"status": "diverged", "score": None, "metrics": {}, "error": "loss became NaN at step 12"}
    done = {(cell["arm"], cell["size"]) for cell in results["cells"]}
    unknown = ("low", "high", "std", "money")
    results["summary"] = [
        row | dict.fromkeys(unknown) | {"num_seeds": 1}
        for row in results["summary"]
        if (row["arm"], row["size"]) in done
    ]
    results["pairs"] = []
    results["verdict"] = {"headline": "No answer yet", "status": "undecided", "lines": [], "next_experiment": None}
    results["cost"] = {"wall_seconds": 12.0, "buckets": {}, "money": None}
    results["missing"] = [{"arm": "full", "size": 1024, "seed": seed} for seed in SEEDS]
    results["failures"] = [{"arm": "full", "size": 256, "seed": 1, "status": "diverged", "error": "loss became NaN"}]
    return results


def _build_question():
    return {
        "task": "text-classification", "data": "bundled:wordnet", "checkpoint": "bundled:minilm-l6",
        "metric": "accuracy", "greater_is_better": True, "margin": 0.02, "alpha": 0.05, "looks": [3, 5],
        "num_test_examples": 1000, "num_classes": len(LABELS), "label_names": LABELS, "validation_fraction": 0.2,
        "budget": {"frame": "own_schedule", "sentence": "Each arm follows its own default schedule."},
        "trials": 0, "tuning_sentence": "Nothing was tuned: every arm ran with its defaults.",
    }  # fmt: skip


def _build_arm(name, title, mode, is_trained, parameters, trained):
    return {
        "name": name, "title": title, "mode": mode, "role": ROLES[mode],
        "settings": {"learning_rate": 0.0005, "num_train_epochs": 12} if is_trained else {},
        "num_parameters": parameters, "num_trainable_parameters": trained,
        "file_bytes": 4 * trained if trained else None,
    }  # fmt: skip


def _build_cell(arm, size, seed, rng):
    name, _, _, is_trained, parameters, _, error, exponent, floor, seconds = arm
    level = 1 - floor - (error - floor) * (size / 128) ** -exponent
    score = level if name == "majority" else round(level + rng.gauss(0, 0.014 * math.sqrt(128 / size) + 0.004), 3)
    train = seconds * (size / 128) ** 0.8 * rng.uniform(0.9, 1.1)
    flops = 6.0 * (parameters or 0) * size * 40 * 12 if is_trained else None
    metrics = {
        "accuracy": score,
        "f1_macro": round(score - 0.05, 4),
        "log_loss": round(2.2 * (1 - score), 4),
        "expected_calibration_error": round(rng.uniform(0.02, 0.12), 4),
    }
    return {
        "arm": name, "size": size, "seed": seed, "role": "final", "status": "completed", "score": score,
        "metrics": metrics, "num_train_examples": int(size * 0.8), "num_validation_examples": size - int(size * 0.8),
        "wall_seconds": train + 5.5, "startup_seconds": 2.6, "train_seconds": train, "evaluation_seconds": 2.1,
        "save_seconds": 0.3, "other_seconds": 0.5, "train_flops": flops, "peak_memory_bytes": 812_000_000,
        "num_examples_seen": size * 12, "num_steps": size * 12 // 32, "energy_kwh": train * 1.1e-5,
        "energy_kind": "estimated", "compute_money": train * 0.00004, "label_money": size * 0.08,
        "folder": f"cells/{name}-{size}-{seed}", "key": f"{rng.getrandbits(64):016x}", "error": None,
    }  # fmt: skip


def _summarize(cells, arm, size):
    ours = [cell for cell in cells if (cell["arm"], cell["size"]) == (arm, size)]
    scores = [cell["score"] for cell in ours]
    mean, std = statistics.fmean(scores), statistics.stdev(scores)
    half = math.hypot(T_QUANTILE * std / math.sqrt(len(scores)), 1.96 * math.sqrt(mean * (1 - mean) / 1000))
    costs = {
        name: None if ours[0][name] is None else statistics.fmean(cell[name] for cell in ours)
        for name in ("wall_seconds", "train_seconds", "train_flops", "peak_memory_bytes")
    }
    money = statistics.fmean(cell["compute_money"] for cell in ours)
    return {
        "arm": arm, "size": size, "num_seeds": len(scores), "mean": mean, "low": mean - half, "high": mean + half,
        "min": min(scores), "max": max(scores), "std": std, **costs, "money": money,
    }  # fmt: skip


def _compare(cells, a, b, size):
    scores = {arm: [cell["score"] for cell in cells if (cell["arm"], cell["size"]) == (arm, size)] for arm in (a, b)}
    deltas = [first - second for first, second in zip(scores[a], scores[b], strict=True)]
    mean = statistics.fmean(deltas)
    half = math.hypot(T_QUANTILE * statistics.stdev(deltas) / math.sqrt(len(deltas)), 0.018)
    low, high = mean - half, mean + half
    is_small = low > -0.02 and high < 0.02
    verdict = "better" if low > 0 else "worse" if high < 0 else "equivalent" if is_small else "inconclusive"
    p_value = math.erfc(abs(mean) / half * 1.96 / math.sqrt(2))
    return {
        "a": a, "b": b, "size": size, "difference": mean, "low": low, "high": high, "p_value": p_value,
        "p_holm": min(1.0, 6 * p_value), "verdict": verdict, "num_seeds": len(deltas),
        "more_seeds": 4 if verdict == "inconclusive" else None,
        "more_test_rows": 2500 if verdict == "inconclusive" else None,
        "sentence": f"{a} against {b} at {size} labels: {verdict}.", "is_primary": "full" in (a, b),
        "mcnemar_p": None,
    }  # fmt: skip


def _build_curve(arm, summary):
    points = [{"n": row["size"], "mean": row["mean"]} for row in summary if row["arm"] == arm]
    if arm in ("majority", "tfidf"):
        return {
            "arm": arm, "points": points, "fit": None, "band": [], "backtest": None,
            "refused": "The hidden size was outside the 90 % band.",
        }  # fmt: skip
    last = points[-1]["mean"]
    band = [
        {"n": n, "low": last - 0.02, "mid": last + 0.01 * k, "high": last + 0.03 + 0.01 * k}
        for k, n in enumerate((1024, 2048, 4096))
    ]
    backtest = {
        "hidden_size": 1024, "predicted_low": last - 0.02, "predicted_high": last + 0.02, "observed": last,
        "is_inside": True,
    }  # fmt: skip
    fit = {"floor": 0.08, "scale": 2.1, "exponent": 0.34}
    return {"arm": arm, "points": points, "fit": fit, "band": band, "backtest": backtest, "refused": None}


def _build_crossover(a, b):
    return {
        "a": a, "b": b, "low": 2100.0, "mid": None, "high": None, "is_censored": True, "limit": 4096,
        "sentence": f"{a} does not reach {b} at any size measured; the crossing, if there is one, lies beyond 2,100 "
        "labels, and nothing is said beyond 4,096.",
    }  # fmt: skip


def _build_multiplier(a, b, size, mid):
    return {
        "a": a, "b": b, "size": size, "mid": mid, "low": mid - 1.2, "high": mid + 1.9, "is_censored": False,
        "sentence": f"{a} with {size} labels scores what {b} needs {mid} times as many labels for "
        f"({mid - 1.2:.1f} to {mid + 1.9:.1f}).",
    }  # fmt: skip


def _build_verdict():
    return {
        "headline": "LoRA, from 256 labels on", "status": "decided",
        "lines": [
            "LoRA and full fine-tuning are the best arms from 256 labels on; the difference between them is smaller "
            "than the margin of 2 points.",
            "LoRA stores 2.8 MB where full fine-tuning stores 91 MB.",
            "From-scratch training stays below TF-IDF at every size measured.",
        ],
        "next_experiment": "2,500 more test rows would settle LoRA against full fine-tuning at 128 labels.",
    }  # fmt: skip


def _build_parity():
    flags = [
        ("warns", "Not the same number of steps", ["scratch", "full"], "scratch saw each example 2.5 times as often."),
        ("notes", "tfidf has no validation set", ["tfidf"], "Its regularization is fixed, so it trained on all rows."),
    ]
    return {
        "is_blocked": False,
        "equal": [
            "The same rows for every arm: seed s draws one chain of nested, stratified subsets.",
            "The same 1,000 test rows in the same order, read once by each cell.",
            "The same tokenizer and sequence length for every trained arm.",
        ],
        "flags": [dict(zip(("severity", "what", "arms", "detail"), flag, strict=True)) for flag in flags],
    }


def _build_cost(cells, summary):
    names = ("startup", "train", "evaluation", "save", "other")
    buckets = {name: sum(cell[f"{name}_seconds"] for cell in cells) for name in names} | {"idle": 131.0}
    reached = {arm[0]: next((r for r in summary if r["arm"] == arm[0] and r["mean"] >= 0.6), None) for arm in ARMS}
    to_target = [
        {
            "arm": arm, "target": 0.6, "size": row and row["size"], "label_money": row and row["size"] * 0.08,
            "compute_money": row and row["train_seconds"] * 0.00004,
            "money": row and row["size"] * 0.08 + row["train_seconds"] * 0.00004,
        }
        for arm, row in reached.items()
    ]  # fmt: skip
    return {
        "wall_seconds": sum(buckets.values()) / 2, "buckets": buckets, "num_workers": 2, "money": 410.2,
        "label_money": 409.6, "compute_money": 0.62, "energy_kwh": 0.193, "tuning_seconds": 0.0, "failed_seconds": 0.0,
        "prices": {"date": "2026-11-25", "currency": "USD", "label": 0.08, "compute_hour": 0.144},
        "to_target": to_target,
    }  # fmt: skip


def _build_per_class(rng):
    base = {arm[0]: 1 - arm[6] * 0.7 for arm in ARMS}
    rows = []
    for arm, level in base.items():
        for position, label in enumerate(LABELS):
            f1 = min(0.98, max(0.0, level - 0.04 * position + rng.gauss(0, 0.05)))
            f1 = (0.35 if position == 0 else 0.0) if arm == "majority" else f1
            rows.append(
                {"arm": arm, "label": label, "f1": f1, "precision": f1, "recall": f1, "support": 210 - 20 * position}
            )
    return rows


def _build_bins(rng):
    bins = []
    for arm in ARMS[1:]:
        for k in range(10):
            confidence = (k + 0.5) / 10
            accuracy = min(1.0, max(0.0, confidence - 0.12 * confidence + rng.gauss(0, 0.03)))
            bins.append({"arm": arm[0], "confidence": confidence, "accuracy": accuracy, "count": 20 * (k + 1)})
    return bins


def _build_confusion(rng):
    counts = [[rng.randrange(0, 9) for _ in LABELS] for _ in LABELS]
    for k in range(len(LABELS)):
        counts[k][k] = 150 - 14 * k
    return counts
