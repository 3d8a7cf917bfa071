"""What a class counts in the loss: known answers, accumulation, records, and where it makes no sense."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hftl.config import parse_args
from hftl.data.labels import IGNORED
from hftl.errors import UserError
from hftl.tasks import build_task
from hftl.training.class_weights import balance, parse_weights
from hftl.training.run import run
from tests import tiny
from tests.networks import build_network
from tests.tasks.test_semantic_segmentation import write_pairs
from tests.training.test_trainer import build_rows, build_trainer, largest_difference, read_losses, read_weights

COUNTS = {"animal": 20, "motion": 6, "weather": 4}


def test_rare_classes_count_more_and_all_labels_one_on_average():
    counts = np.array([90, 9, 1, 0])
    weights = balance(counts)
    assert weights[3] == 1 and (weights * counts)[:3] == pytest.approx([100 / 3] * 3)
    assert (weights * counts).sum() == pytest.approx(counts.sum())


SHAPES = {
    "text-classification": ("single_label_classification", (7, 3), (7,)),
    "image-classification": ("single_label_classification", (7, 3), (7,)),
    "token-classification": ("token-classification", (2, 5, 3), (2, 5)),
    "semantic-segmentation": ("semantic-segmentation", (2, 3, 4, 4), (2, 4, 4)),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", SHAPES)
def test_the_loss_is_that_of_torch_with_weights(name, smoothing):
    problem_type, of_logits, of_labels = SHAPES[name]
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(of_logits, generator=draw), torch.randint(0, 3, of_labels, generator=draw)
    if len(of_labels) > 1:
        labels[0, 0] = IGNORED
    task = build_task(name)
    task.class_weights = torch.tensor([0.5, 1.0, 3.0])
    found = task.sum_loss({"logits": logits}, labels, problem_type, smoothing)
    rows = logits.movedim(-1, 1) if len(of_logits) == 3 else logits
    settings = {"ignore_index": IGNORED, "reduction": "sum", "label_smoothing": smoothing}
    expected = F.cross_entropy(rows, labels, weight=task.class_weights, **settings)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    task.class_weights = None
    assert task.sum_loss({"logits": logits}, labels, problem_type, smoothing) == pytest.approx(
        F.cross_entropy(rows, labels, **settings).item(), rel=1e-5
    )


def test_accumulation_changes_nothing(tmp_path):
    results = []
    for batch, accumulation in ((8, 1), (4, 2)):
        network = build_network("bert")
        trainer = build_trainer(
            tmp_path / str(batch), "bert", network, build_rows("bert"), max_steps=3, optim="sgd", learning_rate=0.1,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.task.class_weights = torch.tensor([0.2, 1.0, 4.0])
        trainer.train()
        results.append((read_losses(trainer), read_weights(network)))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-6)
    assert largest_difference(results[0][1], results[1][1]) < 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny.write_tiny_bert(folder / "bert")
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "value", "tags"])
        for number, (label, count) in enumerate(COUNTS.items()):
            for row in range(count):
                writer.writerow([f"{tiny.CLASS_WORDS[number][row % 6]} the {row}", label, row / 7, f"{label},x"])
    return folder


@pytest.fixture
def train(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(folder / "cache"))

    def start(*flags, data=None, model="bert"):
        words = [*(data or ["--train_file", f"{folder}/train.csv", "--text_columns", "text"]), "--use_cpu"]
        words += ["--model_name_or_path", str(folder / model), "--output_dir", str(tmp_path / model)]
        return run(parse_args([*words, "--max_steps", "2", *flags], mode="full"))

    return start


def test_weights_of_the_train_rows_stand_in_the_record(train):
    record = train("--class_weights", "balanced", "--label_column", "label")
    train_counts = np.array([count * 0.8 for count in COUNTS.values()]).round()
    weights = np.array(list(record.data["class_weights"].values()))
    assert list(record.data["class_weights"]) == list(COUNTS)
    assert weights == pytest.approx(balance(train_counts), rel=0.15) and weights[2] > 3 * weights[0]
    assert record.config["class_weights"] == "balanced"


GIVEN = '{"weather": 6, "animal": 1, "motion": 2.5}'


def test_weights_may_be_given_and_their_proportions_count(train, tmp_path):
    record = train("--class_weights", GIVEN, "--label_column", "label")
    weights = record.data["class_weights"]
    assert list(weights) == list(COUNTS)
    assert weights["motion"] / weights["animal"] == pytest.approx(2.5, abs=1e-4)
    assert weights["weather"] / weights["animal"] == pytest.approx(6, abs=1e-4)
    counts = record.data["audit"]["label_counts"]["train"]
    assert sum(counts[name] * weights[name] for name in counts) == pytest.approx(sum(counts.values()), rel=1e-4)
    (tmp_path / "w.yaml").write_text(f"label_column: label\nclass_weights: {GIVEN}\n")
    assert parse_args([str(tmp_path / "w.yaml")]).data.class_weights == GIVEN
    assert parse_args([str(record.folder / "config.yaml")]).data.class_weights == GIVEN


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"animal": 1, "motion": 1, "wether": 1}', "Unknown label in --class_weights: 'wether'. Did you mean 'weath"),
        ('{"animal": 1, "weather": 1}', "--class_weights says nothing about motion; give every label"),
        ('{"animal": 1, "motion": "x", "weather": 1}', "motion is 'x'; give a number above 0"),
        ('{"animal": 1, "motion": 0, "weather": 1}', "motion is 0; give a number above 0"),
        ('{"animal": 1, "motion": true, "weather": 1}', "motion is True; give a number above 0"),
        ("balancd", "--class_weights is 'balancd'; give none, balanced, or a number for each label"),
        ("[1, 2]", "give none, balanced, or a number for each label"),
    ],
)
def test_weights_that_do_not_fit_the_labels_are_refused_by_name(given, message):
    with pytest.raises(UserError, match=message):
        parse_weights(given, tuple(COUNTS))


def test_without_the_flag_nothing_is_weighted(train):
    assert "class_weights" not in train("--label_column", "label").data


def test_tags_and_pixels_are_counted(train, folder, tmp_path):
    rows = [{"tokens": ["cat", "the", "of"], "tags": ["B-X", "O", "O"]} for _ in range(12)]
    tiny.write_jsonl(tmp_path / "words.jsonl", rows)
    words = ["--task", "token-classification", "--train_file", f"{tmp_path}/words.jsonl"]
    record = train("--class_weights", "balanced", data=words)
    assert record.data["class_weights"] == pytest.approx({"B-X": 1.5, "I-X": 1.0, "O": 0.75})
    tiny.write_tiny_segformer(folder / "segformer")
    write_pairs(tmp_path / "pairs", 6, 0)
    words = ["--task", "semantic-segmentation", "--dataset", f"{tmp_path}/pairs"]
    record = train("--class_weights", "balanced", data=words, model="segformer")
    assert np.isfinite(record.metrics["validation"]["mean_iou"]) and min(record.data["class_weights"].values()) > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--label_column", "value", "--problem_type", "regression"), "labels of which each is one class"),
        (("--label_column", "tags", "--problem_type", "multi_label_classification"), "each is one class"),
        (("--task", "causal-lm"), "is for --task .*text-classification.*token-classification.*; this is causal-lm"),
    ],
)
def test_labels_that_are_no_classes_have_no_weights(train, flags, message):
    with pytest.raises(UserError, match=message):
        train("--class_weights", "balanced", *flags)


def test_a_number_has_no_other_classes_to_be_smoothed_with(train):
    with pytest.raises(UserError, match=r"--label_smoothing_factor is for classes, and these labels are numbers"):
        train("--label_smoothing_factor", "0.1", "--label_column", "value", "--problem_type", "regression")
    record = train(
        *("--label_smoothing_factor", "0.1", "--label_column", "tags", "--problem_type", "multi_label_classification")
    )
    assert record.status == "completed"  # tests/training/test_trainer.py has what it does there


@pytest.mark.parametrize("flags", [("--class_weights", "balanced"), ("--label_smoothing_factor", "0.1")])
def test_a_probe_has_no_loss_to_be_weighted(folder, tmp_path, flags):
    words = ["--train_file", f"{folder}/train.csv", "--text_columns", "text", "--label_column", "label"]
    words += ["--model_name_or_path", f"{folder}/bert", "--output_dir", str(tmp_path / "run"), *flags]
    with pytest.raises(UserError, match="change the loss of training, and --mode probe has none"):
        run(parse_args(words, mode="probe"))
