"""Image classification: one label or several for an image.

Images are decoded and resized once, by the checkpoint's own processor, and cached as uint8; each batch then needs
one multiplication and one addition. Works with and without torchvision.
"""

import io
import math
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from hftl.assets import resolve_model
from hftl.data.pixels import keep_range, kept_range, measure_range, read_rgb_rows, to_rgb
from hftl.errors import UserError
from hftl.tasks.base import build_label_tensor
from hftl.tasks.labelled import LabelledTask
from hftl.tasks.positions import build_empty
from hftl.tasks.processors import explained_loading, map_cached

# Share of the image area that a random crop keeps, and the range of its aspect ratio. Light: like resizing to 160 and
# cropping 128 (Kolesnikov et al. 2020, BiT-HyperRule). Strong: the usual recipe for training from random init.
CROPS = {"light": ((0.64, 1.0), (1.0, 1.0)), "strong": ((0.25, 1.0), (3 / 4, 4 / 3))}

LARGEST_IMAGE = 512  # pixels of the longer side of a canary; a larger one is made smaller before anything reads it
IMAGE_SNIPPET = """{image}
inputs = processor(images=image, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print({answer})"""


class ImageClassification(LabelledTask):
    name = "image-classification"
    modality = "image"
    auto_model = "AutoModelForImageClassification"
    pipeline_tag = "image-classification"
    processor_class = "AutoImageProcessor"
    num_canary_rows = 4
    snippet = IMAGE_SNIPPET
    peft_task_type = None  # peft has no image task type: the head is named in modules_to_save instead

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        with explained_loading(source):
            processor = AutoImageProcessor.from_pretrained(
                resolve_model(source), revision=revision, trust_remote_code=False
            )
        if args.image_size:
            set_image_size(processor, args.image_size)
        return processor

    def fit_processor(self, processor: Any, rows: datasets.Dataset, args: Any) -> Any:
        return fit_range(processor, rows)

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        return describe_range(processor)

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        return resize_images(rows["image"], processor)

    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        def resize(rows: dict[str, list]) -> dict[str, list]:
            images = read_rgb_rows(rows["image"], rows["row_id"], kept_range(processor))
            return {"row_id": rows["row_id"], "labels": rows["label"], **resize_images(images, processor)}

        key = {
            "rows": fingerprint,
            "processor": processor.to_json_string(),
            "backend": type(processor).__name__,
            "transformers": transformers.__version__,
        }
        dataset = dataset.cast_column("image", datasets.Image(decode=False))
        return map_cached(dataset, resize, key, batch_size=64, description="Resizing images")

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "ImageCollator":
        return ImageCollator(*measure_normalization(processor), augmentation)

    def canary_row(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        return {"image": encode_image(row["image"], processor)}

    def adjust_config(self, config: Any, processor: Any, info: Any) -> None:
        super().adjust_config(config, processor, info)
        fit_image_size(config, self.auto_model, processor)


def fit_range(processor: Any, rows: datasets.Dataset) -> Any:
    """The processor, which carries the range of the images of train where they have more than 8 bits."""
    keep_range(processor, measure_range(rows))
    return processor


def describe_range(processor: Any) -> dict[str, Any]:
    """What the run record says of the scale of the pixels; nothing where all have 8 bits."""
    pixel_range = kept_range(processor)
    return {} if pixel_range is None else {"pixel_range": list(pixel_range)}


def encode_image(image: Image.Image, processor: Any) -> bytes:
    """A PNG of 8 bits and at most `LARGEST_IMAGE` pixels a side, for a canary."""
    image = to_rgb(image, kept_range(processor))
    image.thumbnail((LARGEST_IMAGE, LARGEST_IMAGE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def resize_images(images: list[Image.Image], processor: Any) -> dict[str, list]:
    """What the processor makes of RGB images, as uint8 before its normalization: `pixels`, `height`, `width`."""
    scale, shift = measure_normalization(processor)
    pixels = np.asarray(processor(images, return_tensors="np")["pixel_values"])
    pixels = np.rint((pixels.transpose(0, 2, 3, 1) - shift) / scale).clip(0, 255).astype(np.uint8)  # [B, H, W, 3]
    height, width = pixels.shape[1:3]
    size = {"height": [height] * len(images), "width": [width] * len(images)}
    return {"pixels": [p.tobytes() for p in pixels], **size}


def set_image_size(processor: Any, size: int) -> None:
    """Let the processor give `size` x `size` images, keeping its way of resizing and cropping."""
    scale = size / processed_size(processor)
    for name in ("size", "crop_size"):
        old = getattr(processor, name, None)
        if old:
            values = {key: value for key, value in dict(old).items() if value is not None}
            setattr(processor, name, type(old)(**{key: max(1, round(value * scale)) for key, value in values.items()}))


def processed_size(processor: Any) -> int:
    """Height in pixels of what the processor gives for a square image."""
    blank = Image.new("RGB", (64, 64))
    return np.asarray(processor(blank, return_tensors="np")["pixel_values"]).shape[-2]


def fit_image_size(config: Any, auto_model: str, processor: Any) -> None:
    """Let a network read what the processor gives, unless it does so as it is: many interpolate their positions.

    Those keep their size, which their table of positions has: DINOv2 says 518 and is used at 224.
    """
    holder = config if hasattr(config, "image_size") else getattr(config, "vision_config", config)  # that of CLIP
    old, batch = getattr(holder, "image_size", None), processor(Image.new("RGB", (64, 64)), return_tensors="np")
    height, width = np.asarray(batch["pixel_values"]).shape[-2:]
    sides = list(old) if isinstance(old, (list, tuple)) else [old, old]
    if old is None or sides == [height, width] or reads_size(config, auto_model, height, width):
        return
    is_pair = isinstance(old, (list, tuple)) or height != width
    holder.image_size = [height, width] if is_pair else height


def reads_size(config: Any, auto_model: str, height: int, width: int) -> bool:
    """Whether the network that a configuration describes takes images of this size: it is asked, without weights."""
    try:
        network = build_empty(auto_model, config).eval()
        network(pixel_values=torch.empty(1, 3, height, width, device="meta"))
    except (ValueError, RuntimeError, TypeError, AssertionError):  # a check of its own, or shapes that do not fit
        return False
    return True


def measure_normalization(processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift, float32 [3] each, with `pixel_values = uint8 * scale + shift`.

    Read from what the processor does to a black, a white and a grey image, so that it holds for every combination of
    rescaling, offsets and normalization that a processor may have.
    """
    levels = [np.full((64, 64, 3), level, dtype=np.uint8) for level in (0, 255, 128)]
    low, high, grey = (
        np.asarray(processor(Image.fromarray(level), return_tensors="np")["pixel_values"])[0].mean(
            (1, 2), dtype=np.float64
        )
        for level in levels
    )
    scale = (high - low) / 255
    if not np.allclose(low + 128 * scale, grey, atol=1e-3):
        raise UserError(
            f"{type(processor).__name__} does more than scale and shift pixels; hftl cannot cache its images."
        )
    return scale.astype(np.float32), low.astype(np.float32)


class ImageCollator:
    """Stack cached images, augment the rows that carry a seed, normalize.

    Returns:
        `pixel_values` float32 [B, 3, H, W] in channels_last order; `labels` when the rows have them.
    """

    def __init__(self, scale: np.ndarray, shift: np.ndarray, augmentation: str) -> None:
        self.scale = torch.from_numpy(scale)
        self.shift = torch.from_numpy(shift)
        self.augmentation = augmentation

    def stack(self, rows: list[dict]) -> torch.Tensor:
        """Normalized images, float32 [B, 3, H, W]."""
        shape = (rows[0]["height"], rows[0]["width"], 3)
        pixels = np.stack([np.frombuffer(row["pixels"], np.uint8).reshape(shape) for row in rows])
        return torch.from_numpy(pixels).float().mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        images = self.stack(rows)
        if self.augmentation != "none" and "augmentation_seed" in rows[0]:
            seeds = [row["augmentation_seed"] for row in rows]
            images = augment(images, seeds, *CROPS[self.augmentation])
        batch = {"pixel_values": images}
        if "labels" in rows[0]:
            batch["labels"] = build_label_tensor([row["labels"] for row in rows])
        return batch


def augment(
    images: torch.Tensor, seeds: list[int], areas: tuple[float, float], ratios: tuple[float, float]
) -> torch.Tensor:
    """Random resized crop and horizontal flip, [B, 3, H, W] -> the same."""
    return sample_crops(images, draw_crops(seeds, areas, ratios, images.shape))


def draw_crops(
    seeds: list[int], areas: tuple[float, float], ratios: tuple[float, float], shape: tuple[int, ...]
) -> torch.Tensor:
    """Where random crops, half of them flipped from left to right, read their pixels: the grid of `sample_crops`.

    Each image is drawn from its own seed, so that the result does not depend on batches, workers or a restart.
    """
    draws = np.stack([np.random.default_rng(seed).random(5) for seed in seeds])
    area = areas[0] + (areas[1] - areas[0]) * draws[:, 0]
    ratio = np.exp(math.log(ratios[0]) + (math.log(ratios[1]) - math.log(ratios[0])) * draws[:, 1])
    width, height = np.sqrt(area * ratio).clip(max=1), np.sqrt(area / ratio).clip(max=1)
    theta = np.zeros((len(seeds), 2, 3), dtype=np.float32)
    theta[:, 0, 0] = width * np.where(draws[:, 4] < 0.5, -1, 1)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * (2 * draws[:, 2] - 1)
    theta[:, 1, 2] = (1 - height) * (2 * draws[:, 3] - 1)
    return F.affine_grid(torch.from_numpy(theta), list(shape), align_corners=False)


def sample_crops(images: torch.Tensor, grid: torch.Tensor, *, mode: str = "bilinear") -> torch.Tensor:
    """Crops [B, C, H, W] of a batch in their own size, as one sampling; `nearest` for numbers of classes."""
    sampled = F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
    return sampled.contiguous(memory_format=torch.channels_last)
