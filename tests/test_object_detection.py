"""Object detection: boxes are read strictly, move with the image, and are scored as COCO does."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hftl.config import DataArguments, parse_args
from hftl.data.boxes import read_boxes
from hftl.errors import UserError
from hftl.metrics.detection import Boxes, compute_box_report, count_matches, spread_f1
from hftl.run import run
from hftl.tasks.image_classification import draw_crops
from hftl.tasks.object_detection import NO_BOX, BoxCollator, ObjectDetection, move_boxes
from tests import tiny
from tests.test_task_contract import write_boxes


def make_splits(boxes, categories, test_category="hat"):
    blank = Image.new("RGB", (40, 20))
    good = {"bbox": [[1.0, 2.0, 10.0, 5.0]], "category": ["hat"]}
    rows = [{"image": blank, "objects": good}, {"image": blank, "objects": {"bbox": boxes, "category": categories}}]
    test = [{"image": blank, "objects": good | {"category": [test_category]}}]
    return datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(test))


def make_network():
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
        num_labels=2,
    )
    torch.manual_seed(0)
    return transformers.YolosForObjectDetection(config).eval()


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
    with pytest.raises(UserError, match="families detr and yolos, and this one is vit"):
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


def test_loss_of_eight_rows_is_that_of_two_times_four():
    task, network = ObjectDetection(), make_network()
    task.config, rows = network.config, make_rows(8)

    def mean(part):
        batch = make_collator()(part)
        labels = batch.pop("labels")
        assert (labels != -100).all()
        with torch.no_grad():
            return task.sum_loss(network(**batch), labels, task.name, 0.0) / labels.numel()

    torch.testing.assert_close(mean(rows), (mean(rows[:4]) + mean(rows[4:])) / 2)


def test_loss_of_one_image_is_that_of_transformers():
    task, network = ObjectDetection(), make_network()
    task.config = network.config
    batch = make_collator()(make_rows(3)[2:])
    labels = batch.pop("labels")
    truth = labels[0][labels[0, :, 0] != NO_BOX]
    targets = [{"class_labels": truth[:, 0].long(), "boxes": truth[:, 1:]}]
    with torch.no_grad():
        outputs = network(**batch, labels=targets)
        ours = task.sum_loss(outputs, labels, task.name, 0.0) / labels.numel()
    assert len(truth) == 2
    torch.testing.assert_close(ours, outputs.loss)


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
        decoder_layers=1,
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
