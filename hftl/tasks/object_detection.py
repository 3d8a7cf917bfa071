"""Object detection: boxes with classes, by networks that answer with a fixed set of them (RT-DETR, DETR, YOLOS).

Images are brought to a square; boxes are shares of it. What is lost is told by `box_losses`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor

from hftl.assets import resolve_model
from hftl.data.boxes import MAX_BOXES, choose_picture, read_boxes, read_rows
from hftl.data.labels import IGNORED, LabelInfo
from hftl.data.pixels import kept_range, read_rgb_rows
from hftl.errors import UserError
from hftl.metrics.base import Score
from hftl.metrics.detection import Boxes, compute_box_report, count_matches, spread_f1
from hftl.tasks.base import Task
from hftl.tasks.box_losses import FAMILIES, expose_layers, sum_sigmoid_loss
from hftl.tasks.image_classification import (
    CROPS,
    ImageCollator,
    describe_range,
    draw_crops,
    encode_image,
    fit_range,
    measure_normalization,
    processed_size,
    resize_images,
    sample_crops,
)
from hftl.tasks.processors import explained_loading, map_cached

NO_BOX = -1.0  # class of the one label that an image without boxes has: it counts, and is no box
SMALLEST_PART = 0.25  # of a box's area that a crop must leave for it to be still learnt
SNIPPET = """{image}
with torch.no_grad():
    outputs = model(**processor(images=image, return_tensors="pt"))
size = (image.height, image.width)
found = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[size])[0]
print([(model.config.id2label[k], box) for k, box in zip(found["labels"].tolist(), found["boxes"].tolist())])"""


class ObjectDetection(Task):
    name = "object-detection"
    modality = "image"
    auto_model = "AutoModelForObjectDetection"
    modes = ("full", "peft", "scratch")
    pipeline_tag = "object-detection"
    processor_class = "AutoImageProcessor"
    num_canary_rows = 4
    snippet = SNIPPET
    scores = {"map": Score(), "map_50": Score(), "map_75": Score(), "f1_50": Score(by_row=spread_f1)}
    targets = ("boxes", "classes")
    outputs = ("logits", "pred_boxes")
    eval_batch_size = 16
    config: Any = None
    """Of the network: its costs and weights of the loss."""
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Settings of the network that its loss relies on."""
    side: int | None = None
    """Of the images, in pixels, where the network chooses among the places of its feature maps."""

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        for flag in ("problem_type", "only_labels", "num_train_examples_per_class"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is about one label a row, and --task {self.name} has several boxes a row.")
        names, splits = read_boxes(raw, args)
        return splits, LabelInfo(self.name, names)

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        return read_rows(rows, "the new data", info.names, args)

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        with explained_loading(source):
            processor = AutoImageProcessor.from_pretrained(
                resolve_model(source), revision=revision, trust_remote_code=False
            )
        side = args.image_size or processed_size(processor)  # a square: boxes then are shares of the whole image
        processor.size = type(processor.size)(height=side, width=side)
        processor.do_pad = False
        return processor

    def fit_processor(self, processor: Any, rows: datasets.Dataset, args: Any) -> Any:
        return fit_range(processor, rows)

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        return describe_range(processor)

    def read_labels(self, config: Any) -> LabelInfo:
        return LabelInfo(self.name, tuple(config.id2label[index] for index in range(config.num_labels)))

    def canary_row(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        return {"image": encode_image(row["image"], processor)}

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        sizes = {"image_height": [i.height for i in rows["image"]], "image_width": [i.width for i in rows["image"]]}
        return resize_images(rows["image"], processor) | sizes

    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        def resize(rows: dict[str, list]) -> dict[str, list]:
            images = read_rgb_rows(rows["image"], rows["row_id"], kept_range(processor))
            shares = [_to_shares(b, i.size) for b, i in zip(rows["boxes"], images, strict=True)]
            return {
                "row_id": rows["row_id"],
                "corners": [part.ravel().tolist() for part in shares],
                "classes": rows["classes"],
                **resize_images(images, processor),
            }

        key = {
            "rows": fingerprint,
            "task": self.name,
            "processor": processor.to_json_string(),
            "backend": type(processor).__name__,
            "transformers": transformers.__version__,
        }
        dataset = dataset.cast_column("image", datasets.Image(decode=False))
        return map_cached(dataset, resize, key, batch_size=64, description="Resizing images")

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "BoxCollator":
        return BoxCollator(*measure_normalization(processor), augmentation)

    def adjust_config(self, config: Any, processor: Any, info: LabelInfo) -> None:
        if config.model_type not in FAMILIES:
            raise UserError(
                f"--task {self.name} trains networks of the families {', '.join(FAMILIES)}, and this one is "
                f"{config.model_type}. Name another --model_name_or_path."
            )
        self.fixed = {"auxiliary_loss": config.model_type != "yolos"}  # whose layers before the last answer nothing
        if FAMILIES[config.model_type] is sum_sigmoid_loss:
            self.side = processor.size["height"]
            self.fixed["num_denoising"] = 0
            config.eval_size = config.anchor_image_size = None  # they hold for one size of images
        config.num_labels = info.num_labels
        config.id2label, config.label2id = info.id2label, info.label2id
        for name, value in self.fixed.items():
            setattr(config, name, value)
        self.config = config

    def adapt_network(self, network: torch.nn.Module) -> None:
        for name, value in self.fixed.items():
            if getattr(network.config, name) != value:
                raise UserError(f"--config_overrides: {name} has to be {value} with --task {self.name}. Leave it out.")
        if self.side is not None:
            _check_places(network.config, self.side)
        expose_layers(network)

    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        if smoothing:
            raise UserError(f"--task {self.name} has no label smoothing. Leave --label_smoothing_factor out.")
        if not all(outputs[name].isfinite().all() for name in self.outputs):  # the matching would fail
            return sum(outputs[name].sum() for name in self.outputs) * float("nan")  # which stops the run
        truths = [rows[rows[:, 0] >= 0] for rows in labels]
        targets = [{"class_labels": truth[:, 0].long(), "boxes": truth[:, 1:]} for truth in truths]
        loss = FAMILIES[self.config.model_type](outputs, targets, self.config)
        return loss * labels.shape[-1]  # the numbers of a box, each of which the trainer counts

    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor | None) -> torch.Tensor:
        """Class, score and corners of the `MAX_BOXES` most probable boxes, [B, K * 6]."""
        scores, boxes = self._score_classes(logits[0].float()), logits[1].float()  # [B, Q, C], [B, Q, 4]
        corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
        count, num_classes = min(scores.shape[1], MAX_BOXES), scores.shape[2]
        order = scores.flatten(1).argsort(dim=-1, descending=True, stable=True)[:, :count]  # [B, K]
        places = (order // num_classes)[..., None].expand(-1, -1, 4)
        best = scores.flatten(1).gather(1, order)
        found = [(order % num_classes)[..., None], best[..., None], corners.clamp(0, 1).gather(1, places)]
        return torch.cat(found, -1).flatten(1)

    def _score_classes(self, logits: torch.Tensor) -> torch.Tensor:
        """What post-processing of the family makes of logits: scores [B, Q, C]."""
        if FAMILIES[self.config.model_type] is sum_sigmoid_loss:
            return logits.sigmoid()  # a query may be of several classes
        scores = logits.softmax(-1)[..., :-1]  # the last is no object
        return scores.where(scores == scores.amax(-1, keepdim=True), -1.0)

    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, float]:
        report = self.compute_report(kept, rows, info)
        return {name: value for name, value in report.items() if isinstance(value, float)}

    def compute_report(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        return compute_box_report([_as_boxes(row) for row in kept], _true_boxes(rows), info.names)

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        counts = count_matches([_as_boxes(row) for row in kept], _true_boxes(rows))
        return {"row_id": np.asarray(rows["row_id"][:], dtype=np.int64), **counts}

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        return {choose_picture(features, args): "image"}

    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: LabelInfo, options: Any
    ) -> dict[str, list]:
        """`labels`, `scores` and `boxes` (x, y, width, height in pixels of the image) from `--threshold` on."""
        columns: dict[str, list] = {"labels": [], "scores": [], "boxes": []}
        for index, row in enumerate(kept):
            found = _as_boxes(row)
            chosen = found.scores >= options.threshold
            corners = found.corners[chosen] * np.tile([rows["image_width"][index], rows["image_height"][index]], 2)
            columns["labels"].append([info.names[k] for k in found.classes[chosen]])
            columns["scores"].append(found.scores[chosen].tolist())
            columns["boxes"].append(np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist())
        return columns


class BoxCollator(ImageCollator):
    """Stack cached images; rows that carry a seed are cropped and flipped, and their boxes with them.

    Returns:
        `pixel_values` float32 [B, 3, H, W]; `labels` float32 [B, MAX_BOXES, 5] when the rows have boxes: class, middle
        and size as shares of the image; `NO_BOX` in the first place of an image that has none.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        images = self.stack(rows)
        if "corners" not in rows[0]:
            return {"pixel_values": images}
        boxes = [torch.tensor(row["corners"], dtype=torch.float32).reshape(-1, 4) for row in rows]
        classes = [torch.tensor(row["classes"], dtype=torch.float32) for row in rows]
        if self.augmentation != "none" and "augmentation_seed" in rows[0]:
            grid = draw_crops([row["augmentation_seed"] for row in rows], *CROPS[self.augmentation], images.shape)
            images = sample_crops(images, grid)
            moved = [move_boxes(part, one) for part, one in zip(boxes, grid, strict=True)]
            classes = [part[kept] for part, (_, kept) in zip(classes, moved, strict=True)]
            boxes = [part[kept] for part, kept in moved]
        labels = torch.full((len(rows), MAX_BOXES, 5), float(IGNORED))
        labels[:, 0] = NO_BOX
        for place, corners, numbers in zip(labels, boxes, classes, strict=True):
            middle, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
            place[: len(corners)] = torch.cat([numbers[:, None], middle, size], 1)
        return {"pixel_values": images, "labels": labels}


def move_boxes(corners: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where boxes lie in a crop of the image, and whether enough of them is left.

    Args:
        corners: shares of the image, [N, 4].
        grid: of `draw_crops`, [H, W, 2]: a straight line along each axis.
    """
    moved = torch.empty_like(corners)
    for axis, line in enumerate((grid[0, :, 0], grid[:, 0, 1])):
        edge = 1 - 1 / len(line)  # the middle of the last pixel, where the first has minus that
        slope, middle = (line[-1] - line[0]) / (2 * edge), (line[-1] + line[0]) / 2
        ends = ((2 * corners[:, axis::2] - 1 - middle) / slope + 1) / 2
        moved[:, axis::2] = ends.sort(1).values  # a flip swaps them
    whole = (moved[:, 2:] - moved[:, :2]).prod(1)
    moved = moved.clamp(0, 1)
    return moved, (moved[:, 2:] - moved[:, :2]).prod(1) >= SMALLEST_PART * whole


def _check_places(config: Any, side: int) -> None:
    """A network that chooses its queries among the places of its feature maps needs whole maps, and enough of them."""
    step = max(config.feat_strides)
    if side % step:
        raise UserError(
            f"The images would have {side} pixels a side, and the network halves them down to 1 in {step}. Give "
            f"--image_size {max(round(side / step), 1) * step} or another multiple of {step}."
        )
    if (places := _count_places(config, side)) < config.num_queries:
        needed = next(n for n in range(side, 100 * side, step) if _count_places(config, n) >= config.num_queries)
        raise UserError(
            f"Images of {side} pixels give the network {places} places, of which it chooses {config.num_queries}. "
            f"Give --image_size {needed} or more."
        )


def _count_places(config: Any, side: int) -> int:
    return sum((side // stride) ** 2 for stride in config.feat_strides)


def _to_shares(boxes: list, size: tuple[int, int]) -> np.ndarray:
    """x, y, width, height in pixels -> corners as shares of the image, float32 [N, 4]."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    return (corners / np.tile(np.asarray(size, np.float32), 2)).clip(0, 1)


def _as_boxes(row: np.ndarray) -> Boxes:
    found = np.asarray(row, np.float64).reshape(-1, 6)
    return Boxes(found[:, 2:], found[:, 0].astype(np.int64), found[:, 1])


def _true_boxes(rows: datasets.Dataset) -> list[Boxes]:
    pairs = zip(rows["corners"], rows["classes"], strict=True)
    return [Boxes(np.asarray(c, np.float64).reshape(-1, 4), np.asarray(k, np.int64)) for c, k in pairs]
