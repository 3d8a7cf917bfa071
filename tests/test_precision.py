"""Products in bfloat16 on a CPU: where they are chosen, and what stays in float32."""

import pytest
import torch

from hftl import precision
from hftl.config import parse_args
from hftl.precision import choose_autocast, describe_precision
from tests.networks import build_network
from tests.test_trainer import build_rows, build_trainer


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """Function: what is chosen with these flags, for a network that is `width` wide."""
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: True)

    def start(*flags, name="bert", width=384, mode="full"):
        network = build_network(name)
        network.config.hidden_size = width
        words = ["--dataset", "x", "--output_dir", str(tmp_path), "--use_cpu", *flags]
        return choose_autocast(parse_args(words, mode=mode), network)

    return start


def test_a_wide_network_is_trained_in_bfloat16_where_the_processor_multiplies_it(choose, monkeypatch):
    assert choose() is torch.bfloat16 and choose(mode="peft") is torch.bfloat16
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: False)
    assert choose() is None


@pytest.mark.parametrize(
    "how",
    [{"width": 128}, {"name": "resnet"}, {"mode": "probe"}],
    ids=["narrow", "convolutions", "not trained"],
)
def test_what_does_not_gain_stays_in_float32(choose, how):
    assert choose(**how) is None


@pytest.mark.parametrize("flags", [("--bf16", "false"), ("--bf16", "true"), ("--fp16", "false")])
def test_the_user_can_choose(choose, flags):
    assert choose(*flags) is None


def test_the_launcher_can_choose(choose, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert choose() is None


def test_bf16_needs_no_other_flag_on_a_machine_without_an_accelerator(tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("needs a machine without an accelerator")
    args = parse_args(["--dataset", "x", "--output_dir", str(tmp_path), "--bf16", "true"], mode="full")
    assert args.training.bf16 and args.training.device.type == "cpu"


def test_training_multiplies_in_bfloat16_and_everything_else_is_float32(tmp_path):
    network, seen = build_network("bert"), {True: set(), False: set()}
    network.get_submodule("bert.encoder.layer.0.output.dense").register_forward_hook(
        lambda module, inputs, output: seen[module.training].add(output.dtype)
    )
    trainer = build_trainer(tmp_path, "bert", network, build_rows("bert"), autocast=torch.bfloat16, max_steps=2)
    trainer.train()
    kept = trainer.predict_rows(build_rows("bert"))
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} <= {torch.float32}
    assert all(loss.dtype == torch.float32 for loss in trainer.loss.parts) and kept.dtype == "float32"
    assert describe_precision(trainer.args, trainer.autocast) == "bfloat16 autocast, evaluation float32"
