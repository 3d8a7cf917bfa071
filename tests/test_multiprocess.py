"""Two processes train the network that one process trains, and leave one run folder."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTImageProcessorPil

from hftl.config import parse_args
from hftl.run import run
from tests.networks import IMAGE_SIZE, build_network, build_tokenizer

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
NUM_ROWS = {"train": 41, "validation": 13, "test": 11}  # 41: five steps of eight rows and one of a single row
# Plain gradient descent: Adam would hide a gradient of the wrong scale, and so would clipping.
SETTINGS = {
    "head_init": "random",
    "optim": "sgd",
    "learning_rate": 0.02,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 0,
    "max_steps": 11,  # of six an epoch
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 9,
    "per_device_eval_batch_size": 3,
    "disable_tqdm": "true",
    "report_to": "none",
    "use_cpu": "true",
}


def write_texts(folder):
    """Texts of 2 to 12 words; the label is the kind of the first one."""
    rng = np.random.default_rng(0)
    words = {}
    for split, num_rows in NUM_ROWS.items():
        path = folder / f"{split}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for index in range(num_rows):
                ids = rng.integers(1, 40, rng.integers(2, 13))
                writer.writerow([" ".join(f"w{i}" for i in ids), "abc"[index % 3]])
        words[f"{split}_file"] = str(path)
    build_network("bert").save_pretrained(folder / "checkpoint")
    build_tokenizer().save_pretrained(folder / "checkpoint")
    return words | {"model_name_or_path": str(folder / "checkpoint"), "task": "text-classification"}


def write_images(folder):
    rng = np.random.default_rng(0)
    for split, num_rows in NUM_ROWS.items():
        for index in range(num_rows):
            path = folder / "images" / split / "abc"[index % 3] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(path)
    build_network("vit").save_pretrained(folder / "checkpoint")
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ViTImageProcessorPil(size=size).save_pretrained(folder / "checkpoint")
    words = {"dataset": str(folder / "images"), "task": "image-classification", "augmentation": "strong"}
    return words | {"model_name_or_path": str(folder / "checkpoint")}


def as_words(settings):
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def launch(config, command, settings):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    path = ROOT / "accelerate_configs" / config
    command = [*LAUNCH, str(path), *command, *as_words(settings)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=180, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train_in_two(settings):
    return launch("multi_cpu.yaml", ["-m", "hftl", "train"], settings | {"per_device_train_batch_size": 4})


def read_losses(folder):
    state = json.loads((folder / "checkpoint-9" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def read_weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(first, second):
    first, second = read_weights(first), read_weights(second)
    assert set(first) == set(second)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-5, rtol=0, msg=key)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Folders of a run in one process and of the same one in two, and what the second printed."""
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        settings = write_texts(folder) | SETTINGS | {"mode": "full"}
        one, two = folder / "one", folder / "two"
        run(parse_args(as_words(settings | {"per_device_train_batch_size": 8, "output_dir": one})))
        printed = train_in_two(settings | {"output_dir": two})
    return one, two, printed


@pytest.mark.slow
def test_two_processes_log_the_losses_and_reach_the_weights_of_one(texts):
    one, two, _ = texts
    assert len(read_losses(one)) == 9
    np.testing.assert_allclose(read_losses(two), read_losses(one), atol=1e-5)
    assert_same_weights(one, two)
    start = build_network("bert").state_dict()
    trained = read_weights(one)
    assert max(float((trained[key] - start[key]).abs().max()) for key in trained) > 1e-2


@pytest.mark.slow
def test_two_processes_leave_one_run_with_each_row_once(texts):
    one, two, printed = texts
    assert sorted(path.name for path in two.glob("*")) == sorted(path.name for path in one.glob("*"))
    assert [path.parent for path in two.parent.rglob("run.json")].count(two) == 1
    tables = [pd.read_parquet(folder / "predictions.parquet") for folder in (one, two)]
    assert tables[1]["row_id"].tolist() == tables[0]["row_id"].tolist() == list(range(NUM_ROWS["test"]))
    assert tables[1]["prediction"].tolist() == tables[0]["prediction"].tolist()
    assert printed.count("saved in") == 1


@pytest.mark.slow
def test_two_processes_record_the_metrics_and_the_work_of_one(texts):
    first, second = (json.loads((folder / "run.json").read_text()) for folder in texts[:2])
    for split in ("validation", "test"):
        for name, value in first["metrics"][split].items():
            if isinstance(value, float):
                assert second["metrics"][split][name] == pytest.approx(value, abs=1e-5), (split, name)
    assert first["status"] == second["status"] == "completed"
    cost = [record["cost"] for record in (first, second)]
    assert cost[0]["num_examples_seen"] == 41 + 5 * 8
    # Each process counts its own share; a row left over makes them differ by one.
    assert cost[1]["num_examples_seen"] == pytest.approx(cost[0]["num_examples_seen"], abs=2)
    assert cost[1]["num_tokens_seen"] == pytest.approx(cost[0]["num_tokens_seen"], rel=0.1)


@pytest.mark.slow
def test_two_processes_go_on_in_the_middle_of_an_epoch_where_one_stopped(tmp_path, monkeypatch):
    """With images: the order of the rows and their augmentation are those of the second epoch."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    settings = write_images(tmp_path) | SETTINGS | {"mode": "full"}
    one, two = tmp_path / "one", tmp_path / "two"
    run(parse_args(as_words(settings | {"per_device_train_batch_size": 8, "output_dir": one})))
    train_in_two(settings | {"output_dir": two, "resume_from_checkpoint": one / "checkpoint-9"})
    assert_same_weights(one, two)
    before, after = read_weights(one / "checkpoint-9"), read_weights(one)
    assert (after["classifier.weight"] - before["classifier.weight"]).abs().max() > 1e-3


@pytest.mark.slow
def test_a_recipe_runs_with_the_hardware_file_of_one_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    settings = write_texts(tmp_path) | {"output_dir": tmp_path / "run", "report_to": "none"}
    printed = launch("cpu.yaml", ["recipes/probe.py"], settings)
    assert "mode probe, 41 training examples" in printed and f"saved in {tmp_path / 'run'}" in printed
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["mode"], record["model"]["head"]["init"]) == ("completed", "probe", "probe")
    assert record["model"]["num_trainable_parameters"] == 3 * 16 + 3
