"""Semantic segmentation: from folders to scores, masks and a model that plain transformers loads."""

import base64
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import hftl
from hftl.config import DataArguments, parse_args
from hftl.data.folders import read_folder
from hftl.data.labels import IGNORED
from hftl.data.mask_numbers import Coding, to_classes
from hftl.data.masks import name_classes, read_masks
from hftl.errors import UserError
from hftl.metrics.segmentation import compute_pixel_report
from hftl.records import read_predictions
from hftl.run import run
from hftl.tasks.semantic_segmentation import MaskCollator, SemanticSegmentation
from tests import tiny

NAMES = ["ground", "square"]


def write_pairs(folder: Path, count: int, seed: int = 0, size: int = 32) -> Path:
    """`images` and `masks`: bright squares on noise, the class of whose pixels is 1."""
    draw = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, mask = draw.integers(0, 80, (size, size, 3)), np.zeros((size, size), np.uint8)
        top, left = draw.integers(0, size // 2, 2)
        window = np.s_[top : top + size // 2, left : left + size // 2]
        image[window] += 150
        mask[window] = 1
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    write_pairs(folder / "data" / "train", 24)
    write_pairs(folder / "data" / "test", 6, seed=1)
    tiny.write_tiny_segformer(folder / "segformer")
    tiny.write_tiny_upernet(folder / "upernet")
    return folder


def train(files: Path, mode: str, folder: Path, *flags: str, network: str = "segformer"):
    words = ["--task", "semantic-segmentation", "--dataset", f"{files}/data", "--class_names", *NAMES]
    words += ["--model_name_or_path", f"{files}/{network}", "--output_dir", str(folder), "--max_steps", "3"]
    return run(parse_args([*words, "--use_cpu", *flags], mode=mode))


def open_rows(folder: Path, **changes) -> datasets.DatasetDict:
    args = parse_args(["--dataset", str(folder)]).data
    return read_masks(datasets.DatasetDict(read_folder(folder)), args)


@pytest.mark.parametrize("network", ["segformer", "upernet"])
@pytest.mark.parametrize("mode", SemanticSegmentation.modes)
def test_plain_transformers_gives_the_stored_counts(mode, network, files, tmp_path):
    """Every mode, SegFormer and UPerNet: what is saved answers as the run did, pixel by pixel."""
    record = train(files, mode, tmp_path / "run", network=network)
    assert record.status == "completed" and np.isfinite(record.metrics["test"]["mean_iou"])
    auto = transformers.AutoModelForSemanticSegmentation
    if mode == "peft":
        from peft import PeftModel

        config = transformers.AutoConfig.from_pretrained(tmp_path / "run")
        base = auto.from_pretrained(files / network, config=config, ignore_mismatched_sizes=True)
        model = PeftModel.from_pretrained(base, tmp_path / "run").eval()
        assert record.model["num_trainable_parameters"] < record.model["num_parameters"]
    else:
        model = auto.from_pretrained(tmp_path / "run").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "run")
    stored = read_predictions(tmp_path / "run")
    for row in stored["row_id"]:
        image = Image.open(files / "data" / "test" / "images" / f"{row}.png")
        true = np.asarray(Image.open(files / "data" / "test" / "masks" / f"{row}.png"))
        with torch.no_grad():
            outputs = model(**processor(images=image, return_tensors="pt"))
        found = processor.post_process_semantic_segmentation(outputs, target_sizes=[true.shape])[0].numpy()
        assert np.abs(np.bincount(found.ravel(), minlength=2) - stored["predicted"][row]).max() <= 2  # rounding
        np.testing.assert_array_equal(np.bincount(true.ravel(), minlength=2), stored["actual"][row])


def test_what_is_trained_learns_predicts_and_goes_through_the_stock_pipeline(files, tmp_path):
    flags = ("--max_steps", "80", "--learning_rate", "3e-3", "--augmentation", "light")
    record = train(files, "scratch", tmp_path / "run", *flags)
    assert record.metrics["test"]["mean_iou"] > 0.8, "one class everywhere is at most .4"
    assert record.metrics["test"]["per_class_iou"]["square"]["num_pixels"] == 6 * 16 * 16
    path = files / "data" / "test" / "images" / "0.png"
    wide = Image.open(path).resize((48, 32))
    answer = hftl.load(tmp_path / "run").predict([wide])[0]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
    assert mask.shape == (32, 48), "the mask has the size of the image that was given"
    assert answer["labels"] == ["ground", "square"] and sum(answer["shares"]) == pytest.approx(1)
    assert answer["shares"][1] == pytest.approx((mask == 1).mean())
    asked = transformers.pipeline("image-segmentation", str(tmp_path / "run"), device="cpu")
    masks = {found["label"]: np.asarray(found["mask"]) > 0 for found in asked(Image.open(path))}
    true = np.asarray(Image.open(files / "data" / "test" / "masks" / "0.png"))
    assert (masks["square"] == (true == 1)).mean() > 0.85


def test_scores_are_those_worked_out_by_hand():
    counts = {  # two images, three classes, of which the last occurs nowhere
        "intersection": np.array([[6, 2, 0], [3, 0, 0]]),
        "predicted": np.array([[8, 2, 0], [3, 1, 0]]),
        "actual": np.array([[6, 4, 0], [4, 0, 0]]),
    }
    report = compute_pixel_report(counts, ("a", "b", "c"))
    first, second = 9 / (11 + 10 - 9), 2 / (3 + 4 - 2)
    assert report["mean_iou"] == pytest.approx((first + second) / 2)
    assert report["pixel_accuracy"] == pytest.approx(11 / 14)
    assert report["mean_class_accuracy"] == pytest.approx((9 / 10 + 2 / 4) / 2)
    assert report["per_class_iou"]["b"] == {"iou": second, "accuracy": 0.5, "num_pixels": 4}
    for name, score in SemanticSegmentation.scores.items():
        assert score.by_row(counts).mean() == pytest.approx(report[name])


def test_spread_of_mean_iou_is_that_of_a_bootstrap():
    draw = np.random.default_rng(0)
    actual = draw.integers(20, 60, (80, 3))
    intersection = (actual * draw.uniform(0.4, 0.9, (80, 3))).astype(int)
    counts = {"intersection": intersection, "predicted": intersection + 10, "actual": actual}
    spread = SemanticSegmentation.scores["mean_iou"].by_row(counts).std() / np.sqrt(80)
    draws = [draw.integers(0, 80, 80) for _ in range(400)]
    values = [
        compute_pixel_report({n: v[rows] for n, v in counts.items()}, ("a", "b", "c"))["mean_iou"] for rows in draws
    ]
    assert np.std(values) == pytest.approx(spread, rel=0.15)


def test_ignored_pixels_count_neither_in_the_loss_nor_in_the_scores():
    task, labels = SemanticSegmentation(), torch.zeros(1, 4, 4, dtype=torch.long)
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 1, :2] = 9.0  # the upper half says class 1, which is wrong
    labels[0, :2] = IGNORED
    assert task.reduce(logits, labels).tolist() == [[8, 0, 8, 0, 8, 0]]
    loss = task.sum_loss({"logits": logits}, labels, "semantic-segmentation", 0.0)
    assert loss.item() == pytest.approx(8 * np.log(2), rel=1e-5)


def test_loss_is_that_of_the_stock_head(files):
    network = transformers.AutoModelForSemanticSegmentation.from_pretrained(files / "segformer").eval()
    labels = torch.randint(0, 2, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = network(pixel_values=pixels, labels=labels)
    ours = SemanticSegmentation().sum_loss(outputs, labels, "semantic-segmentation", 0.0) / labels.numel()
    assert ours.item() == pytest.approx(outputs.loss.item(), rel=1e-5)


def test_image_and_mask_are_cropped_and_flipped_alike():
    draw = np.random.default_rng(0)
    rows = []
    for seed in range(8):
        mask = np.kron(draw.integers(0, 3, (4, 4)), np.ones((8, 8), int)).astype(np.uint8)
        pixels = np.repeat(mask[..., None] * 100, 3, axis=-1).astype(np.uint8)  # the image shows its mask
        rows.append({"pixels": pixels.tobytes(), "classes": mask.tobytes(), "height": 32, "width": 32})
        rows[-1]["augmentation_seed"] = (0, 0, seed)
    batch = MaskCollator(np.ones(3, np.float32), np.zeros(3, np.float32), "strong")(rows)
    shown = batch["pixel_values"][:, 0] / 100
    is_inside = (shown - shown.round()).abs() < 1e-3  # between two fields the image is interpolated
    assert is_inside.float().mean() > 0.6
    assert (shown.round()[is_inside] == batch["labels"][is_inside]).float().mean() > 0.99
    plain = MaskCollator(np.ones(3, np.float32), np.zeros(3, np.float32), "none")(rows)["labels"]
    assert not torch.equal(plain, batch["labels"]) and set(batch["labels"].unique().tolist()) <= {0, 1, 2}


def test_reduced_labels_leave_the_first_number_out():
    mask = Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8))
    assert to_classes(mask, Coding(is_reduced=True)).tolist() == [[255, 0, 1, 255]]
    assert to_classes(mask, Coding()).tolist() == [[0, 1, 2, 255]]


def test_classes_without_names_are_the_numbers_of_the_masks(tmp_path):
    names, _ = name_classes(open_rows(write_pairs(tmp_path / "d", 2)), DataArguments())
    assert names == ("0", "1")


def spoil_size(folder):
    Image.new("L", (31, 32)).save(folder / "masks" / "1.png")


def spoil_class(folder):
    Image.new("L", (32, 32), 7).save(folder / "masks" / "1.png")


def spoil_mode(folder):
    Image.new("RGB", (32, 32), "red").save(folder / "masks" / "1.png")


def spoil_file(folder):
    (folder / "masks" / "1.png").write_bytes(b"not a png")


def spoil_all(folder):
    for path in (folder / "masks").iterdir():
        Image.new("L", (32, 32), 255).save(path)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_size, r"train, row_id 1: the mask .*1.png is 31 x 32 pixels, its image 32 x 32"),
        (spoil_class, r"train, row_id 1: the mask .*1.png has the class 7, but the classes are 0 to 1"),
        (
            spoil_mode,
            r"row_id 1: the mask .*1.png has 1 colors and no class numbers. Say .*: --class_names NAME=#ff0000",
        ),
        (spoil_file, r"row_id 1: the mask .*1.png cannot be read"),
        (spoil_all, r"No pixel of any mask of train has a class"),
    ],
)
def test_a_wrong_mask_is_named_before_training(spoil, message, tmp_path):
    spoil(write_pairs(tmp_path / "d", 3))
    with pytest.raises(UserError, match=message):
        name_classes(open_rows(tmp_path / "d"), DataArguments(class_names=NAMES))


@pytest.mark.parametrize("spoil", [spoil_size, spoil_class, spoil_mode, spoil_file])
def test_rows_with_a_wrong_mask_are_dropped_where_that_is_asked_for(spoil, tmp_path, caplog):
    spoil(write_pairs(tmp_path / "d", 3))
    _, splits = name_classes(open_rows(tmp_path / "d"), DataArguments(class_names=NAMES, on_bad_rows="skip"))
    assert splits["train"]["row_id"][:] == [0, 2]
    assert "Dropped: 1 rows of train, the first of them row_id 1: the mask" in caplog.text


def test_a_class_that_only_test_has_is_named(tmp_path):
    write_pairs(tmp_path / "train", 3)
    spoil_class(write_pairs(tmp_path / "test", 3))
    with pytest.raises(UserError, match="test, row_id 1: .* has the class 7, but the classes are 0 to 1"):
        name_classes(open_rows(tmp_path), DataArguments())


def test_an_image_without_mask_is_named(tmp_path):
    (write_pairs(tmp_path / "d", 3) / "masks" / "2.png").unlink()
    with pytest.raises(UserError, match=r"2.png has no mask: expected .*masks/2.png. Missing are 1 of 3"):
        read_folder(tmp_path / "d")


def test_a_row_without_mask_is_named(tmp_path):
    write_pairs(tmp_path / "d", 2)
    rows = [{"image": "images/0.png", "annotation": "masks/0.png"}, {"image": "images/1.png", "annotation": None}]
    tiny.write_jsonl(tmp_path / "d" / "metadata.jsonl", rows)
    with pytest.raises(UserError, match="train, row_id 1: it has no mask"):
        name_classes(open_rows(tmp_path / "d"), DataArguments(class_names=NAMES))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--class_names", "one"], "--class_names has one; give two or more names"),
        (["--class_names", "a", "a"], "--class_names has a, a; give two or more names, each once"),
        (["--only_labels", "a"], "--only_labels is about one label a row"),
        (["--label_column", "maske"], "There is no column|unknown|maske"),
        (["--mode", "probe"], "--mode probe does not fit semantic-segmentation; what does: full, peft, scratch"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, files, tmp_path):
    words = ["--task", "semantic-segmentation", "--dataset", f"{files}/data", "--output_dir", str(tmp_path / "run")]
    words += ["--model_name_or_path", f"{files}/segformer"]
    with pytest.raises(UserError, match=message):
        run(parse_args([*words, *flags], mode=None if "--mode" in flags else "full"))


def test_flags_of_segmentation_are_refused_elsewhere():
    words = ["--train_file", "x.csv", "--model_name_or_path", "bundled:minilm-l6", "--reduce_labels"]
    with pytest.raises(UserError, match="--reduce_labels is for --task semantic-segmentation"):
        run(parse_args(words, mode="full"))


def test_scenes_have_exact_masks_and_boxes():
    from hftl.scenes import KINDS, _draw_scenes

    draw = np.random.default_rng(0)
    garments = {"image": [Image.fromarray(draw.integers(0, 255, (28, 28)).astype(np.uint8)) for _ in range(10)]}
    garments["label"] = list(range(10))
    rows, again = (list(_draw_scenes(garments, 0, 5)) for _ in range(2))
    assert json.dumps([r["objects"] for r in rows]) == json.dumps([r["objects"] for r in again])
    assert [r["image"]["bytes"] for r in rows] == [r["image"]["bytes"] for r in again]
    for row in rows:
        mask = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
        inside = np.zeros_like(mask)
        for (x, y, width, height), kind in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
            window = np.s_[y : y + height, x : x + width]
            inside[window] = 1
            edges = (mask[y, x : x + width], mask[y + height - 1, x : x + width])
            assert all((edge == 1 + kind).any() for edge in edges), "a box ends where its garment does"
        assert not mask[inside == 0].any() and mask.max() <= len(KINDS)
