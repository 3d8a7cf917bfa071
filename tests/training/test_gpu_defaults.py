"""What is chosen on a GPU where the user chose nothing, tested on a CPU: precision, loader processes, copies."""

import os
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hftl import config
from hftl.config import parse_args
from hftl.models.modes import MODES
from hftl.tasks import build_task
from hftl.training.precision import describe_precision
from hftl.training.settings import check_arguments, loader_defaults, set_defaults
from tests.networks import build_network


@pytest.fixture
def gpu(monkeypatch):
    """Function: does it compute in bfloat16 natively?"""

    def pretend(has_bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    return pretend


@pytest.mark.parametrize("given", [set(), {"seed"}])
@pytest.mark.parametrize("mode", ["full", "peft", "scratch", "zero-shot", "knn"])
def test_bfloat16_where_the_gpu_has_it(given, mode, gpu):
    gpu(True)
    assert config._hardware_settings(given, mode) == {"bf16": True}


@pytest.mark.parametrize("given", ["bf16", "fp16", "use_cpu"])
def test_a_choice_is_left_alone(given, gpu):
    gpu(True)
    assert config._hardware_settings({given}, "full") == {}


def test_the_choice_of_the_launcher_is_left_alone(gpu, monkeypatch):
    gpu(True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert config._hardware_settings(set(), "full") == {}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # which `accelerate launch` says where nobody chose
    assert config._hardware_settings(set(), "full") == {"bf16": True}


def test_float32_for_a_probe_and_where_bfloat16_would_be_emulated(gpu):
    gpu(True)
    assert config._hardware_settings(set(), "probe") == {}
    gpu(False)
    assert config._hardware_settings(set(), "full") == {}


def test_nothing_changes_on_a_cpu(tmp_path):
    args = parse_args(["--mode", "full", "--dataset", "x", "--output_dir", str(tmp_path)])
    if args.training.device.type == "cuda":
        pytest.skip("needs a machine without CUDA")
    set_defaults(args, MODES["full"], build_network("bert"), build_task("text-classification"), 100)
    assert not args.training.bf16 and describe_precision(args.training) == "float32"
    assert not {name for name in args.filled if name.startswith(("dataloader", "bf16"))}


@pytest.mark.parametrize(("kind", "wanted", "found"), [("cpu", 64, 32), ("cpu", 8, 8), ("cuda", 64, 64)])
def test_a_cpu_is_asked_fewer_rows_at_once(kind, wanted, found, tmp_path, monkeypatch):
    args = parse_args(["--mode", "full", "--dataset", "x", "--use_cpu", "--output_dir", str(tmp_path)])
    monkeypatch.setattr(type(args.training), "device", torch.device(kind))
    task = build_task("text-classification")
    task.eval_batch_size = wanted
    set_defaults(args, MODES["full"], build_network("bert"), task, 100)
    assert args.training.per_device_eval_batch_size == found


def test_it_has_to_be_chosen_before_training_arguments_are_made(tmp_path, monkeypatch):
    """And reaches accelerate, but not `config.yaml`."""
    monkeypatch.setattr(config, "_hardware_settings", lambda given, mode: {"use_cpu": True, "bf16": True})
    args = parse_args(["--mode", "full", "--dataset", "x", "--output_dir", str(tmp_path)])
    assert args.training.bf16 and describe_precision(args.training) == "bfloat16 autocast"
    assert not {"bf16", "use_cpu"} & set(args.resolved())
    assert Trainer(build_network("bert"), args.training).accelerator.mixed_precision == "bf16"
    late = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    late.bf16 = True
    assert Trainer(build_network("bert"), late).accelerator.mixed_precision == "no"


def test_a_flag_of_the_yaml_file_counts_as_a_choice(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(config, "_hardware_settings", lambda given, mode: seen.append((given, mode)) or {})
    (tmp_path / "run.yaml").write_text("bf16: false\nmode: probe\n")
    parse_args([str(tmp_path / "run.yaml"), "--fp16=false"])
    assert {"bf16", "fp16"} <= seen[0][0] and seen[0][1] == "probe"


@pytest.mark.parametrize(
    ("modality", "cores", "processes", "free", "expected"),
    [
        ("image", 16, 1, 2**35, 8),
        ("image", 16, 4, 2**35, 3),
        ("image", 2, 1, 2**35, 1),
        ("image", 1, 1, 2**35, 0),
        ("image", 16, 1, 2**26, 0),  # what Docker gives a container
        ("text", 16, 1, 2**35, 2),
        ("language", 16, 1, 2**35, 2),
    ],
)
def test_loader_processes_follow_the_machine(modality, cores, processes, free, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr("hftl.training.settings.shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    found = loader_defaults(SimpleNamespace(device=torch.device("cuda")), modality)
    assert found == {"dataloader_num_workers": expected, "dataloader_persistent_workers": expected > 0}
    assert loader_defaults(SimpleNamespace(device=torch.device("cpu")), modality) == {}


def test_the_default_optimizer_is_fused(tmp_path):
    assert TrainingArguments(str(tmp_path), use_cpu=True).optim == "adamw_torch_fused"


def test_fsdp_on_a_cpu_is_said_to_split_nothing(monkeypatch, caplog):
    """accelerate 1.15 makes it plain data parallelism without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_arguments(parse_args(["--model_name_or_path", "x", "--use_cpu"], mode="full"))
    assert "FSDP splits nothing on a CPU" in caplog.text
