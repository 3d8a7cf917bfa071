"""Semantic segmentation: a class for each pixel.

Image and mask are brought to the size that the network reads, the mask by nearest neighbour, and scores are counted at
that size. Of each image evaluation keeps three counts a class, and no logits.
"""

import base64
import io
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from hftl.assets import resolve_model
from hftl.data.images import read_images
from hftl.data.labels import IGNORED, LabelInfo
from hftl.data.mask_numbers import IGNORED_PIXEL, to_classes
from hftl.data.masks import check_masks, choose_image, coding_of, name_classes, read_masks
from hftl.data.pixels import kept_range, read_rgb_rows
from hftl.errors import UserError
from hftl.metrics.base import Score
from hftl.metrics.segmentation import (
    PIXEL_COUNTS,
    compute_pixel_report,
    spread_mean_class_accuracy,
    spread_mean_iou,
    spread_pixel_accuracy,
)
from hftl.tasks.base import AnswerOptions, Task
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

SNIPPET = """{image}
with torch.no_grad():
    outputs = model(**processor(images=image, return_tensors="pt"))
size = (image.height, image.width)
classes = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
print([model.config.id2label[i] for i in classes.unique().tolist()])"""


class SemanticSegmentation(Task):
    name = "semantic-segmentation"
    modality = "image"
    auto_model = "AutoModelForSemanticSegmentation"
    modes = ("full", "peft", "scratch")
    flags = ("class_names", "reduce_labels", "class_weights")
    pipeline_tag = "image-segmentation"
    processor_class = "AutoImageProcessor"
    num_canary_rows = 4
    snippet = SNIPPET
    scores = {
        "mean_iou": Score(by_row=spread_mean_iou),
        "pixel_accuracy": Score(by_row=spread_pixel_accuracy),
        "mean_class_accuracy": Score(by_row=spread_mean_class_accuracy),
    }
    targets = ("mask",)
    eval_batch_size = 16  # the logits of 16 images of 512 pixels with 150 classes are 2.5 GB once they are enlarged

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        for flag in ("problem_type", "only_labels", "num_train_examples_per_class"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is about one label a row, and --task {self.name} has one a pixel.")
        names, splits = name_classes(read_masks(raw, args), args)
        return splits, LabelInfo(self.name, names)

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        rows = read_masks(datasets.DatasetDict(train=rows), args)["train"]
        return check_masks(rows, "the new data", coding_of(args), args, info.num_labels)[0]

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        with explained_loading(source):
            processor = AutoImageProcessor.from_pretrained(
                resolve_model(source), revision=revision, trust_remote_code=False
            )
        # The mask has to be resized alike, so: to a square, without cropping, padding or renumbering.
        side = args.image_size or processed_size(processor)
        processor.size = type(processor.size)(height=side, width=side)
        for name in ("do_center_crop", "do_pad", "do_reduce_labels"):
            setattr(processor, name, False)
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
        coding = coding_of(args)

        def resize(rows: dict[str, list]) -> dict[str, list]:
            pixels = resize_images(read_rgb_rows(rows["image"], rows["row_id"], kept_range(processor)), processor)
            side = (pixels["width"][0], pixels["height"][0])
            masks = read_images(rows["mask"], rows["row_id"])
            masks = [_resize(to_classes(mask, coding), side) for mask in masks]
            return {"row_id": rows["row_id"], "classes": [mask.tobytes() for mask in masks], **pixels}

        key = {
            "rows": fingerprint,
            "processor": processor.to_json_string(),
            "backend": type(processor).__name__,
            "reduce_labels": args.reduce_labels,
            "values": coding.values,
            "transformers": transformers.__version__,
        }
        for name in ("image", "mask"):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        return map_cached(dataset, resize, key, batch_size=64, description="Resizing images and masks")

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "MaskCollator":
        return MaskCollator(*measure_normalization(processor), augmentation)

    def adjust_config(self, config: Any, processor: Any, info: LabelInfo) -> None:
        config.num_labels = info.num_labels
        config.id2label, config.label2id = info.id2label, info.label2id
        config.semantic_loss_ignore_index = IGNORED_PIXEL
        if getattr(config, "use_auxiliary_head", False):  # its logits are not among the outputs: it would never learn
            config.use_auxiliary_head = False

    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        logits = _enlarge(outputs["logits"], labels.shape[-2:])  # [B, C, H, W]
        return F.cross_entropy(
            logits,
            labels,
            weight=self.weights_on(logits.device),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def count_classes(self, rows: datasets.Dataset, info: LabelInfo) -> np.ndarray:
        counts = np.zeros(info.num_labels, np.int64)
        for mask in rows["classes"]:
            pixels = np.frombuffer(mask, np.uint8)
            counts += np.bincount(pixels[pixels != IGNORED_PIXEL], minlength=info.num_labels)
        return counts

    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
        """Pixels of each class that are foreseen and there, foreseen, there, [B, 3 C]."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return torch.stack([_count_pixels(*row) for row in zip(logits, labels, strict=True)])

    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, float]:
        report = self.compute_report(kept, rows, info)
        return {name: value for name, value in report.items() if isinstance(value, float)}

    def compute_report(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        return compute_pixel_report(_as_counts(kept), info.names)

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        return {"row_id": np.asarray(rows["row_id"][:], dtype=np.int64), **_as_counts(kept)}

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        return {choose_image(features, args): "image"}

    def answer(
        self, network: Any, batch: dict[str, torch.Tensor], processor: Any, options: AnswerOptions
    ) -> torch.Tensor:
        """The class of each pixel at the size that the network reads, int64 [B, H, W]."""
        return _enlarge(network(**batch)["logits"], batch["pixel_values"].shape[-2:]).argmax(1)

    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: LabelInfo, options: AnswerOptions
    ) -> dict[str, list]:
        """`labels`, the largest first, their `shares` of the pixels, and `mask`, a PNG of class numbers in base64."""
        columns: dict[str, list] = {"labels": [], "shares": [], "mask": []}
        for index, classes in enumerate(kept):
            mask = _resize(classes, (rows["image_width"][index], rows["image_height"][index]))
            shares = np.bincount(mask.ravel(), minlength=info.num_labels) / mask.size
            present = [k for k in np.argsort(-shares, kind="stable") if shares[k]]
            columns["labels"].append([info.names[k] for k in present])
            columns["shares"].append(shares[present].tolist())
            columns["mask"].append(_to_base64(mask))
        return columns


class MaskCollator(ImageCollator):
    """Stack cached images and masks; rows that carry a seed are cropped and flipped, image and mask alike.

    Returns:
        `pixel_values` float32 [B, 3, H, W]; `labels` int64 [B, H, W] when the rows have masks.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        images = self.stack(rows)
        if "classes" not in rows[0]:
            return {"pixel_values": images}
        shape = (rows[0]["height"], rows[0]["width"])
        masks = torch.from_numpy(np.stack([np.frombuffer(row["classes"], np.uint8).reshape(shape) for row in rows]))
        if self.augmentation != "none" and "augmentation_seed" in rows[0]:
            grid = draw_crops([row["augmentation_seed"] for row in rows], *CROPS[self.augmentation], images.shape)
            images = sample_crops(images, grid)
            masks = sample_crops(masks[:, None].float(), grid, mode="nearest")[:, 0]
        labels = masks.long()
        return {"pixel_values": images, "labels": labels.masked_fill(labels == IGNORED_PIXEL, IGNORED)}


def _enlarge(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits [B, C, h, w] -> float32 [B, C, *size], as the heads of transformers do it for their loss."""
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def _count_pixels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits [C, h, w] and labels [H, W] -> float32 [3 C]; float32 counts exactly up to 16 million."""
    num_classes = logits.shape[0]
    found = _enlarge(logits[None], labels.shape)[0].argmax(0)
    is_known = labels != IGNORED
    found, true = found[is_known], labels[is_known]
    parts = (true[found == true], found, true)
    return torch.cat([torch.bincount(part, minlength=num_classes) for part in parts]).float()


def _as_counts(kept: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of `PIXEL_COUNTS`, int64 [N, C] each."""
    counts = np.asarray(kept, dtype=np.int64).reshape(len(kept), len(PIXEL_COUNTS), -1)
    return dict(zip(PIXEL_COUNTS, counts.swapaxes(0, 1), strict=True))


def _resize(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class numbers [H, W] -> uint8 at (width, height), by nearest neighbour."""
    return np.asarray(Image.fromarray(classes.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))


def _to_base64(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
