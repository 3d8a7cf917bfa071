"""Masks in every mode and numbering: the classes that were drawn, pixel by pixel, in every verb, or a reason."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import tiny
from tests.faults.readings import VERBS, Reader, Refused, fuzz, own_caches

SIDE = 32
UNKNOWN = 255
NAMES = ("background", "cat", "big dog", "été")
COLORS = ("#000000", "#800000", "#00ff80", "#1020ff")

# Writing of classes -> the number of each class, and whether hftl can know them without a flag.
NUMBERS = {
    "plain": ((0, 1, 2, 3), True),
    "from one": ((1, 2, 3, 4), True),
    "white": ((0, 255), False),
    "gray": ((0, 128), False),
    "apart": ((0, 60, 120, 180), False),
    "swapped": ((3, 1, 0, 2), False),
}
MODES = {
    "L": (".png", ".bmp", ".tif"),
    "P": (".png", ".bmp"),
    "1": (".png", ".bmp", ".tif"),
    "I;16": (".png", ".tif"),
    "I": (".tif",),
    "gray RGB": (".png", ".bmp"),
    "JPEG": (".jpg",),
    "RGB": (".png", ".bmp"),
}


@dataclass
class Scenes:
    """Classes of each pixel, for each image of each split, and how they are written."""

    splits: dict[str, list[np.ndarray]]
    num_classes: int
    numbering: str
    mode: str
    ending: str
    layout: str  # folders, table
    is_named: bool
    scale: int
    excuses: list[str]
    is_overnamed: bool = False

    @property
    def numbers(self) -> tuple[int, ...]:
        return NUMBERS[self.numbering][0][: self.num_classes]

    @property
    def names(self) -> tuple[str, ...]:
        if self.is_named:
            return NAMES[: self.num_classes]
        is_known = self.numbering in ("plain", "from one")
        return tuple(map(str, range(max(self.numbers) + 1 if is_known else self.num_classes)))

    @property
    def flags(self) -> list[str]:
        if not self.is_named:
            return []
        if self.mode == "RGB":
            return ["--class_names", *(f"{a}={b}" for a, b in zip(self.names, COLORS, strict=False))]
        if self.numbering == "plain":
            return ["--class_names", *self.names, *(["nothing"] if self.is_overnamed else [])]
        return ["--class_names", *(f"{a}={b}" for a, b in zip(self.names, self.numbers, strict=True))]

    def meant(self, classes: np.ndarray) -> np.ndarray:
        """The classes that are to be read; without names a number is its own class."""
        if self.numbering == "from one" and not self.is_named:
            return np.where(classes == UNKNOWN, UNKNOWN, classes + 1).astype(np.uint8)
        return classes

    def draw_mask(self, classes: np.ndarray) -> Image.Image:
        classes = classes.repeat(self.scale, 0).repeat(self.scale, 1)
        if self.mode == "RGB":
            palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLORS], np.uint8)
            return Image.fromarray(palette[classes])
        table = np.full(256, UNKNOWN, np.uint8)
        table[: self.num_classes] = self.numbers
        numbers = table[classes]
        if self.mode == "P":
            image = Image.fromarray(numbers)
            image.putpalette([(37 * place) % 256 for place in range(768)])
            return image
        if self.mode == "1":
            return Image.fromarray(numbers > 0)
        if self.mode == "I;16":
            return Image.fromarray(numbers.astype(np.uint16))
        if self.mode == "I":
            return Image.fromarray(numbers.astype(np.int32))
        if self.mode == "gray RGB":
            return Image.fromarray(numbers).convert("RGB")
        return Image.fromarray(numbers)

    def write(self, root: Path) -> dict[str, Path]:
        """Split -> what predict is asked."""
        asked = {}
        for split, scenes in self.splits.items():
            place = root / split if len(self.splits) > 1 else root
            for folder in ("images", "masks"):
                (place / folder).mkdir(parents=True, exist_ok=True)
            lines = ["image,mask"]
            for number, classes in enumerate(scenes):
                gray = np.where(classes == UNKNOWN, 128, classes * 60).astype(np.uint8)
                gray = gray.repeat(self.scale, 0).repeat(self.scale, 1)
                Image.fromarray(gray).convert("RGB").save(place / "images" / f"{number}.png")
                options = {"quality": 95} if self.ending == ".jpg" else {}
                self.draw_mask(classes).save(place / "masks" / f"{number}{self.ending}", **options)
                lines.append(f"images/{number}.png,masks/{number}{self.ending}")
            asked[split] = place / "images"
            if self.layout == "table":
                asked[split] = place / f"{split}.csv"
                asked[split].write_text("\n".join(lines) + "\n")
        return asked


@st.composite
def masks(draw):
    mode = draw(st.sampled_from(("L", "L", "P", "1", "I;16", "I", "gray RGB", "JPEG", "RGB")))
    numbering = draw(st.sampled_from(("plain", "plain", *NUMBERS)))
    if mode in ("1", "RGB"):
        numbering = "plain"
    if mode == "JPEG":
        numbering = draw(st.sampled_from(("white", "gray")))
    number = 2 if numbering in ("white", "gray") or mode == "1" else draw(st.integers(2, 4))
    is_named = draw(st.booleans()) or numbering == "swapped"
    has_unknown = mode not in ("1", "RGB", "JPEG") and numbering != "white" and draw(st.integers(0, 2)) == 0
    names = draw(st.sampled_from((("train",), ("train", "test"), ("train", "validation", "test"))))
    splits = {}
    for split in names:
        splits[split] = [draw_scene(draw, number, has_unknown) for _ in range(draw(st.integers(4, 5)))]
    ending = draw(st.sampled_from(MODES[mode]))
    layout = draw(st.sampled_from(("folders", "table")))
    scenes = Scenes(splits, number, numbering, mode, ending, layout, is_named, draw(st.sampled_from((1, 2))), [])
    if is_named and numbering == "plain" and mode not in ("RGB", "JPEG") and draw(st.integers(0, 4)) == 0:
        scenes.is_overnamed = True
        scenes.excuses.append("a named class has no pixel")
    if not is_named and (not NUMBERS[numbering][1] or mode == "RGB"):
        scenes.excuses.append("nobody said which number is a class")
    if numbering == "apart" and has_unknown or numbering == "from one":
        scenes.excuses.append("numbers that are not 0, 1, 2, ...")
    if mode == "JPEG":
        scenes.excuses.append("a JPEG")
    if mode == "gray RGB":
        scenes.excuses.append("numbers in an image in color")
    return scenes


def draw_scene(draw, number: int, has_unknown: bool) -> np.ndarray:
    """Every class has an area, in blocks of 8 pixels."""
    blocks = np.array([draw(st.integers(0, number - 1)) for _ in range(16)], np.uint8)
    blocks[:number] = range(number)
    if has_unknown:
        blocks[-1] = UNKNOWN
    return blocks.reshape(4, 4).repeat(8, 0).repeat(8, 1)


def check(scenes: Scenes, verbs: tuple[str, ...] = VERBS, trains_in: Path | None = None) -> str:
    """The property: each pixel has the class that was drawn, or one sentence says why not."""
    with tempfile.TemporaryDirectory() as place, own_caches(Path(place) / "caches"):
        root = Path(place) / "data"
        asked = scenes.write(root)
        source = ["--dataset", root]
        if scenes.layout == "table":
            source = [word for split, path in asked.items() for word in (f"--{split}_file", path)]
        reader = Reader(
            [*source, *scenes.flags],
            task="semantic-segmentation",
            read=lambda columns: columns["image"],
            decode=lambda kept, *_: {"labels": [None] * len(kept)},
            checkpoint=CHECKPOINT[-1],
        )
        try:
            found = reader.train()
        except Refused as refusal:
            assert scenes.excuses, refusal
            return f"refused: {refusal}"
        assert not scenes.is_overnamed, "a named class has no pixel"
        assert {split: len(rows) for split, rows in found.items()} == {s: len(r) for s, r in scenes.splits.items()}
        assert len(reader.labels.names) == len(scenes.names)
        if scenes.is_named:
            assert reader.labels.names == scenes.names
        if "audit" in verbs:
            assert sum(reader.audit()["num_rows"].values()) == sum(map(len, scenes.splits.values()))
        for split, rows in reader.prepare().items():
            assert_classes([rows[row_id] for row_id in sorted(rows)], scenes, split)
        split, path = list(asked.items())[-1]
        name = path if scenes.layout == "table" else f"{root}:{split}" if len(asked) > 1 else root
        if "evaluate" in verbs or "predict" in verbs:
            scored = reader.evaluate_prepared(name)
            assert_classes(scored, scenes, split)
        if "predict" in verbs:
            assert [row["pixels"] for row in reader.predict(path)] == [row["pixels"] for row in scored]
        if trains_in is not None:
            number = sum(map(len, scenes.splits.values()))
            reader.train_for_real(CHECKPOINT[-1], trains_in, number, (path, name, len(scenes.splits[split])))
    return "read"


def assert_classes(rows: list[dict[str, Any]], scenes: Scenes, split: str) -> None:
    assert len(rows) == len(scenes.splits[split])
    for row, classes in zip(rows, scenes.splits[split], strict=True):
        read = np.frombuffer(row["classes"], np.uint8).reshape(SIDE, SIDE)
        wrong = read != scenes.meant(classes)
        assert not wrong.any(), f"{wrong.sum()} pixels have another class: {np.unique(read)}"


@pytest.fixture(scope="module", autouse=True)
def checkpoint(tmp_path_factory):
    """The image processor that all examples share."""
    CHECKPOINT.append(write_checkpoint(tmp_path_factory.mktemp("segformer")))


CHECKPOINT: list[Path] = []
write_checkpoint = tiny.write_tiny_segformer


@fuzz(15)
@given(masks(), st.sampled_from(VERBS))
def test_masks_are_read_as_they_were_meant_or_refused(scenes, verb):
    check(scenes, (verb,))


@fuzz(3)
@given(masks().filter(lambda scenes: not scenes.excuses))
def test_masks_are_trained_on_and_answered(tmp_path_factory, scenes):
    check(scenes, (), tmp_path_factory.mktemp("run"))


@pytest.mark.exhaustive
@fuzz(2000, always_the_same=False)
@given(masks())
def test_many_masks_are_read_as_they_were_meant_or_refused(scenes):
    check(scenes)
