"""A comparison of every kind of task: paired intervals of its leading score, a verdict, and a report that names it."""

import json

import numpy as np
import pytest
import yaml

from hftl.compare import engines, study
from hftl.errors import UserError
from hftl.metrics import SCORES
from hftl.metrics.base import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from hftl.report.html import write_report
from tests import test_task_contract as contract
from tests.compare.test_campaign import run_here

# What splits are cut from needs a few more rows than a contract run.
LEADING = {
    "token-classification": "entity_f1",
    "question-answering": "f1",
    "semantic-segmentation": "mean_iou",
    "seq2seq": "rougeL",
    "masked-lm": "perplexity",
    "object-detection": "f1_50",  # the first with an interval: mean average precision is no mean over rows
}


PROBLEM_TYPES = {"single": SINGLE_LABEL, "multi": MULTI_LABEL, "regression": REGRESSION}


def test_every_task_without_one_label_a_row_is_here():
    assert set(LEADING) == set(contract.TASK_CASES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("task", LEADING)
def test_a_task_is_compared(task, tmp_path, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "local", run_here)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    write_checkpoint, write_data = contract.TASK_CASES[task]
    write_checkpoint(tmp_path / "checkpoint")
    write_data(tmp_path)
    files = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    experiment = {
        "name": task,
        "model_name_or_path": str(tmp_path / "checkpoint"),
        "data": files | {"task": task},
        "arms": {"full": None, "lora": None},
        "sizes": [10],
        "seeds": 2,
        "trials": 0,
        "budget": "steps",
        "max_steps": 3,
        "allow_small_test": True,
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    options = study.StudyOptions(tmp_path / "experiment.yaml", tmp_path / "campaign", jobs=1)
    results = study.run_study(study.open_study(options), "hftl compare experiment.yaml")
    assert results["failures"] == [] and len(results["cells"]) == 4
    assert results["question"]["metric"] == LEADING[task]
    assert results["pairs"] and all(pair["low"] <= pair["difference"] <= pair["high"] for pair in results["pairs"])
    page = write_report(tmp_path / "campaign").read_text()
    assert "LoRA" in page and "Full fine-tuning" in page


def test_a_metric_without_an_interval_is_refused(tmp_path):
    write_checkpoint, write_data = contract.TASK_CASES["object-detection"]
    write_checkpoint(tmp_path / "checkpoint")
    write_data(tmp_path)
    files = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    experiment = {
        "model_name_or_path": str(tmp_path / "checkpoint"),
        "data": files | {"task": "object-detection"},
        "arms": {"full": None, "lora": None},
        "sizes": [10],
        "seeds": 2,
        "metric": "map",
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    with pytest.raises(UserError, match="metric is 'map', which has no interval over new rows; give one of f1_50"):
        study.open_study(study.StudyOptions(tmp_path / "experiment.yaml", tmp_path / "campaign", jobs=1))


def _draw_rows(kind: str, num_rows: int) -> list[dict]:
    """Texts whose words tell a class, a set of labels or a number."""
    draw = np.random.default_rng(num_rows)
    rows = []
    for _ in range(num_rows):
        words = draw.choice(["red", "green", "blue", "warm", "cold"], size=3)
        label = {
            "regression": float(np.sum(words == "warm") - np.sum(words == "cold") + draw.normal(0, 0.3)),
            "multi": sorted({word for word in words if word in ("red", "green", "blue")}),
            "single": str(words[0]),
        }[kind]
        rows.append({"text": " ".join(words) + f" {draw.integers(1000)}", "label": label})
    return rows


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("single", "expected_calibration_error"),
        ("single", "f1_macro"),
        ("multi", "mean_average_precision"),
        ("multi", "exact_match"),
        ("multi", "f1_macro"),
        ("regression", "pearson"),
        ("regression", "spearman"),
        ("regression", "r2"),
    ],
)
def test_a_metric_that_is_no_mean_over_rows_has_intervals_and_a_verdict(kind, metric, tmp_path, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "local", run_here)
    for split, num_rows in (("train", 120), ("test", 80)):
        text = "".join(json.dumps(row) + "\n" for row in _draw_rows(kind, num_rows))
        (tmp_path / f"{split}.jsonl").write_text(text)
    experiment = {
        "data": {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
        | {"task": "text-classification", "problem_type": PROBLEM_TYPES[kind]},
        "arms": {"majority": None, "tfidf": None},
        "sizes": [60],
        "seeds": 2,
        "metric": metric,
        "allow_small_test": True,
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    options = study.StudyOptions(tmp_path / "experiment.yaml", tmp_path / "campaign", jobs=1)
    results = study.run_study(study.open_study(options), "hftl compare experiment.yaml")
    bounds = SCORES[metric].bounds
    assert [row["arm"] for row in results["summary"]] == ["majority", "tfidf"]
    assert all(bounds[0] <= row["low"] <= row["mean"] <= row["high"] <= bounds[1] for row in results["summary"])
    (pair,) = results["pairs"]
    assert pair["low"] < pair["difference"] < pair["high"]
