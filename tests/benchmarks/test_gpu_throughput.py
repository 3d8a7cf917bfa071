"""The benchmark of one GPU, on a CPU: the same code over tiny networks. What needs a GPU is its numbers."""

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import gpu_throughput  # noqa: E402
import llama_training  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(en|dis)able` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]
SIDES = {
    "llama": ["stock", "ours", "ours, checkpoints"],
    "bert": ["ours", "stock, same batch, bf16", "stock, defaults", "ours, no worker", "data-free"],
    "vit": ["ours", "stock, 8 workers", "stock, no worker", "data-free"],
}


def run_main(tmp_path, monkeypatch, *words):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    common = ["--config", "tiny", "--repeats", "1", "--output", str(tmp_path / "r.json")]
    code = gpu_throughput.main([*common, *words])
    content = json.loads((tmp_path / "r.json").read_text())
    assert json.loads((tmp_path / "out" / "r.json").read_text()) == content
    return code, content


@pytest.mark.slow
@pytest.mark.parametrize("part", SIDES)
def test_every_side_of_a_part_is_measured(part, tmp_path, monkeypatch):
    code, content = run_main(tmp_path, monkeypatch, "--parts", part, "--commit", "abc")
    records = content["parts"][part]
    assert [record["side"] for record in records] == SIDES[part] and content["commit"] == "abc"
    for record in records:
        if part == "vit" and "stock" in record["side"] and importlib.util.find_spec("torchvision") is None:
            assert code == 1 and "torchvision" in record["error"]
            continue
        assert record["status"] == "completed", record["error"]
        assert record["tokens_per_second"] > 0 and record["mfu"] is None
        assert content["median_tokens_per_second"][part][record["side"]] == record["tokens_per_second"]
    if part == "llama":
        assert all(record["loss_after"] < record["loss_before"] for record in records)


@pytest.mark.slow
def test_a_side_that_fails_or_is_late_leaves_its_error_and_the_others(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no such thing")

    monkeypatch.setattr(gpu_throughput, "time_stock", fail)
    code, content = run_main(tmp_path, monkeypatch, "--parts", "bert")
    statuses = [record["status"] for record in content["parts"]["bert"]]
    assert code == 1 and statuses == ["completed", "failed", "failed", "completed", "completed"]
    assert content["parts"]["bert"][1]["error"] == "ValueError: no such thing"
    code, content = run_main(tmp_path, monkeypatch, "--parts", "llama", "--max_seconds", "0")
    assert code == 1 and content["parts"]["llama"][0]["error"].startswith("TimeoutError: not done")


def test_a_side_that_is_not_begun_in_time_is_no_failure_of_its_own(monkeypatch, tmp_path):
    sides = [("first", lambda: time.sleep(0.05) or {}), ("second", dict), ("third", dict)]
    monkeypatch.setitem(gpu_throughput.PARTS, "bert", lambda *args: iter(sides))
    options, written = argparse.Namespace(config="tiny", repeats=1), []
    gpu_throughput.run_part("bert", options, time.monotonic() + 0.04, written.append)
    records = written[-1]
    assert [record["side"] for record in records] == ["first", "second", "third"]
    assert records[0]["error"].startswith("TimeoutError: not done") and records[0]["status"] == "failed"
    assert [record["error"] for record in records[1:]] == ["not run: time"] * 2


def test_a_timeout_inside_of_no_grad_leaves_gradients_on():
    for _ in range(100):
        with pytest.raises(TimeoutError), gpu_throughput.limited(0.01):
            while True:
                with torch.no_grad():
                    pass
        assert torch.is_grad_enabled()


def test_both_losses_of_the_llama_are_the_same():
    shape, case, device = gpu_throughput.SHAPES["tiny"], gpu_throughput.CASES["8b-lora"], gpu_throughput.find_device()
    trainee = llama_training.build_trainee(shape, case, device, checkpointing=False)
    batch = llama_training.draw_batch(trainee, 32)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in trainee.network.modules())
    ours = llama_training.compute_loss(trainee.network, batch)
    assert llama_training.compute_stock_loss(trainee.network, batch).item() == pytest.approx(ours.item(), rel=1e-3)


def test_flops_of_bert_base():
    found = gpu_throughput.describe_speed(100.0, 128, gpu_throughput.transformers.BertConfig())
    assert found["flops_per_token"] == 6 * 84_934_656 and found["tokens_per_second"] == 12_800
