"""Every task in every mode: what is trained and saved, and that plain transformers and peft give the same answers."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file as load_tensors

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.metrics import compute_probabilities
from hftl.models.load import apply_overrides, build_random
from hftl.run_record import RunRecord, read_predictions
from hftl.tasks import build_task
from hftl.training.run import run
from hftl.training.trainer import FineTuningTrainer
from tests import tiny

MODES = ("full", "peft", "scratch", "probe")
CASES = (
    "text",
    "text-multi-label",
    "text-pair-regression",
    "image-vit",
    "image-convnet",
    "image-multi-label",
)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "bert": tiny.write_tiny_bert(folder / "bert"),
        "vit": tiny.write_tiny_vit(folder / "vit"),
        "convnet": tiny.write_tiny_convnet(folder / "convnet"),
    }


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, list[str]]:
    """The data flags of every case."""
    folder = tmp_path_factory.mktemp("data")
    tiny.write_image_folder(folder / "photos" / "train", 8)
    tiny.write_image_folder(folder / "photos" / "test", 3, seed=1)
    draw = random.Random(0)
    for split, count in (("train", 24), ("test", 9)):
        texts = tiny.make_texts(count, seed=len(split))
        photos = sorted((folder / "photos" / split).rglob("*.png"))
        with (folder / f"multi-{split}.jsonl").open("w") as lines:
            for row in texts:
                lines.write(json.dumps({"text": row["text"], "label": [row["label"], draw.choice("xyz")]}) + "\n")
        with (folder / f"pair-{split}.jsonl").open("w") as lines:
            for first, second in zip(texts, texts[1:] + texts[:1], strict=True):
                row = {
                    "a": first["text"],
                    "b": second["text"],
                    "score": float(first["label"] == second["label"]) + 2.5,
                }
                lines.write(json.dumps(row) + "\n")
        with (folder / f"photos-{split}.jsonl").open("w") as lines:
            for photo in photos:
                lines.write(json.dumps({"image": str(photo), "label": [photo.parent.name, draw.choice("xyz")]}) + "\n")
    tiny.write_text_csv(folder / "train.csv", 24)
    tiny.write_text_csv(folder / "test.csv", 9, seed=1)

    def pair(name: str, ending: str = "jsonl") -> list[str]:
        return ["--train_file", f"{folder}/{name}train.{ending}", "--test_file", f"{folder}/{name}test.{ending}"]

    image = ["--task", "image-classification"]
    return {
        "text": pair("", "csv"),
        "text-multi-label": pair("multi-"),
        "text-pair-regression": [
            *pair("pair-"), "--text_columns", "a", "b", "--label_column", "score", "--problem_type", "regression",
        ],
        "image-vit": [*image, "--dataset", f"{folder}/photos"],
        "image-convnet": [*image, "--dataset", f"{folder}/photos"],
        "image-multi-label": [*image, *pair("photos-")],
    }  # fmt: skip


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def runs(checkpoints, files, base_folder) -> dict:
    """Runs by (case, mode), made when first asked for."""
    done = {}

    def get(case: str, mode: str, *flags: str) -> tuple[RunRecord, Path, Path]:
        name = "bert" if case.startswith("text") else "convnet" if case == "image-convnet" else "vit"
        key = (case, mode, flags)
        if key not in done:
            folder = base_folder / f"{case}-{mode}-{len(done)}"
            words = [*files[case], "--model_name_or_path", str(checkpoints[name]), "--output_dir", str(folder)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HFTL_CACHE", str(base_folder / "cache"))
                args = parse_args([*words, "--max_steps", "3", "--validation_fraction", "0.25", *flags], mode=mode)
                done[key] = run(args), folder, checkpoints[name]
        return done[key]

    return get


def load_plain(record: RunRecord, folder: Path, checkpoint: Path) -> torch.nn.Module:
    """The saved network by the libraries' own means."""
    auto = (
        "AutoModelForSequenceClassification" if record.task.startswith("text") else "AutoModelForImageClassification"
    )
    auto = getattr(transformers, auto)
    if record.mode != "peft":
        return auto.from_pretrained(folder).eval()
    config = transformers.AutoConfig.from_pretrained(folder)
    base = auto.from_pretrained(checkpoint, config=config, ignore_mismatched_sizes=True)
    return PeftModel.from_pretrained(base, folder).eval()


def load_file(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name; a body saved by itself gets the prefix that it has under a head."""
    tensors = load_tensors(path)
    has_head = any("classifier" in name for name in tensors)
    is_bert_body = not has_head and any(name.startswith("embeddings.") for name in tensors)
    return {f"bert.{name}" if is_bert_body else name: value for name, value in tensors.items()}


def read_inputs(record: RunRecord, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Model inputs of the test rows, one by one, from the files as they are."""
    if record.task == "image-classification":
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        if "dataset" in record.config:
            paths = sorted(Path(record.config["dataset"], "test").rglob("*.png"))
        else:
            paths = [json.loads(line)["image"] for line in Path(record.config["test_file"]).read_text().splitlines()]
        return [processor(Image.open(path).convert("RGB"), return_tensors="pt") for path in paths]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = "csv" if record.config["test_file"].endswith("csv") else "json"
    rows = datasets.load_dataset(kind, data_files=record.config["test_file"], split="train")
    columns = record.config.get("text_columns", ["text"])
    return [tokenizer(*(row[name] for name in columns), return_tensors="pt") for row in rows]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_plain_libraries_give_the_stored_predictions(case, mode, runs):
    record, folder, checkpoint = runs(case, mode)
    assert record.status == "completed"
    network = load_plain(record, folder, checkpoint)
    stored = read_predictions(folder)
    with torch.no_grad():
        inputs = read_inputs(record, folder)
        logits = torch.cat([network(**inputs[row]).logits for row in stored["row_id"]]).numpy()
    problem = record.data["problem_type"]
    expected = stored["prediction"] if problem == "regression" else stored["probabilities"]
    np.testing.assert_allclose(compute_probabilities(logits, problem), expected, atol=2e-5)
    assert list(network.config.id2label.values()) == record.data["label_names"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_run_folder_is_complete(case, mode, runs):
    record, folder, _ = runs(case, mode)
    assert RunRecord.read(folder) == RunRecord.read(folder)
    stored = RunRecord.read(folder)
    assert (stored.mode, stored.task, stored.status) == (mode, record.task, "completed")
    assert set(stored.metrics) == {"validation", "test"}
    assert all(np.isfinite(v) for v in stored.metrics["test"].values() if isinstance(v, float))
    parts = [stored.cost[f"{name}_seconds"] for name in ("startup", "train", "evaluation", "save", "other")]
    assert sum(parts) == pytest.approx(stored.cost["wall_seconds"], rel=0.01)
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt")), "no pickle in a run folder"


@pytest.mark.parametrize("case", ["text", "image-vit", "image-convnet"])
def test_full_moves_body_and_head(case, runs):
    _, folder, checkpoint = runs(case, "full")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(folder / "model.safetensors")
    weights = [name for name in before if name in after and name.endswith("weight") and before[name].dim() > 1]
    body = [name for name in weights if "classifier" not in name]
    assert body and not any(torch.equal(before[name], after[name]) for name in body)


@pytest.mark.parametrize("case", ["text", "image-vit", "image-convnet"])
def test_peft_saves_adapter_and_head_and_nothing_else(case, runs):
    record, folder, _ = runs(case, "peft")
    names = list(load_file(folder / "adapter_model.safetensors"))
    assert any("lora_B" in name for name in names) and any("classifier" in name for name in names)
    assert all("lora_" in name or "classifier" in name for name in names)
    assert not (folder / "model.safetensors").exists()
    assert record.model["num_trainable_parameters"] < record.model["num_parameters"]


@pytest.mark.parametrize("case", ["text", "image-vit", "image-convnet"])
def test_scratch_shares_no_weight_with_the_checkpoint(case, runs):
    _, folder, checkpoint = runs(case, "scratch")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(folder / "model.safetensors")
    matrices = [name for name in before if name in after and before[name].dim() > 1 and before[name].std() > 0]
    for name in matrices:
        if before[name].shape == after[name].shape:
            pair = torch.stack([before[name].flatten(), after[name].flatten()])
            assert abs(torch.corrcoef(pair)[0, 1]) < 0.5, f"{name} looks like the checkpoint's"
    assert matrices


def test_scratch_reads_no_weight_file(runs, checkpoints, tmp_path):
    """The configuration alone is enough: the weights are not even there."""
    bare = tmp_path / "bare"
    shutil.copytree(checkpoints["bert"], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    record, _, _ = runs("text", "scratch", "--model_name_or_path", str(bare))
    assert record.status == "completed"


def test_scratch_config_overrides_shrink_the_network(runs):
    small, *_ = runs("text", "scratch", "--config_overrides", "num_hidden_layers=1,hidden_dropout_prob=0.0")
    assert small.model["num_parameters"] < runs("text", "scratch")[0].model["num_parameters"]


def test_overrides_renew_what_a_configuration_says_of_each_layer(tmp_path):
    """ModernBERT has local and global layers; with the list of the old ones it could be trained and not saved."""
    config = transformers.ModernBertConfig(num_hidden_layers=22, hidden_size=64, num_attention_heads=4)
    apply_overrides(config, "num_hidden_layers=4")
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="(?s)--config_overrides layer_types=.*must be equal to the number of"):
        apply_overrides(config, 'layer_types=["full_attention"]')


@pytest.mark.parametrize("case", ["text", "image-vit", "image-convnet"])
def test_probe_moves_the_head_only(case, runs):
    _, folder, checkpoint = runs(case, "probe")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(folder / "model.safetensors")
    body = [name for name in before if not {"classifier", "pooler"} & set(name.split(".")) and name in after]
    assert body and all(torch.equal(before[name], after[name]) for name in body)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["text", "image-convnet"])
def test_two_runs_with_one_seed_agree(case, mode, runs):
    first, again = runs(case, mode), runs(case, mode, "--logging_steps", "7")
    np.testing.assert_array_equal(
        *(read_predictions(folder)["probabilities"] for _, folder, _ in (first, again)),
    )


def test_another_seed_gives_another_scratch_network(runs):
    first, other = runs("text", "scratch"), runs("text", "scratch", "--seed", "7")
    assert not np.array_equal(*(read_predictions(folder)["probabilities"] for _, folder, _ in (first, other)))


def test_run_repeats_from_its_own_config(runs, base_folder):
    record, folder, _ = runs("text", "peft")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(base_folder / "cache"))
        again = run(parse_args([str(folder / "config.yaml"), "--output_dir", str(base_folder / "again")]))
    assert again.config_hash == record.config_hash
    assert again.metrics == record.metrics


def test_probe_learns_what_is_there_to_learn(runs):
    """Colour is linearly readable from a random convolutional body; chance is a third."""
    record, *_ = runs("image-convnet", "probe")
    assert record.metrics["test"]["accuracy"] > 0.8


@pytest.mark.parametrize("case, mode", [("text", "full"), ("text", "peft"), ("image-convnet", "scratch")])
def test_resumed_run_equals_the_uninterrupted_one(case, mode, runs, base_folder):
    """`--resume_from_checkpoint true` goes on from the newest checkpoint of the folder, bit for bit."""
    flags = ("--save_strategy", "steps", "--save_steps", "2", "--max_steps", "5")
    _, folder, _ = runs(case, mode, *flags)
    cut = base_folder / f"cut-{case}-{mode}"
    (cut / "checkpoint-2").mkdir(parents=True)
    shutil.copytree(folder / "checkpoint-2", cut / "checkpoint-2", dirs_exist_ok=True)
    runs(case, mode, *flags, "--output_dir", str(cut), "--resume_from_checkpoint", "true")
    expected = read_predictions(folder)["probabilities"]
    np.testing.assert_array_equal(expected, read_predictions(cut)["probabilities"])


def test_random_network_has_no_random_norm_scales():
    """transformers 5.23 draws EfficientNet's from N(0, 0.02): the signal is gone after a few layers."""
    config = transformers.EfficientNetConfig(image_size=64, width_coefficient=0.25, depth_coefficient=0.25)
    args = SimpleNamespace(config_overrides=None, pretrain_file=None)
    network = build_random(args, build_task("image-classification"), config).network
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all((module.weight == 1).all() for module in norms)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dtype", "bfloat16"], "--dtype bfloat16 is for weights that stay frozen"),
        (["--train_sampling_strategy", "batch_rebalance"], "batch_rebalance is not available"),
        (["--auto_find_batch_size"], "restarts with already trained weights"),
        (["--push_to_hub"], "--hub_model_id is None; give ORG/NAME"),
    ],
)
def test_settings_that_would_be_ignored_or_wrong_are_refused(flags, message, files, checkpoints):
    words = [*files["text"], "--model_name_or_path", str(checkpoints["bert"]), *flags]
    with pytest.raises(UserError, match=message):
        run(parse_args(words, mode="full"))


@pytest.mark.parametrize("case", ["text", "image-vit"])
def test_a_probe_costs_one_forward_pass_and_full_training_three(case, runs):
    """2 FLOPs a parameter and token against 6: one pass over the rows, against forward, and backward twice."""
    probe, *_ = runs(case, "probe")
    full, *_ = runs(case, "full", "--head_init", "random", "--train_sampling_strategy", "random")
    rows = probe.data["num_train_examples"]
    ratio = (full.cost["train_flops"] / full.cost["num_examples_seen"]) / (probe.cost["train_flops"] / rows)
    if case == "text":  # the one batch of full training is padded, the probe's tokens are counted without
        ratio *= 1 - full.cost["padding_fraction"]
    assert ratio == pytest.approx(3, rel=0.1)


def test_evaluation_while_training_pads_little_and_scores_as_the_one_after_it(checkpoints, tmp_path, monkeypatch):
    """Rows of validation come from long to short, with their labels."""
    draw, path = random.Random(0), tmp_path / "rows.jsonl"
    with path.open("w") as lines:
        for row in tiny.make_texts(200, seed=5):
            text = " ".join([row["text"], *draw.choices(tiny.FILLER_WORDS, k=draw.randrange(20))])
            lines.write(json.dumps({"text": text, "label": row["label"]}) + "\n")
    widths, step = [], FineTuningTrainer.prediction_step

    def watch(trainer, model, inputs, *args, **kwargs):
        widths.append(inputs["input_ids"].shape[1])
        return step(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(FineTuningTrainer, "prediction_step", watch)
    flags = "--use_cpu --mode full --max_steps 4 --eval_strategy steps --eval_steps 4 --per_device_eval_batch_size 4"
    words = [*flags.split(), "--train_file", str(path), "--model_name_or_path", str(checkpoints["bert"])]
    record = run(parse_args([*words, "--output_dir", str(tmp_path / "run")]))
    num_batches = -(-record.data["num_validation_examples"] // 4)
    inside, after = widths[:num_batches], widths[num_batches : 2 * num_batches]
    assert inside == after == sorted(inside, reverse=True) and inside[0] > inside[-1] + 10
    (found,) = [entry for entry in record.history if "eval_loss" in entry]
    for name in ("accuracy", "log_loss", "f1_macro"):
        assert found[f"eval_{name}"] == pytest.approx(record.metrics["validation"][name], abs=1e-6)
