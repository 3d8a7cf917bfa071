"""The hardware files are read by accelerate itself, name hardware alone, and start what they say."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

FOLDER = Path(__file__).parents[1] / "accelerate_configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
HARDWARE_KEYS = {
    "compute_environment", "deepspeed_config", "distributed_type", "fsdp_config", "gpu_ids", "main_process_port",
    "mixed_precision", "num_machines", "num_processes", "rdzv_backend", "same_network", "use_cpu",
}  # fmt: skip


def _launch_options():
    """Every word that `accelerate launch` knows; it ignores an unknown key inside of fsdp_config without a word."""
    return {action.dest for action in launch_command_parser()._actions}


def test_there_are_eight_hardware_files():
    names = {path.stem for path in FILES}
    assert names == {"cpu", "multi_cpu", "single_gpu", "multi_gpu", "multi_node", "fsdp2", "zero2", "zero3"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_file_and_knows_every_key(path):
    config = load_config_from_file(str(path))  # an unknown key is a ValueError
    assert config.num_processes >= 1
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= _launch_options()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_hardware_file_names_no_experiment(path):
    assert set(yaml.safe_load(path.read_text())) <= HARDWARE_KEYS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_precision_is_float32_on_cpu_and_bf16_on_gpu(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == ("no" if config.use_cpu else "bf16")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_header_says_how_the_file_is_launched(path):
    assert f"accelerate launch --config_file accelerate_configs/{path.name} " in path.read_text()


@pytest.mark.slow
def test_multi_cpu_starts_two_processes_that_know_each_other(tmp_path):
    script = tmp_path / "count.py"
    script.write_text(
        "import sys\n"
        "from transformers import TrainingArguments\n"
        "args = TrainingArguments(output_dir=sys.argv[1], use_cpu='--use_cpu' in sys.argv, report_to='none')\n"
        "assert args.world_size == 2, args.world_size\n"
        "open(f'{sys.argv[1]}/{args.process_index}', 'w').write(args.mixed_precision)\n"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command = [*launcher, "--config_file", str(FOLDER / "multi_cpu.yaml"), str(script), str(tmp_path), "--use_cpu"]
    subprocess.run(command, check=True, timeout=120, stdin=subprocess.DEVNULL)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["no", "no"]
