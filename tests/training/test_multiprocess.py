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
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTImageProcessorPil

from hftl.config import parse_args
from hftl.run_record import RunRecord
from hftl.training.checkpoints import find_newest
from hftl.training.run import run
from tests import tiny
from tests.networks import IMAGE_SIZE, build_network, build_tokenizer

ROOT = Path(__file__).parents[2]
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


def launch(config, command, settings, returns=0):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    path = ROOT / "accelerate_configs" / config
    command = [*LAUNCH, str(path), *command, *as_words(settings)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=180, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == returns, done.stderr[-3000:]
    return done.stdout if returns == 0 else done.stderr


def train_in_two(settings):
    return launch("multi_cpu.yaml", ["-m", "hftl", "train"], settings | {"per_device_train_batch_size": 4})


def train_alike(settings, folder):
    """The records of a run in one process and of the same one in two, whose losses and weights are the same."""
    one = run(parse_args(as_words(settings | {"per_device_train_batch_size": 8, "output_dir": folder / "one"})))
    train_in_two(settings | {"output_dir": folder / "two"})
    two = RunRecord.read(folder / "two")
    losses = [[entry["loss"] for entry in record.history if "loss" in entry] for record in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == settings["max_steps"]
    assert_same_weights(folder / "one", folder / "two")
    return one, two


@pytest.mark.slow
def test_weights_of_classes_are_the_same_in_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    settings = write_texts(tmp_path) | SETTINGS | {"mode": "full", "class_weights": '{"a": 5, "b": 1, "c": 0.2}'}
    settings |= {"max_steps": 3, "save_strategy": "no"}
    one, two = train_alike(settings, tmp_path)
    assert one.data["class_weights"] == two.data["class_weights"]


@pytest.mark.slow
def test_a_detector_is_the_same_in_two_processes(tmp_path, monkeypatch):
    """Its stock loss divides by the boxes of all processes, and waits for one that has no more images."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    rng, settings = np.random.default_rng(0), SETTINGS | {"task": "object-detection", "mode": "full"}
    for split, num_rows in (("train", 11), ("validation", 5), ("test", 5)):  # 11: one step of eight rows, one of three
        rows = []
        for index in range(num_rows):
            path = tmp_path / f"{split}-{index}.png"
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
            boxes = np.hstack([rng.uniform(0, 10, ((index + 1) % 4, 2)), np.full(((index + 1) % 4, 2), 12.0)])
            rows.append(
                {"image": str(path), "objects": {"bbox": boxes.tolist(), "category": ["a", "b", "a"][: len(boxes)]}}
            )
        settings[f"{split}_file"] = str(tiny.write_jsonl(tmp_path / f"{split}.jsonl", rows))
    settings |= {"model_name_or_path": str(tiny.write_tiny_yolos(tmp_path / "yolos")), "max_steps": 4}
    settings |= {"save_strategy": "no", "augmentation": "none"}
    train_alike(settings, tmp_path)


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
    train_in_two(
        settings | {"output_dir": two, "resume_from_checkpoint": one / "checkpoint-9", "allow_change": "true"}
    )
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


def write_dialogues(folder):
    """What a language model learns from: a prompt and what follows."""
    tiny.write_tiny_llama(folder / "llama")
    words = {f"{split}_file": str(tiny.write_jsonl(folder / f"{split}.jsonl", tiny.make_completions(num_rows, seed)))
             for seed, (split, num_rows) in enumerate(NUM_ROWS.items())}  # fmt: skip
    return words | {"model_name_or_path": str(folder / "llama"), "task": "causal-lm"}


WRITERS = {"texts": write_texts, "images": write_images, "dialogues": write_dialogues}
CASES = [(kind, mode) for kind in WRITERS for mode in ("full", "peft", "scratch")]
DIVISIONS = {"two": (4, 1), "accumulated": (4, 2)}  # rows of a micro-batch in a process, micro-batches of a step


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """Folders of the same runs: in one process, in one that accumulates, and all of them in one start of two."""
    folder = tmp_path_factory.mktemp("divided")
    commands, folders = [], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        for kind, mode in CASES:
            (folder / kind).mkdir(exist_ok=True)
            settings = WRITERS[kind](folder / kind) | SETTINGS | {"mode": mode, "max_steps": 7, "save_strategy": "no"}
            settings |= {"head_init": "auto"} if kind == "dialogues" else {}
            made = {name: folder / kind / f"{mode}-{name}" for name in ("whole", *DIVISIONS)}
            folders[kind, mode] = made
            run(parse_args(as_words(settings | {"per_device_train_batch_size": 8, "output_dir": made["whole"]})))
            small = settings | {"per_device_train_batch_size": 4}
            run(parse_args(as_words(small | {"gradient_accumulation_steps": 2, "output_dir": made["accumulated"]})))
            commands.append(as_words(small | {"output_dir": made["two"]}))
        (folder / "runs.json").write_text(json.dumps(commands))
        launch("multi_cpu.yaml", ["tests/training/many_runs.py", str(folder / "runs.json")], {})
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_a_step_is_the_same_however_it_is_divided(divided, kind, mode, division):
    """The seventh step is in the second epoch; the sixth has a single row, for which accumulation has nothing left."""
    folders = divided[kind, mode]
    losses = [[e["loss"] for e in RunRecord.read(folders[n]).history if "loss" in e] for n in ("whole", division)]
    assert len(losses[0]) == 7
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-6, rtol=1e-6)
    (file,) = (path.name for path in folders["whole"].glob("*.safetensors"))
    first, second = (load_file(folders[name] / file) for name in ("whole", division))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-6, rtol=1e-6, msg=key)


@pytest.mark.slow
def test_one_of_two_processes_is_told_to_stop_and_both_save_and_go_on(texts, tmp_path, monkeypatch):
    """The launcher ends with 1 and names the code of the process; the record says that the run was interrupted."""
    _, two, _ = texts
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    settings = yaml.safe_load((two / "config.yaml").read_text()) | {"use_cpu": "true", "output_dir": tmp_path / "run"}
    (tmp_path / "runs.json").write_text(json.dumps([as_words(settings)]))
    command = ["tests/training/many_runs.py", str(tmp_path / "runs.json")]
    message = launch("multi_cpu.yaml", [*command, "--end", "SIGTERM", "3"], {}, returns=1)
    assert (
        message.count("hftl: Stopped after step 4 of 11; a checkpoint is saved. Go on with the same launch and:") == 1
    )
    assert "exitcode  : 75" in message
    assert RunRecord.read(tmp_path / "run").status == "interrupted"
    rest = as_words(settings | {"resume_from_checkpoint": "true"})
    (tmp_path / "runs.json").write_text(json.dumps([rest]))
    launch("multi_cpu.yaml", command, {})
    first, second = read_weights(two), read_weights(tmp_path / "run")
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert RunRecord.read(tmp_path / "run").cost["num_steps"] == 11


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_with_a_message(texts, tmp_path, monkeypatch):
    _, two, _ = texts
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    settings = yaml.safe_load((two / "config.yaml").read_text()) | {"use_cpu": "true", "output_dir": tmp_path / "run"}
    (tmp_path / "runs.json").write_text(json.dumps([as_words(settings | {"save_steps": 2})]))
    command = ["tests/training/many_runs.py", str(tmp_path / "runs.json"), "--end", "SIGKILL", "3"]
    message = launch("multi_cpu.yaml", command, {}, returns=1)
    assert "rank      : 1" in message and "Signal 9 (SIGKILL)" in message
    newest, reasons = find_newest(tmp_path / "run")
    assert newest.name == "checkpoint-2" and not reasons
