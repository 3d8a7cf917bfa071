"""Products in bfloat16 on a CPU: where they are chosen, and what stays in float32."""

import pytest
import torch

from hftl.config import parse_args
from hftl.training import precision
from hftl.training.precision import choose_autocast, computing_in, describe_precision
from tests.networks import build_network
from tests.training.test_trainer import build_rows, build_trainer


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """Function: what is chosen with these flags, for a network that is `width` wide."""
    monkeypatch.setattr(precision, "has_instructions", lambda *names: "avx512_bf16" in names)

    def start(*flags, name="bert", width=384, mode="full"):
        network = build_network(name)
        network.config.hidden_size = width
        words = ["--dataset", "x", "--output_dir", str(tmp_path), "--use_cpu", *flags]
        return choose_autocast(parse_args(words, mode=mode), network)

    return start


def test_a_wide_network_is_trained_in_bfloat16_where_the_processor_multiplies_it(choose, monkeypatch):
    assert choose() is torch.bfloat16 and choose(mode="peft") is torch.bfloat16
    monkeypatch.setattr(precision, "has_instructions", lambda *names: False)
    assert choose() is None


@pytest.mark.parametrize(
    "how",
    [{"width": 128}, {"name": "resnet"}, {"mode": "probe"}],
    ids=["narrow", "convolutions", "not trained"],
)
def test_what_does_not_gain_stays_in_float32(choose, how):
    assert choose(**how) is None


def test_wide_convolutions_gain_where_images_are_classified(choose, monkeypatch):
    monkeypatch.setattr(precision, "MIN_WIDTH", 16)
    task = ("--task", "image-classification")
    assert choose(*task, name="resnet") is torch.bfloat16
    assert choose(name="resnet") is None
    assert choose(*task, "--activation_checkpointing", "true", name="resnet") is None
    assert choose(*task, "--torch_compile", "true", name="resnet") is None
    monkeypatch.setattr(precision, "MIN_WIDTH", 17)
    assert choose(*task, name="resnet") is None


def test_depthwise_convolutions_are_computed_and_differentiated_in_float32():
    inputs = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    depthwise, plain = torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 8, 1, groups=2)
    with computing_in("cpu", torch.bfloat16):
        found = depthwise(inputs)
        assert plain(inputs).dtype == torch.conv2d(input=inputs, weight=plain.weight, groups=2).dtype == torch.bfloat16
        assert depthwise(inputs.bfloat16()).dtype == torch.float32
    wanted = depthwise(inputs)
    assert torch.equal(found, wanted)
    for output in (found, wanted):
        output.square().sum().backward()
    assert depthwise.weight.grad.dtype == inputs.grad.dtype == torch.float32
    assert plain(inputs).dtype == torch.float32


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


def test_convolutions_are_trained_so_and_evaluated_in_float32(tmp_path):
    network, seen = build_network("efficientnet"), {True: [], False: []}
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, _, output: seen[m.training].append((m.groups > 1, output.dtype)))
    rows = build_rows("efficientnet")
    trainer = build_trainer(tmp_path, "efficientnet", network, rows, autocast=torch.bfloat16, max_steps=1)
    trainer.train()
    trainer.predict_rows(rows)
    assert set(seen[True]) == {(True, torch.float32), (False, torch.bfloat16)}
    assert set(seen[False]) == {(True, torch.float32), (False, torch.float32)}
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} <= {torch.float32}
