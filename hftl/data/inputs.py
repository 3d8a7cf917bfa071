"""What does one look at every input show? What cannot be used, and what tells inputs apart: a digest, a signature.

This module must not compare rows, and must not drop or change one.
"""

import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import datasets
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from hftl.data.images import ImageFault, decode_image, explained_decoding, load_bytes, open_image, strict_pillow
from hftl.data.similarity import THUMBNAIL, describe_images
from hftl.records import count_cores

BATCH = 128  # images that a thread looks at in one go


@dataclass(frozen=True)
class Look:
    """What a look at one row gave: why it is bad or None, a digest of the input, and what near duplicates share.

    Attributes:
        fault: why the row cannot be used.
        digest: equal for equal inputs; texts are equal whatever their case and white space.
        texts: of a text row.
        signature: of an image row, see `similarity.describe_images`.
        path: the file of an image.
    """

    fault: str | None
    digest: bytes = b""
    texts: tuple[str, ...] = ()
    signature: np.ndarray | None = None
    path: str | None = None


def look_at(rows: datasets.Dataset, split: str, modality: str) -> list[Look]:
    """One look at each row of a split in canonical columns."""
    if modality != "image":
        return list(_look_at_texts(rows))
    with strict_pillow():
        return list(_look_at_images(rows, split))


def _look_at_texts(rows: datasets.Dataset) -> Iterator[Look]:
    for texts, fault in list_texts(rows):
        words = [" ".join(text.casefold().split()) for text in texts]
        yield Look(fault, hashlib.sha256("\0".join(words).encode("utf-8", "replace")).digest(), tuple(texts))


def list_texts(rows: datasets.Dataset) -> Iterator[tuple[list[str], str | None]]:
    """The texts of each row, and what is wrong with them. A prompt may be empty, what is to be learnt may not."""
    if "messages" in rows.column_names:
        for messages in rows["messages"]:
            answers = [m for m in messages or [] if m["role"] == "assistant" and (m["content"] or "").strip()]
            texts = [m["content"] or "" for m in messages or []]
            yield texts, None if answers else "chat without an answer of the assistant"
    elif "completion" in rows.column_names:
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
            yield [prompt or "", completion or ""], None if (completion or "").strip() else "empty completion"
    else:
        names = [name for name in ("text", "text_pair") if name in rows.column_names]
        for texts in zip(*(rows[name] for name in names), strict=True):
            found = [text or "" for text in texts]
            yield found, None if all(text.split() for text in found) else "empty text"


def _look_at_images(rows: datasets.Dataset, split: str) -> Iterator[Look]:
    images = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
    batches = (images[start : start + BATCH]["image"] for start in range(0, len(images), BATCH))
    with (
        ThreadPoolExecutor(count_cores()) as pool,
        tqdm(total=len(images), desc=f"checking {split} images", disable=None) as bar,
    ):
        while wave := list(itertools.islice(batches, 2 * count_cores())):
            for looks in pool.map(_look_at_batch, wave):
                bar.update(len(looks))
                yield from looks


def _look_at_batch(images: list[dict | None]) -> list[Look]:
    looks, thumbnails = [], np.zeros((len(images), THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for index, image in enumerate(images):
        looks.append(_look_at_image(image, thumbnails[index]))
    signatures = describe_images(thumbnails)
    return [replace(look, signature=signature) for look, signature in zip(looks, signatures, strict=True)]


def _look_at_image(image: dict | None, thumbnail: np.ndarray) -> Look:
    """All but the signature, for which the thumbnail [THUMBNAIL, THUMBNAIL, 3] is filled."""
    path, data = image["path"] if image else None, b""
    try:
        data = load_bytes(image)
        opened = open_image({"bytes": data, "path": path})
        drafted = opened.draft(None, (THUMBNAIL, THUMBNAIL))  # a JPEG is read to its end and scaled on the way
        decode_image(opened)
        with explained_decoding(path):
            thumbnail[:] = _make_thumbnail(opened, drafted[1] if drafted else None)
    except ImageFault as fault:
        return Look(fault.kind, hashlib.sha256(data).digest() if data else b"", path=path)
    return Look(None, hashlib.sha256(data).digest(), path=path)


def _make_thumbnail(image: Image.Image, box: tuple[float, ...] | None = None) -> np.ndarray:
    """RGB, uint8 [THUMBNAIL, THUMBNAIL, 3].

    Args:
        image: any mode.
        box: what of it is the picture; a JPEG that was scaled on the way has a part of a pixel more at two edges.
    """
    if image.mode.startswith("I") or image.mode == "F":  # converted by Pillow, all above 255 would be white
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((values / max(float(values.max()), 1e-6) * 255).clip(0, 255).astype(np.uint8))
    return np.asarray(image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, box, 2.0))
