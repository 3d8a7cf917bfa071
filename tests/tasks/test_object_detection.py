"""Object detection: boxes are read strictly, move with the image, and are scored as COCO does."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image, ImageOps

import hftl
from hftl.config import DataArguments, parse_args
from hftl.data.boxes import read_boxes
from hftl.data.labels import LabelInfo
from hftl.errors import UserError
from hftl.hub.load_check import build_inputs, compute_logits
from hftl.hub.push import Publication, push_run
from hftl.hub.snippets import READ_IMAGE
from hftl.inference.evaluation import evaluate
from hftl.metrics.detection import Boxes, compute_box_report, count_matches, spread_f1
from hftl.models.load import apply_overrides, build_random, load_config
from hftl.run_record import CANARY_FILE
from hftl.tasks.image_classification import draw_crops
from hftl.tasks.object_detection import SNIPPET, BoxCollator, ObjectDetection, move_boxes
from hftl.training.run import run
from tests import tiny
from tests.tasks.test_task_contract import write_boxes


def make_splits(boxes, categories, test_category="hat"):
    blank = Image.new("RGB", (40, 20))
    good = {"bbox": [[1.0, 2.0, 10.0, 5.0]], "category": ["hat"]}
    rows = [{"image": blank, "objects": good}, {"image": blank, "objects": {"bbox": boxes, "category": categories}}]
    test = [{"image": blank, "objects": good | {"category": [test_category]}}]
    return datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(test))


def make_rows(count):
    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        low = draw.uniform(0, 0.5, (number % 3, 2))  # none in the first
        corners = np.hstack([low, low + 0.3]).ravel().tolist()
        pixels = draw.integers(0, 256, 32 * 32 * 3).astype(np.uint8).tobytes()
        classes = draw.integers(0, 2, number % 3).tolist()
        rows.append({"pixels": pixels, "height": 32, "width": 32, "corners": corners, "classes": classes})
    return rows


def make_collator(augmentation="none"):
    return BoxCollator(np.full(3, 1 / 255, np.float32), np.zeros(3, np.float32), augmentation)


@pytest.mark.parametrize(
    "boxes, categories, message",
    [
        ([[30.0, 2.0, 12.0, 5.0]], ["hat"], "train, row_id 1: .*reaches out of the image of 40 x 20"),
        ([[-3.0, 2.0, 12.0, 5.0]], ["hat"], "train, row_id 1: .*reaches out"),
        ([[3.0, 2.0, 0.0, 5.0]], ["hat"], "train, row_id 1: .*no area"),
        ([[3.0, 2.0, 4.0, -5.0]], ["hat"], "train, row_id 1: .*no area"),
        ([[3.0, 2.0, 4.0]], ["hat"], "train, row_id 1: .*is not \\[x, y, width, height\\]"),
        ([[3.0, 2.0, 4.0, 4.0]], [], "train, row_id 1: it has 1 boxes and 0 classes"),
        ([[3.0, 2.0, 4.0, 4.0]] * 101, ["hat"] * 101, "train, row_id 1: it has 101 boxes"),
    ],
)
def test_a_bad_box_is_an_error_that_names_the_row(boxes, categories, message):
    with pytest.raises(UserError, match=message):
        read_boxes(make_splits(boxes, categories), DataArguments())


def test_bad_rows_are_dropped_when_asked_for():
    splits = make_splits([[30.0, 2.0, 12.0, 5.0]], ["hat"])
    names, read = read_boxes(splits, DataArguments(on_bad_rows="skip"))
    assert (names, read["train"]["row_id"][:], read["train"]["boxes"][:]) == (("hat",), [0], [[[1, 2, 10, 5]]])


def test_a_box_may_reach_one_pixel_over_the_border():
    _, read = read_boxes(make_splits([[30.0, 2.0, 11.0, 5.0]], ["hat"]), DataArguments())
    assert len(read["train"]) == 2


def test_a_class_that_train_does_not_have_names_the_row_of_test():
    with pytest.raises(UserError, match="test, row_id 0: .*class 'shoe', which train does not have: hat"):
        read_boxes(make_splits([], [], test_category="shoe"), DataArguments())


def test_a_column_of_class_labels_is_no_column_of_boxes():
    rows = datasets.Dataset.from_list([{"image": Image.new("RGB", (8, 8)), "label": 1}])
    with pytest.raises(UserError, match="The column label holds .*no boxes; expected"):
        read_boxes(datasets.DatasetDict(train=rows), DataArguments(label_column="label"))


def test_a_network_of_another_family_is_refused():
    with pytest.raises(UserError, match="families detr, yolos, rt_detr, rt_detr_v2, and this one is vit"):
        ObjectDetection().adjust_config(transformers.ViTConfig(), None, SimpleNamespace())


def test_boxes_move_with_the_pixels_of_a_crop():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 20:40, 24:36] = 1
    box = torch.tensor([[24 / 64, 20 / 64, 36 / 64, 40 / 64]])
    for seed in range(20):
        grid = draw_crops([seed], (0.64, 1.0), (1.0, 1.0), (1, 1, 64, 64))
        crop = torch.nn.functional.grid_sample(image, grid, align_corners=False)[0, 0] > 0.5
        moved, is_kept = move_boxes(box, grid[0])
        if is_kept[0]:
            columns, rows = crop.any(0).nonzero().ravel(), crop.any(1).nonzero().ravel()
            seen = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 64
            torch.testing.assert_close(moved[0], seen, atol=1.1 / 64, rtol=0)


@pytest.fixture(scope="module", params=["yolos", "detr", "rt_detr", "rt_detr_v2"])
def learner(request, tmp_path_factory):
    """A task and its network in evaluation, so that BatchNorm knows no batch."""
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    task, processor = ObjectDetection(), SimpleNamespace(size={"height": 32})
    task.adjust_config(config, processor, LabelInfo(task.name, ("a", "b")))
    torch.manual_seed(0)
    network = transformers.AutoModelForObjectDetection.from_config(config).eval()
    task.adapt_network(network)
    return task, network


def sum_rows(task, network, rows):
    """The summed loss and the number of labels that it is divided by."""
    batch = make_collator()(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        return task.sum_loss(network(**batch), labels, task.name, 0.0), int((labels != -100).sum())


def test_loss_of_eight_rows_is_that_of_two_times_four(learner):
    rows = make_rows(8)
    (whole, count), parts = sum_rows(*learner, rows), [sum_rows(*learner, part) for part in (rows[:4], rows[4:])]
    assert count == sum(part[1] for part in parts) == 5 * (1 + 1 + 2 + 1 + 1 + 2 + 1 + 1)  # none counts as one
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0])


def test_rows_without_boxes_have_a_loss(learner):
    total, count = sum_rows(*learner, make_rows(1))
    assert count == 5 and torch.isfinite(total) and total > 0


def test_loss_of_one_image_is_that_of_transformers(learner):
    task, network = learner
    row = make_rows(3)[2:]
    truth = make_collator()(row)["labels"][0, :2]
    targets = [{"class_labels": truth[:, 0].long(), "boxes": truth[:, 1:]}]
    total, count = sum_rows(task, network, row)
    with torch.no_grad():
        stock = network(make_collator()(row)["pixel_values"], labels=targets).loss
    torch.testing.assert_close(total / count, stock)


def test_loss_of_a_batch_is_that_of_transformers_where_each_image_has_boxes(tmp_path):
    """RT-DETR divides by the boxes alone, so that whole batches agree as well."""
    task, network = (
        ObjectDetection(),
        transformers.AutoModelForObjectDetection.from_pretrained(tiny.write_tiny_rt_detr(tmp_path)),
    )
    task.config, rows = network.eval().config, [row for row in make_rows(9) if row["classes"]]
    batch = make_collator()(rows)
    truths = [labels[labels[:, 0] >= 0] for labels in batch["labels"]]
    targets = [{"class_labels": truth[:, 0].long(), "boxes": truth[:, 1:]} for truth in truths]
    total, count = sum_rows(task, network, rows)
    with torch.no_grad():
        torch.testing.assert_close(total / count, network(batch["pixel_values"], labels=targets).loss)


def test_exact_boxes_score_one_and_a_wrong_class_none():
    corners = np.array([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    true = [Boxes(corners, np.array([0, 1]))]
    exact = compute_box_report([Boxes(corners, np.array([0, 1]), np.array([0.9, 0.8]))], true, ["a", "b"])
    wrong = compute_box_report([Boxes(corners, np.array([1, 0]), np.array([0.9, 0.8]))], true, ["a", "b"])
    assert (exact["map"], exact["f1_50"], wrong["map"], wrong["f1_50"]) == (1, 1, 0, 0)


def test_average_precision_of_a_known_ranking():
    """Hit, miss, hit of two true boxes: precision 1 up to recall .5 (51 of 101 places), then 2/3."""
    true = [Boxes(np.array([[0, 0, 1, 1], [2, 2, 3, 3.0]]), np.array([0, 0]))]
    found = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [2, 2, 3, 3.0]])
    report = compute_box_report([Boxes(found, np.zeros(3, int), np.array([0.9, 0.8, 0.7]))], true, ["a"])
    assert report["map_50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    counts = count_matches([Boxes(found, np.zeros(3, int), np.array([0.9, 0.8, 0.7]))], true)
    assert spread_f1(counts).mean() == pytest.approx(report["f1_50"]) == pytest.approx(0.8)


def test_detr_trains_on_a_backbone_of_transformers(tmp_path, monkeypatch):
    """Without timm and torchvision; its processor pads by default, which a square image does not need."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    write_tiny_detr(tmp_path / "checkpoint")
    write_boxes(tmp_path)
    words = ["--task", "object-detection", "--train_file", f"{tmp_path}/train.jsonl", "--max_steps", "2"]
    words += ["--test_file", f"{tmp_path}/test.jsonl", "--model_name_or_path", f"{tmp_path}/checkpoint"]
    record = run(parse_args([*words, "--image_size", "64", "--output_dir", f"{tmp_path}/run"], mode="full"))
    assert (record.status, record.data["label_names"]) == ("completed", ["a", "b"])
    assert 0 <= record.metrics["test"]["map"] <= 1


def write_tiny_detr(folder):
    body = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        backbone_config=body,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
        auxiliary_loss=True,
    )
    torch.manual_seed(0)
    transformers.DetrForObjectDetection(config).save_pretrained(folder)
    transformers.DetrImageProcessorPil().save_pretrained(folder)


def write_tiny_rt_detr_v2(folder):
    tiny.write_tiny_rt_detr(folder)
    known = transformers.AutoConfig.from_pretrained(folder).to_dict()
    config = transformers.RTDetrV2Config(**{key: value for key, value in known.items() if key != "model_type"})
    torch.manual_seed(0)
    transformers.RTDetrV2ForObjectDetection(config).save_pretrained(folder)


WRITERS = {
    "yolos": tiny.write_tiny_yolos,
    "detr": write_tiny_detr,
    "rt_detr": tiny.write_tiny_rt_detr,
    "rt_detr_v2": write_tiny_rt_detr_v2,
}


@pytest.mark.parametrize(
    "side, message",
    [
        (48, "48 pixels a side, .* down to 1 in 32. Give --image_size 64 or"),
        (32, "21 places, .* 30. Give --image_size 64"),
    ],
)
def test_an_image_size_that_gives_too_few_places_is_refused(side, message, tmp_path):
    config = transformers.AutoConfig.from_pretrained(tiny.write_tiny_rt_detr(tmp_path))
    config.num_queries = 30
    task = ObjectDetection()
    task.adjust_config(config, SimpleNamespace(size={"height": side}), LabelInfo("", ("a",)))
    with pytest.raises(UserError, match=message):
        task.adapt_network(SimpleNamespace(config=config))


@pytest.mark.parametrize(("name", "overrides"), [("detr", "auxiliary_loss=false"), ("rt_detr", "num_denoising=100")])
def test_what_the_loss_relies_on_cannot_be_overridden(name, overrides, tmp_path):
    WRITERS[name](tmp_path)
    config, task = transformers.AutoConfig.from_pretrained(tmp_path), ObjectDetection()
    task.adjust_config(config, SimpleNamespace(size={"height": 32}), LabelInfo("", ("a",)))
    apply_overrides(config, overrides)
    with pytest.raises(UserError, match=f"--config_overrides: {overrides.partition('=')[0]} has to be"):
        task.adapt_network(SimpleNamespace(config=config))


def test_places_are_counted_after_overrides(tmp_path):
    config, task = transformers.AutoConfig.from_pretrained(tiny.write_tiny_rt_detr(tmp_path)), ObjectDetection()
    task.adjust_config(config, SimpleNamespace(size={"height": 32}), LabelInfo("", ("a",)))
    apply_overrides(config, "num_queries=300")
    with pytest.raises(UserError, match="places, of which it chooses 300"):
        task.adapt_network(SimpleNamespace(config=config))


def test_boxes_that_are_not_finite_give_a_loss_that_is_not(learner):
    """So that the run ends as a diverged one; the matching would raise."""
    task, network = learner
    batch = make_collator()(make_rows(3))
    labels = batch.pop("labels")
    with torch.no_grad():
        outputs = network(**batch)
        outputs["pred_boxes"] = outputs["pred_boxes"] * float("nan")
        assert task.sum_loss(outputs, labels, task.name, 0.0).isnan()


def test_a_query_of_a_sigmoid_network_may_be_of_several_classes(learner):
    """And one with a class for no object has its best alone."""
    task, _ = learner
    is_sigmoid = task.config.model_type.startswith("rt_detr")
    logits = torch.tensor([[[3.0, 2.0, 0.0], [1.0, -9.0, 0.0]]])[..., : 2 if is_sigmoid else 3]
    kept = task.reduce((logits, torch.full((1, 2, 4), 0.5)), None).reshape(-1, 6)
    assert kept[:, 0].tolist() == ([0, 1] if is_sigmoid else [0, 0])


def test_the_recipe_builds_the_network_that_its_images_fit():
    args = parse_args([str(Path(__file__).parents[2] / "recipes/configs/fashion-scenes-detection.yaml")])
    task, info = ObjectDetection(), LabelInfo("object-detection", ("top", "trouser", "dress", "shoe", "bag"))
    processor = task.load_processor(args.model.model_name_or_path, "main", args.data)
    config = load_config(args.model, task, processor, info)
    network = build_random(args.model, task, config).network.eval()
    image = processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = network(image)
    assert (image.shape, outputs.logits.shape) == ((1, 3, 96, 96), (1, 20, 5))
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) > 30 and all((norm.weight == 1).all() for norm in norms)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Images with a red or a green square, an annotations file of COCO for each split."""
    folder = tmp_path_factory.mktemp("squares")
    for split, count, seed in (("train", 48, 0), ("test", 12, 1)):
        draw, images, annotations = np.random.default_rng(seed), [], []
        for number in range(count):
            pixels = draw.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            left, top = (int(v) for v in draw.integers(0, 16, 2))
            pixels[top : top + 14, left : left + 14, number % 2] = 255
            Image.fromarray(pixels).save(folder / f"{split}-{number}.png")
            images.append({"id": number, "file_name": f"{split}-{number}.png", "width": 32, "height": 32})
            annotation = {"id": number, "image_id": number, "category_id": 10 * (1 + number % 2)}
            annotations.append(annotation | {"bbox": [left, top, 14, 14], "iscrowd": 0})
        categories = [{"id": 10, "name": "red"}, {"id": 20, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    tiny.write_tiny_rt_detr(folder / "checkpoint")
    return folder


def train(files, folder, mode, *flags):
    words = ["--task", "object-detection", "--train_file", f"{files}/train.json", "--test_file", f"{files}/test.json"]
    words += ["--model_name_or_path", f"{files}/checkpoint", "--output_dir", str(folder), "--disable_tqdm", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(files / "cache"))
        return run(parse_args([*words, *flags], mode=mode))


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    flags = ("--max_steps", "250", "--learning_rate", "5e-3", "--per_device_train_batch_size", "16")
    flags += ("--config_overrides", "freeze_backbone_batch_norms=false", "--augmentation", "none")
    return train(squares, folder, "scratch", *flags), folder


def test_rt_detr_learns_from_random_weights_in_seconds(trained):
    record, _ = trained
    assert record.data["label_names"] == ["red", "green"], "in the order of their ids"
    assert record.metrics["test"]["map_50"] > 0.7, "the best constant boxes of train reach less than .05"


def test_prediction_pipeline_and_snippet_of_the_card_find_the_same_boxes(trained, squares):
    folder, path = trained[1], squares / "test-0.png"
    answer = hftl.load(folder).predict([Image.open(path)], threshold=0.2)[0]
    assert len(answer["scores"]) and min(answer["scores"]) >= 0.2
    piped = transformers.pipeline("object-detection", str(folder), device="cpu")(Image.open(path), threshold=0.2)
    assert [found["label"] for found in piped] == answer["labels"]
    np.testing.assert_allclose([found["score"] for found in piped], answer["scores"], atol=1e-5)
    for found, (left, top, width, height) in zip(piped, answer["boxes"], strict=True):
        ends = [found["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")]  # cut to whole pixels
        np.testing.assert_allclose(ends, [left, top, left + width, top + height], atol=1)
    network = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    names = {"Image": Image, "torch": torch, "model": network.eval()}
    names["processor"] = transformers.AutoImageProcessor.from_pretrained(folder)
    names["print"] = printed = mock.Mock()
    code = SNIPPET.replace("{image}", READ_IMAGE).replace("photo.png", str(path))
    exec(code.replace("threshold=0.5", "threshold=0.2"), names | {"ImageOps": ImageOps})
    assert [name for name, _ in printed.call_args.args[0]] == answer["labels"]


def test_evaluation_of_the_run_gives_its_scores_again(trained, squares):
    record, folder = trained
    found = evaluate(hftl.load(folder), str(squares / "test.json"))
    assert found.scores["map"].value == pytest.approx(record.metrics["test"]["map"], abs=1e-6)


@pytest.mark.slow
def test_the_run_passes_the_gate(trained):
    lines: list[str] = []
    push_run(trained[1], Publication("org/squares"), dry_run=True, say=lines.append)
    assert "pipeline_tag: object-detection" in (text := "\n".join(lines)) and "map_50" in text


@pytest.mark.parametrize("mode", ["full", "peft"])
def test_a_pretrained_rt_detr_gets_new_classes_and_plain_libraries_give_its_answers(mode, squares, tmp_path):
    """Its class heads lie inside of the body: they start anew, and an adapter's folder holds them."""
    record = train(squares, tmp_path / "run", mode, "--max_steps", "2", "--augmentation", "light")
    auto = transformers.AutoModelForObjectDetection
    if mode == "peft":
        config = transformers.AutoConfig.from_pretrained(tmp_path / "run")
        base = auto.from_pretrained(squares / "checkpoint", config=config, ignore_mismatched_sizes=True)
        network = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    else:
        network = auto.from_pretrained(tmp_path / "run").eval()
    assert record.status == "completed"
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "run")
    for row in pq.read_table(tmp_path / "run" / CANARY_FILE).to_pylist():
        found = compute_logits(network, build_inputs(processor, row), ObjectDetection.outputs, is_last=False)
        np.testing.assert_allclose(found, row["logits"], atol=2e-5)


@pytest.mark.slow
def test_a_few_images_are_learnt(tmp_path, monkeypatch):
    """DETR trains slowly; that it finds the boxes of four images shows that images, boxes and loss fit together."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    rows = []
    for number in range(5):
        pixels = draw.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        left, top = (int(v) for v in draw.integers(0, 16, 2))
        pixels[top : top + 14, left : left + 14, number % 2] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        objects = {"bbox": [[left, top, 14, 14]], "category": ["red" if number % 2 == 0 else "green"]}
        rows.append({"image": str(tmp_path / f"{number}.png"), "objects": objects})
    tiny.write_jsonl(tmp_path / "train.jsonl", rows[:4] * 5)
    tiny.write_jsonl(tmp_path / "test.jsonl", rows[:4])
    tiny.write_tiny_yolos(tmp_path / "yolos")
    words = ["--task", "object-detection", "--train_file", f"{tmp_path}/train.jsonl", "--augmentation", "none"]
    words += ["--test_file", f"{tmp_path}/test.jsonl", "--model_name_or_path", f"{tmp_path}/yolos", "--use_cpu"]
    words += [
        "--max_steps",
        "400",
        "--learning_rate",
        "3e-3",
        "--output_dir",
        f"{tmp_path}/run",
        "--disable_tqdm",
        "true",
    ]
    record = run(parse_args(words, mode="full"))
    assert record.metrics["test"]["map_50"] > 0.8
