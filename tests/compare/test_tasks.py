"""A comparison of every kind of task: paired intervals of its leading score, a verdict, and a report that names it."""

import pytest
import yaml

from hftl.compare import engines, study
from hftl.errors import UserError
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
    with pytest.raises(UserError, match="metric is 'map', which is no mean over rows .* give one of f1_50"):
        study.open_study(study.StudyOptions(tmp_path / "experiment.yaml", tmp_path / "campaign", jobs=1))
