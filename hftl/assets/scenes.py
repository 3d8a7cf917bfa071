"""Scenes of several garments with exact masks and boxes, made of Fashion-MNIST: what `bundled:fashion-scenes` holds.

A pixel belongs to a garment if the garment was drawn on it last, so masks and boxes are exact by construction. Every
scene is drawn from (split, its number): the same files each time. A garment of one split is in no other split.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

KINDS = ("top", "trouser", "dress", "shoe", "bag")
# Fashion-MNIST's ten classes in their order -> five kinds that 30 pixels tell apart: four of the ten are tops, which
# people mix up as well.
KIND_OF = (0, 1, 0, 2, 0, 3, 0, 3, 4, 3)
NUM_SCENES = {"train": 1500, "validation": 250, "test": 500}
SIZE = 64  # pixels, height and width
DRAWN = 24  # of 255: darker pixels of a garment are its black background
MAX_OVERLAP = 0.1  # of a garment's pixels that may cover others
TRIES = 20  # places tried for a garment before the scene does without it


def write_scenes(sources: Mapping[str, str], folder: Path) -> None:
    """Write `train.parquet`, `validation.parquet` and `test.parquet` with `image`, `mask` and `objects`.

    Args:
        sources: split -> parquet file of Fashion-MNIST.
        folder: new.
    """
    import datasets

    boxes = {"bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4))}
    objects = boxes | {"category": datasets.List(datasets.ClassLabel(names=list(KINDS)))}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image(), "objects": objects})
    folder.mkdir(parents=True)
    for number, (split, count) in enumerate(NUM_SCENES.items()):
        rows = list(_draw_scenes(datasets.Dataset.from_parquet(sources[split]), number, count))
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")


def _draw_scenes(garments: Any, split: int, count: int) -> Iterator[dict[str, Any]]:
    import numpy as np

    images, labels = [np.asarray(image) for image in garments["image"]], garments["label"][:]
    by_kind = [[i for i, label in enumerate(labels) if KIND_OF[label] == kind] for kind in range(len(KINDS))]
    for scene in range(count):
        draw = np.random.default_rng([split, scene])
        kinds = draw.integers(0, len(KINDS), int(draw.integers(2, 5))).tolist()
        chosen = [(kind, images[by_kind[kind][int(draw.integers(len(by_kind[kind])))]]) for kind in kinds]
        yield _compose(chosen, draw)


def _compose(chosen: list[tuple[int, Any]], draw: Any) -> dict[str, Any]:
    """One row: the scene, its mask (0 background, 1 + kind) and the boxes of what is seen, x, y, width, height."""
    import numpy as np

    corners = draw.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    canvas = np.asarray(_resize(corners, SIZE)).astype(np.float32)
    owner = np.full((SIZE, SIZE), -1)
    placed: list[int] = []
    for kind, garment in chosen:
        side = int(draw.integers(20, 33))
        grey = np.asarray(_resize(garment, side)).astype(np.float32)[..., None]
        drawn = grey[..., 0] > DRAWN
        for _ in range(TRIES):
            top, left = draw.integers(0, SIZE - side + 1, 2)
            window = np.s_[top : top + side, left : left + side]
            if (owner[window][drawn] >= 0).mean() <= MAX_OVERLAP:
                canvas[window][drawn] = (grey / 255 * draw.integers(120, 256, 3))[drawn]
                owner[window][drawn] = len(placed)
                placed.append(kind)
                break
    canvas += draw.normal(0, 4, canvas.shape)
    boxes = [_find_box(owner == index) for index in range(len(placed))]
    mask = np.array([0, *(1 + kind for kind in placed)], np.uint8)[owner + 1]
    return {
        "image": {"bytes": _to_png(canvas.clip(0, 255).astype(np.uint8)), "path": None},
        "mask": {"bytes": _to_png(mask), "path": None},
        "objects": {"bbox": boxes, "category": placed},
    }


def _find_box(pixels: Any) -> list[int]:
    rows, columns = pixels.any(1).nonzero()[0], pixels.any(0).nonzero()[0]
    return [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def _resize(pixels: Any, side: int) -> Any:
    from PIL import Image

    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)


def _to_png(pixels: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
