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
from hftl.data.pixels import is_deep, read_values, to_rgb
from hftl.data.similarity import THUMBNAIL, describe_images
from hftl.run_record import count_cores

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
        is_constant: of an image: all its pixels are alike, as the network reads them.
    """

    fault: str | None
    digest: bytes = b""
    texts: tuple[str, ...] = ()
    signature: np.ndarray | None = None
    path: str | None = None
    is_constant: bool = False


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
    """The texts of each row, and what is wrong with it. A prompt may be empty, what is to be learnt may not."""
    known = rows["fault"] if "fault" in rows.column_names else itertools.repeat(None, len(rows))
    for (texts, fault), read in zip(_list_texts(rows), known, strict=True):
        yield texts, read or fault


def _list_texts(rows: datasets.Dataset) -> Iterator[tuple[list[str], str | None]]:
    if "messages" in rows.column_names:
        for messages, tools in zip(rows["messages"], rows["tools"], strict=True):
            texts = [f"{m['content']}{m['extra'] or ''}" for m in messages or []]
            yield texts + ([tools] if tools else []), find_chat_fault(messages or [])
    elif "completion" in rows.column_names:
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
            yield [prompt or "", completion or ""], None if (completion or "").strip() else "empty completion"
    else:
        names = [name for name in ("text", "text_pair") if name in rows.column_names]
        for texts in zip(*(rows[name] for name in names), strict=True):
            found = [text or "" for text in texts]
            yield found, None if all(text.split() for text in found) else "empty text"


def find_chat_fault(messages: list[dict]) -> str | None:
    """Why nothing can be learnt from a chat; None for a good one."""
    turns = [m for m in messages if m["role"] == "assistant" and m["is_learnt"]]
    if not turns:
        return "chat without an answer of the assistant"
    is_said = [bool(turn["content"].strip() or turn["extra"]) for turn in turns]
    return None if all(is_said) else "empty answer of the assistant"


def find_bad_images(rows: datasets.Dataset) -> Iterator[str | None]:
    """What is wrong with the image of each row, and which file that is."""
    for look in look_at(rows, "all", "image"):
        yield f"{look.fault}: {look.path}" if look.fault and look.path else look.fault


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
            is_constant = _is_constant(opened, thumbnail, data if drafted else None)
    except ImageFault as fault:
        return Look(fault.kind, hashlib.sha256(data).digest() if data else b"", path=path)
    return Look(None, hashlib.sha256(data).digest(), path=path, is_constant=is_constant)


def _is_constant(image: Image.Image, thumbnail: np.ndarray, data: bytes | None) -> bool:
    """Whether all pixels are alike; where the thumbnail leaves that open, a scaled JPEG is decoded once more."""
    if np.ptp(thumbnail, axis=(0, 1)).any():
        return False
    if is_deep(image):
        values = read_values(image)
        return bool((values == values[0, 0]).all() or not np.isfinite(values).any())
    whole = image if data is None else open_image({"bytes": data})
    return all(low == high for low, high in to_rgb(whole).getextrema())


def _make_thumbnail(image: Image.Image, box: tuple[float, ...] | None = None) -> np.ndarray:
    """RGB, uint8 [THUMBNAIL, THUMBNAIL, 3], of what a network reads.

    Args:
        image: any mode.
        box: what of it is the picture; a JPEG that was scaled on the way has a part of a pixel more at two edges.
    """
    return np.asarray(to_rgb(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, box, 2.0))
