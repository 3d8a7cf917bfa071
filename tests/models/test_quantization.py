"""Adapters over weights in 8 and 4 bits, on a CPU: what is quantized, what is trained, what plain libraries load."""

import importlib.util

import bitsandbytes
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

from hftl.config import ModelArguments, parse_args
from hftl.errors import UserError
from hftl.inference.merge import merge_run
from hftl.models.adapters import ADAPTERS, check_adapter
from hftl.models.load import load_pretrained
from hftl.models.quantization import check_quantization
from hftl.run_record import RunRecord
from hftl.tasks import TASKS
from hftl.training.run import run
from hftl.training.trainer import FineTuningTrainer
from tests import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
KINDS = {"int8": bitsandbytes.nn.Linear8bitLt, "nf4": bitsandbytes.nn.Linear4bit}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tiny.write_text_task(tmp_path_factory.mktemp("quantized"))
    tiny.write_tiny_vit(folder / "vit")
    tiny.write_image_folder(folder / "photos" / "train", 8)
    tiny.write_image_folder(folder / "photos" / "test", 3, seed=1)
    return folder


@pytest.fixture
def train(files, tmp_path, monkeypatch):
    """Function: flags -> run folder, network after training and copies of its tensors before."""

    def make(*words, modality="text"):
        seen = {}
        original = FineTuningTrainer.train

        def watch(self, *args, **kwargs):
            seen["before"] = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            seen["network"] = self.model
            return original(self, *args, **kwargs)

        monkeypatch.setattr(FineTuningTrainer, "train", watch)
        data = ["--train_file", f"{files}/train.csv", "--test_file", f"{files}/test.csv"]
        data += ["--model_name_or_path", f"{files}/bert"]
        if modality == "image":
            data = ["--task", "image-classification", "--dataset", f"{files}/photos"]
            data += ["--model_name_or_path", f"{files}/vit"]
        common = ["--output_dir", str(tmp_path / "run"), "--max_steps", "3", "--use_cpu", "--lora_r", "4"]
        run(parse_args([*data, *common, *words], mode="peft"))
        return tmp_path / "run", seen["network"], seen["before"]

    return make


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_body_is_quantized_and_what_is_trained_is_float32(kind, modality, train):
    folder, network, before = train("--quantization", kind, modality=modality)
    layers = [m for m in network.modules() if isinstance(m, KINDS[kind])]
    assert len(layers) == (13 if modality == "text" else 12)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("lora_B" in name for name in trained) and any("classifier" in name for name in trained)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and moved <= set(trained)
    norms = [p for name, p in network.named_parameters() if "norm" in name.lower()]
    assert norms and all(p.dtype == torch.float32 for p in norms)
    record = RunRecord.read(folder)
    plain = AutoModelForSequenceClassification if modality == "text" else AutoModelForImageClassification
    num_labels = len(record.data["label_names"])
    base = plain.from_pretrained(record.model["name"], num_labels=num_labels, ignore_mismatched_sizes=True)
    loaded = PeftModel.from_pretrained(base, folder)
    assert record.model["num_parameters"] == sum(p.numel() for p in loaded.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_with_other_labels_than_the_checkpoint_s_starts_anew(kind, files, train):
    """transformers 5.17 keeps the old one, whose labels are fewer."""
    network = AutoModelForSequenceClassification.from_pretrained(files / "bert", num_labels=2)
    AutoTokenizer.from_pretrained(files / "bert").save_pretrained(files / "two-labels")
    network.save_pretrained(files / "two-labels")
    folder, network, _ = train("--quantization", kind, "--model_name_or_path", f"{files}/two-labels")
    num_labels = len(RunRecord.read(folder).data["label_names"])
    weight = next(p for name, p in network.named_parameters() if "classifier" in name and p.ndim == 2)
    assert num_labels != 2 and weight.shape[0] == num_labels and weight.isfinite().all()


def test_activation_checkpointing_over_a_quantized_body_still_trains_the_adapter(train):
    _, network, before = train("--quantization", "nf4", "--gradient_checkpointing", "true")
    state = network.state_dict()
    assert all(not torch.equal(state[name], before[name]) for name in state if "lora_B" in name)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_optimizers_in_8_bits_are_a_flag(optimizer, train):
    folder, _, _ = train("--quantization", "nf4", "--optim", optimizer)
    assert RunRecord.read(folder).status == "completed"


@pytest.mark.parametrize("adapter", [name for name, entry in ADAPTERS.items() if entry.on_quantized])
def test_every_adapter_that_may_sit_on_quantized_weights_does(adapter, train):
    folder, network, before = train("--quantization", "nf4", "--adapter", adapter, "--num_virtual_tokens", "3")
    state = network.state_dict()
    moved = {name for name, value in state.items() if not torch.equal(value, before[name])}
    assert any("classifier" not in name for name in moved)
    assert RunRecord.read(folder).status == "completed"


def test_an_adapter_of_a_quantized_run_is_merged_into_the_full_weights_and_the_gap_said(train, tmp_path):
    folder, _, _ = train("--quantization", "nf4")
    report = merge_run(folder, tmp_path / "whole")
    assert report.max_difference < 1e-4 < report.quantization_gap
    assert "to the quantized network that was trained it is" in str(report)
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in network.modules())


@pytest.mark.parametrize("mode", ["full", "scratch", "probe"])
def test_rounded_weights_are_not_trained(mode):
    with pytest.raises(UserError, match="--quantization nf4 is for --mode peft: rounded weights cannot be trained"):
        check_quantization(ModelArguments(mode=mode, quantization="nf4"))


def test_without_the_package_it_says_what_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes: pip install 'hftl\[quant\]'"):
        check_quantization(ModelArguments(mode="peft", quantization="int8"))


def test_an_adapter_that_cannot_sit_on_quantized_weights_is_refused():
    args = ModelArguments(mode="peft", quantization="nf4", adapter="vera")
    with pytest.raises(UserError, match="vera cannot sit on weights in nf4. What can: lora, rslora, dora"):
        check_adapter(args, None, TASKS["text-classification"]())


def test_four_bit_weights_stay_as_they_are_through_an_evaluation(files, monkeypatch):
    """On CPUs with AVX512_BF16 bitsandbytes would pack them anew, with scales in fewer bits and without gradients."""
    args = ModelArguments(model_name_or_path=str(files / "bert"), mode="peft", quantization="nf4")
    task = TASKS["text-classification"]()
    network = load_pretrained(args, task, AutoConfig.from_pretrained(files / "bert")).network
    layers = [module for module in network.modules() if type(module).__name__ == "Linear4bit"]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    before = [layer.weight.data.clone() for layer in layers]
    with torch.no_grad():
        network.eval()(input_ids=torch.tensor([[1, 2, 3]]))
    assert all(torch.equal(old, layer.weight.data) for old, layer in zip(before, layers, strict=True))
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)
