"""On a GPU: modes train in bfloat16 over float32 weights, and what they save gives the same answers on a CPU.

    pytest -q -n 6 tests/training/test_cuda.py       # a minute; no network, no bundled checkpoints

Tiny networks, so speed and memory are not tested: benchmarks/gpu_throughput.py and qlora_70b.py measure them.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image

from hftl.config import parse_args
from hftl.metrics import compute_probabilities
from hftl.run_record import RunRecord, read_predictions
from hftl.training.run import run
from hftl.training.trainer import FineTuningTrainer
from tests import tiny

pytestmark = [
    pytest.mark.gpu,
    # Python 3.12: workers of the loader are forked beside the threads of torch and arrow.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*` is deprecated:FutureWarning"),  # transformers 5.23
    pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.*` is deprecated"),  # of libraries, with a newer torch
]
DEVICE, DEVICE_WORDS = "cuda", []
MODES = ("full", "peft", "scratch", "probe")
RATES = {"full": "2e-3", "peft": "1e-2", "scratch": "2e-3"}
# Of a probability: what 8 bits of fraction leave of logits of a few units. Heads fitted on features whose differences
# are small beside their mean, as those of a tiny random BERT are, lose more: a probe is therefore left in float32.
BFLOAT16, FITTED = 0.03, 0.15


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    tiny.write_tiny_bert(folder / "bert")
    tiny.write_tiny_vit(folder / "vit")
    tiny.write_tiny_llama(folder / "llama")
    tiny.write_text_csv(folder / "train.csv", 60)
    tiny.write_text_csv(folder / "test.csv", 12, seed=1)
    tiny.write_image_folder(folder / "photos" / "train", 16)
    tiny.write_image_folder(folder / "photos" / "test", 4, seed=1)
    tiny.write_jsonl(folder / "train.jsonl", tiny.make_completions(24))
    tiny.write_jsonl(folder / "test.jsonl", tiny.make_completions(7, seed=1))
    return folder


@pytest.fixture
def train(files, tmp_path, monkeypatch):
    """Function: kind of data, mode, flags -> record, run folder and what was seen of the first training step."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    words = {
        "text": ["--train_file", f"{files}/train.csv", "--test_file", f"{files}/test.csv"]
        + ["--model_name_or_path", f"{files}/bert"],
        "image": ["--task", "image-classification", "--dataset", f"{files}/photos"]
        + ["--model_name_or_path", f"{files}/vit"],
        "language": ["--task", "causal-lm", "--train_file", f"{files}/train.jsonl", "--test_file"]
        + [f"{files}/test.jsonl", "--model_name_or_path", f"{files}/llama"],
    }

    def start(kind: str, mode: str, *flags: str, out: str = "run") -> tuple[RunRecord, Path, dict]:
        seen, original = {}, FineTuningTrainer.training_step

        def watch(self, model, inputs, num_items_in_batch=None):
            if not seen:
                layer = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
                hook = layer.register_forward_hook(lambda module, inputs, output: seen.update(product=output.dtype))
                seen["trained"] = {p.dtype for p in model.parameters() if p.requires_grad}
                seen["devices"] = {p.device.type for p in model.parameters()} | {
                    t.device.type for t in inputs.values()
                }
                loss = original(self, model, inputs, num_items_in_batch)
                hook.remove()
                return loss
            return original(self, model, inputs, num_items_in_batch)

        common = ["--output_dir", str(tmp_path / out), "--logging_steps", "5", "--lora_r", "4", *DEVICE_WORDS]
        if mode in RATES:
            common += ["--learning_rate", RATES[mode], "--max_steps", "40"]
        with monkeypatch.context() as patch:
            patch.setattr(FineTuningTrainer, "training_step", watch)
            record = run(parse_args([*words[kind], *common, *flags], mode=mode))
        return record, tmp_path / out, seen

    return start


def read_losses(record: RunRecord) -> list[float]:
    return [entry["loss"] for entry in record.history if "loss" in entry]


def compute_on_cpu(kind: str, record: RunRecord, folder: Path, files: Path, **settings) -> np.ndarray:
    """Class probabilities of the test rows in float32 by plain transformers and peft, in the order stored."""
    auto = getattr(transformers, f"AutoModelFor{'Image' if kind == 'image' else 'Sequence'}Classification")
    if (folder / "adapter_model.safetensors").exists():
        base = auto.from_pretrained(record.model["name"], num_labels=3, ignore_mismatched_sizes=True, **settings)
        network = PeftModel.from_pretrained(base, folder).eval()
    else:
        network = auto.from_pretrained(folder).eval()
    if kind == "image":
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        paths = sorted((files / "photos" / "test").rglob("*.png"), key=lambda p: (p.parent.name, int(p.stem)))
        images = {path: processor([Image.open(path).convert("RGB")], return_tensors="pt") for path in paths}
        rows = list(images.values())
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        rows = [tokenizer(row["text"], return_tensors="pt") for row in tiny.make_texts(12, seed=1)]
    with torch.no_grad():
        logits = torch.cat([network(**row).logits for row in rows]).numpy()
    return compute_probabilities(logits, "single_label_classification")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_run_trains_in_bfloat16_and_its_artefact_answers_alike_on_a_cpu(kind, mode, train, files):
    record, folder, seen = train(kind, mode)
    assert record.status == "completed"
    stored = json.loads((folder / "run.json").read_text())
    precision = "float32" if mode == "probe" else "bfloat16 autocast"
    assert stored["environment"]["precision"] == precision and "bf16" not in stored["config"]
    if DEVICE == "cuda":
        assert stored["cost"]["peak_memory_kind"] == "cuda_allocated" and stored["cost"]["peak_memory_bytes"] > 1e5
        assert stored["environment"]["device"] == torch.cuda.get_device_name()
    if mode != "probe":
        assert seen == {"product": torch.bfloat16, "trained": {torch.float32}, "devices": {DEVICE}}
        losses = read_losses(record)
        assert losses[-1] < 0.8 * losses[0]
    assert record.cost["train_flops"] > 0
    probabilities = read_predictions(folder)["probabilities"]
    expected = compute_on_cpu(kind, record, folder, files)
    # Images are stored in the order in which the data set lists them: rows are matched as sets of each column.
    if kind == "image":
        probabilities, expected = np.sort(probabilities, axis=0), np.sort(expected, axis=0)
    tolerance = {"probe": 2e-3, "peft": FITTED if kind == "text" else BFLOAT16}.get(mode, BFLOAT16)
    np.testing.assert_allclose(probabilities, expected, atol=tolerance)
    assert np.abs(probabilities - expected).mean() < BFLOAT16 / 2


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_lora_over_quantized_weights(quantization, kind, train):
    pytest.importorskip("bitsandbytes")
    # As many labels as the checkpoint's head has: transformers 5.17 keeps that head over a quantized body.
    labels = ["--only_labels", "blue", "green"] if kind == "image" else []
    record, folder, seen = train(kind, "peft", "--quantization", quantization, *labels)
    losses = read_losses(record)
    assert record.status == "completed" and losses[-1] < 0.9 * losses[0]
    assert seen["trained"] == {torch.float32} and seen["devices"] == {DEVICE}
    assert np.isfinite(read_predictions(folder)["probabilities"]).all()


@pytest.mark.parametrize("mode", ["full", "peft", "zero-shot"])
def test_a_language_model_learns_and_writes(mode, train):
    record, _, seen = train("language", mode)
    assert record.status == "completed" and len(record.metrics["test"]["samples"]) == 3
    if mode != "zero-shot":
        losses = read_losses(record)
        assert losses[-1] < 0.9 * losses[0] and seen["trained"] == {torch.float32}


def test_packed_rows_give_the_losses_of_padded_ones(train):
    common = ("--logging_steps", "1", "--max_steps", "4")
    padded, *_ = train("language", "full", *common, out="padded")
    packed, *_ = train("language", "full", *common, "--packing", "true", out="packed")
    assert packed.cost["padding_fraction"] == 0 < padded.cost["padding_fraction"]
    assert read_losses(packed) == pytest.approx(read_losses(padded), rel=0.02)


@pytest.mark.parametrize("kind", ["text", "language"])
def test_checkpointed_activations_change_no_loss(kind, train):
    common = ("--logging_steps", "1", "--max_steps", "6")
    plain, *_ = train(kind, "peft", *common, out="plain")
    checkpointed, *_ = train(kind, "peft", *common, "--gradient_checkpointing", "true", out="checkpointed")
    # Dropout of BERT is drawn again in the same way.
    assert read_losses(checkpointed) == pytest.approx(read_losses(plain), rel=0.02)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_repeated_run_has_nearly_the_same_losses(kind, train):
    first, *_ = train(kind, "full", out="first")
    again, *_ = train(kind, "full", "--dataloader_num_workers", "0", out="again")
    assert read_losses(again) == pytest.approx(read_losses(first), rel=0.02, abs=0.01)


def test_float32_is_a_flag(train):
    record, _, seen = train("text", "full", "--bf16", "false", "--max_steps", "2")
    assert record.environment["precision"] == "float32" and seen["product"] == torch.float32


def test_a_resumed_run_gives_the_losses_of_the_uninterrupted_one(train):
    flags = ("--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "3")
    whole, folder, _ = train("text", "full", *flags, "--max_steps", "6", out="whole")
    resumed, *_ = train(
        "text", "full", *flags, "--max_steps", "6", "--resume_from_checkpoint", f"{folder}/checkpoint-3", out="resumed"
    )
    assert read_losses(resumed)[-3:] == pytest.approx(read_losses(whole)[-3:], rel=0.02)
