"""`--lora_r`: which methods read it, and how large it can be before it says nothing more."""

import logging

import pytest
import torch

from hftl.config import ModelArguments
from hftl.errors import UserError
from hftl.models.adapters import ADAPTERS, check_adapter, describe_adapters
from hftl.models.head import head_modules
from hftl.models.modes import MODES
from hftl.tasks import TASKS
from tests.models.adapter_matrix import build_batch, train_steps
from tests.networks import build_network

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# No layer of the tiny BERT is wider than 16 on both sides; the smallest are 16 x 16, which is 256 entries.
LARGEST = dict.fromkeys(
    ("lora", "rslora", "dora", "pissa", "olora", "eva", "loha", "lokr", "hira", "miss"), 16
)  # of two factors neither can be wider
LARGEST |= {"adalora": 11, "shira": 8}  # which starts with 11 + 5 ranks; which changes 8 x (16 + 16) entries
WITHOUT_RANK = {
    "ia3",
    "vera",
    "oft",
    "boft",
    "fourierft",
    "hra",
    "ln-tuning",
    "bitfit",
    "prefix",
    "prompt",
    "p-tuning",
}


def adapt(adapter, rank, name="bert", **settings):
    """Checked, as before a run, then wrapped."""
    network = build_network(name, **({"num_key_value_heads": 1} if name == "llama" else {}))  # k, v half as wide
    args = ModelArguments(adapter=adapter, lora_r=rank, lora_alpha=4, num_virtual_tokens=3, **settings)
    check_adapter(args, network.config, TASKS["image-classification" if name == "resnet" else "text-classification"]())
    return MODES["peft"].adapt(network, args, head_modules(network, []), None if name == "resnet" else "SEQ_CLS")


def count_trained(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_of_every_method_it_is_known_whether_it_reads_the_rank():
    assert LARGEST.keys() | WITHOUT_RANK == ADAPTERS.keys()
    column = describe_adapters()[0].index("--lora_r")
    assert {row[0] for row in describe_adapters()[1:] if row[column] == "yes"} == LARGEST.keys()


@pytest.mark.parametrize("adapter", LARGEST)
def test_the_largest_rank_trains_and_the_next_one_is_refused(adapter):
    train_steps(adapt(adapter, LARGEST[adapter]), build_batch("bert"))
    message = f"bert.encoder.* has 16 inputs and 16 outputs, and with --adapter {adapter} .*"
    with pytest.raises(UserError, match=f"{message}Give --lora_r {LARGEST[adapter]} or less"):
        adapt(adapter, LARGEST[adapter] + 1)


@pytest.mark.parametrize("adapter", sorted(WITHOUT_RANK))
def test_a_method_without_a_rank_is_the_same_with_any(adapter, caplog):
    torch.manual_seed(0)
    assert count_trained(adapt(adapter, 4)) == count_trained(adapt(adapter, 5000))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hftl"):
        check_adapter(ModelArguments(adapter=adapter), build_network("bert").config, TASKS["text-classification"]())
        assert not caplog.records
        args = ModelArguments(adapter=adapter, lora_r=5000)
        check_adapter(args, build_network("bert").config, TASKS["text-classification"]())
    assert f"--lora_r 5000 has no effect: --adapter {adapter} does not read it" in caplog.text


@pytest.mark.parametrize("adapter", sorted(LARGEST.keys() - {"miss", "shira"}))
def test_a_rank_above_some_narrow_layers_is_of_use_in_the_others(adapter):
    train_steps(adapt(adapter, 9, "llama"), build_batch("llama"))


@pytest.mark.parametrize(("adapter", "limit"), [("miss", 8), ("shira", 5)])
def test_what_cannot_exceed_any_layer_is_refused_at_the_smallest(adapter, limit):
    with pytest.raises(UserError, match=f"k_proj has 16 inputs and 8 outputs.*Give --lora_r {limit} or less"):
        adapt(adapter, 9, "llama")
    assert adapt(adapter, 8, "llama", target_modules=["q_proj"])


def test_a_convolution_reads_its_whole_window():
    with pytest.raises(UserError, match="has 72 inputs and 8 outputs"):
        adapt("lora", 9, "resnet", target_modules=["stages.0.layers.0.layer.0.convolution"])
