"""How is a pushed model loaded and asked, with plain transformers and peft? A test runs the code."""

import json
from typing import Any

from hftl.hub.stage import Staged
from hftl.tasks import build_task

ANSWERS = {
    "multi_label_classification": "{model.config.id2label[i]: p for i, p in enumerate(logits[0].sigmoid().tolist())}",
    "regression": "logits[0].item()",
    "single_label_classification": "model.config.id2label[logits.argmax(-1).item()]",
}


# What hftl does to an image before its processor: upright, transparency on white, and of deep ones the range of train.
READ_IMAGE = """image = ImageOps.exif_transpose(Image.open("photo.png")).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")"""
READ_DEEP_IMAGE = """low, high = {range}  # black and white: the numbers of the pixels of train, not 0 and 255
pixels = np.asarray(ImageOps.exif_transpose(Image.open("photo.tif")), np.float64)
pixels = ((pixels - low) / (high - low) * 255).round().clip(0, 255)
image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")"""


def write_snippet(staged: Staged) -> str:
    """Imports, loading, and one question."""
    record = staged.record
    task = build_task(record.task)
    processor = task.processor_class
    at = f', subfolder="{staged.subfolder}"' if staged.subfolder else ""
    name, auto = f'"{staged.repo_id}"{at}', task.auto_model
    is_quantized = staged.base is not None and staged.base.quantization is not None
    classes = sorted(
        {auto, processor, *(["AutoConfig"] if staged.base else []), *(["BitsAndBytesConfig"] if is_quantized else [])}
    )
    num_tokens = staged.base.num_tokens if staged.base else None
    rows = f", vocab_size={num_tokens}" if num_tokens else ""  # of the base: the adapter brings the others
    read_image = write_reading(record.data.get("pixel_range"))
    lines = ["import numpy as np"] if "{image}" in task.snippet and "np." in read_image else []
    lines += ["import torch"] if "torch." in task.snippet else []
    lines += ["from peft import PeftModel"] if staged.base else []
    lines += ["from PIL import Image, ImageOps"] if "{image}" in task.snippet else []
    lines += [f"from transformers import {', '.join(classes)}", ""]
    if staged.base:
        bits = _write_quantization(staged.base.quantization) if staged.base.quantization else ""
        lines += [
            f"config = AutoConfig.from_pretrained({name}{rows})",
            f'base = {auto}.from_pretrained("{staged.base.name}", revision="{staged.base.revision}", config=config, '
            f"ignore_mismatched_sizes=True{bits})",
            *([f"base.resize_token_embeddings({_count_rows(staged)}, mean_resizing=False)"] if rows else []),
            f"model = PeftModel.from_pretrained(base, {name}).eval()",
        ]
    else:
        lines.append(f"model = {auto}.from_pretrained({name}).eval()")
    example = '"One text", "another"' if len(record.config.get("text_columns") or []) > 1 else '"A text"'
    answer = ANSWERS.get(record.data["problem_type"], "")
    ask = task.snippet.replace("{example}", example).replace("{answer}", answer).replace("{image}", read_image)
    return "\n".join([*lines, f"processor = {processor}.from_pretrained({name})", "", ask])


def write_reading(pixel_range: list[float] | None) -> str:
    """How `image` is read; of a data set with more than 8 bits a pixel with its scale."""
    if pixel_range is None:
        return READ_IMAGE
    return READ_DEEP_IMAGE.replace("{range}", ", ".join(f"{value:.10g}" for value in pixel_range))


def _count_rows(staged: Staged) -> int:
    """Of the embedding with the tokens that were added."""
    return json.loads((staged.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]


def _write_quantization(settings: dict[str, Any]) -> str:
    """The argument that loads the base in as few bits as the adapter was trained over."""
    words = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return f", quantization_config=BitsAndBytesConfig({words})"
