"""Folders of images in every layout: each image with its class, its file and its pixels in every verb, or a reason.

Images have a dark and a bright side, so that what a network would see of them can be told from what was drawn.
"""

import json
import os
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
CLASSES = ("cat", "dog", "big bird", "été", "01", "train set", "Ünder_score", "a.b")
FORMATS = {
    ".png": "PNG",
    ".PNG": "PNG",
    ".jpg": "JPEG",
    ".JPEG": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
}
LITTER = (
    *(".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".ipynb_checkpoints/0-checkpoint.png"),
    *("notes.txt", "README.md"),
)
ROOT_LITTER = (*LITTER, "__MACOSX/cat/._0.png", "@eaDir/0.png", ".git/config")
STRAY = ("docs/a.txt", "scripts/run.py", "extra/0.png")


def draw_image(mode: str, number: int) -> Image.Image:
    """Dark on the left and bright on the right; `number` tells images apart."""
    grey = np.full((SIDE, SIDE), 30, np.uint8)
    grey[:, SIDE // 2 :] = 220
    grey[:4, : 4 + number % 24] = 200
    grey[-4:, : 4 + number // 24] = 180
    if mode == "12 bits":
        return Image.fromarray((grey.astype(np.uint16) << 4).astype(np.uint16))
    if mode == "I;16":
        return Image.fromarray((grey.astype(np.uint16) << 8).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32))
    if mode == "F":
        return Image.fromarray((grey / 255).astype(np.float32))
    if mode in ("RGBA", "LA", "PA"):
        opaque = Image.fromarray(grey).convert("RGBA")
        return opaque if mode == "RGBA" else opaque.convert(mode)
    return Image.fromarray(grey).convert("RGB").convert(mode)


# Mode -> endings of formats that keep it.
MODES = {
    "RGB": (".png", ".PNG", ".jpg", ".JPEG", ".bmp", ".webp", ".tif"),
    "L": (".png", ".jpg", ".JPEG", ".bmp", ".gif", ".tif"),
    "P": (".png", ".gif", ".bmp"),
    "1": (".png", ".bmp", ".tif"),
    "LA": (".png",),
    "RGBA": (".png", ".webp", ".tif"),
    "CMYK": (".jpg", ".tif"),
    "YCbCr": (".jpg",),
    "I;16": (".png", ".tif"),
    "12 bits": (".png", ".tif"),
    "I": (".tif",),
    "F": (".tif",),
}
DEEP = ("I;16", "12 bits", "I", "F")


@dataclass
class Folder:
    """Images of every split by class, how they are written, and what lies beside them."""

    splits: dict[str, list[tuple[str, str, str]]]  # class, name of the file, mode
    layout: str  # classes, metadata, table
    names: dict[str, str]  # split -> its folder
    litter: list[str]
    root_litter: list[str]
    stray: list[str]
    links: str  # none, classes, files
    table: str  # ending of metadata
    excuses: list[str]
    unreadable: str  # a class that holds nothing but such files; empty: there is none

    def write(self, root: Path) -> dict[str, list[tuple[str, str]]]:
        """Split -> path below the root and class of each image, in the order of their names."""
        written, number = {}, 0
        for split, images in self.splits.items():
            place = root / self.names[split] if self.names[split] else root
            found = []
            for label, name, mode in images:
                below = Path(label) / name if self.layout == "classes" else Path("pictures") / name
                path = place / below
                number += 1
                self.save(path, mode, number, root)
                found.append((str(path.relative_to(root)), label))
            for name in self.litter:
                put(place / images[0][0] / name if self.layout == "classes" else place / name)
            if self.layout != "classes":
                write_metadata(place / f"metadata{self.table}", place, root, found)
            written[split] = found
        if self.unreadable:
            put(root / self.names["train"] / "lost class" / f"0{self.unreadable}")
        for name in (*self.root_litter, *self.stray):
            put(root / name)
        return written

    def save(self, path: Path, mode: str, number: int, root: Path) -> None:
        kept = path
        if self.links == "classes":
            kept = root.parent / "elsewhere" / path.parent.relative_to(root) / path.name
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            if not path.parent.exists():
                path.parent.symlink_to(kept.parent, target_is_directory=True)
        elif self.links == "files":
            kept = root.parent / "elsewhere" / f"{number}{path.suffix}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        draw_image(mode, number).save(kept, FORMATS[path.suffix])


def put(path: Path) -> None:
    """A file that is none of the data; some are images nevertheless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png" and not path.name.startswith("._"):
        draw_image("RGB", 500).save(path)
    else:
        path.write_bytes(b"\0\5\x16\7" + bytes(40))


def write_metadata(path: Path, place: Path, root: Path, found: list[tuple[str, str]]) -> None:
    rows = [(str(Path(name).relative_to(place.relative_to(root))), label) for name, label in found]
    if path.suffix == ".csv":
        path.write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows), encoding="utf-8")
    else:
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@st.composite
def folders(draw):
    classes = draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=3, unique=True))
    modes = draw(st.sampled_from((("RGB",), ("RGB", "L", "P"), ("RGB", "RGBA", "LA", "CMYK", "YCbCr"), ("1", "L"))))
    if draw(st.integers(0, 3)) == 0:
        modes = (draw(st.sampled_from(DEEP)),)
    splits, names = {}, {}
    is_split = draw(st.booleans())
    for split, folder in draw_splits(draw) if is_split else [("train", "")]:
        images = []
        for label in classes:
            for place in range(draw(st.integers(3 if split == "train" else 1, 4))):
                mode = draw(st.sampled_from(modes))
                ending = draw(st.sampled_from(MODES[mode]))
                stem = draw(st.sampled_from((f"{place}", f"img {place}", f"été-{place}", f"a.b.{place}")))
                images.append((label, f"{label[0]}{stem}{ending}", mode))
        splits[split], names[split] = images, folder
    layout = draw(st.sampled_from(("classes", "classes", "metadata")))
    litter = draw(st.lists(st.sampled_from(LITTER), max_size=2, unique=True))
    folder = Folder(
        splits,
        layout,
        names,
        litter,
        draw(st.lists(st.sampled_from(ROOT_LITTER), max_size=2, unique=True)),
        draw(st.lists(st.sampled_from(STRAY), max_size=1)) if is_split else [],
        draw(st.sampled_from(("none", "none", "classes", "files"))) if layout == "classes" else "none",
        draw(st.sampled_from((".csv", ".jsonl"))),
        [],
        draw(st.sampled_from(("",) * 6 + (".heic", ".mp4", ".txt"))) if layout == "classes" else "",
    )
    if folder.unreadable:
        folder.excuses.append("a class without images")
    if folder.links == "files":
        folder.excuses.append("links to files outside of the folder")
    return folder


def draw_splits(draw):
    train = draw(st.sampled_from(("train", "Train", "training")))
    test = draw(st.sampled_from(("test", "TEST", "testing")))
    validation = draw(st.sampled_from(("val", "validation", "valid", "dev")))
    names = [("train", train), ("test", test), ("validation", validation)]
    return names[: draw(st.integers(2, 3))]


def check(folder: Folder, verbs: tuple[str, ...] = VERBS, trains_in: Path | None = None) -> str:
    """The property: which files, of which class, with which pixels; in training, evaluation and prediction."""
    with tempfile.TemporaryDirectory() as place, own_caches(Path(place) / "caches"):
        root = Path(place).resolve() / "data"
        root.mkdir()
        written = folder.write(root)
        reader = Reader(
            ["--dataset", root],
            task="image-classification",
            read=lambda columns: columns["image"],
            checkpoint=CHECKPOINT[-1],
        )
        try:
            found = reader.train()
        except Refused as refusal:
            assert folder.excuses, refusal
            return f"refused: {refusal}"
        assert not folder.unreadable, "a class has disappeared"
        assert set(found) == set(written)
        for split, images in written.items():
            assert_files(found[split], images, root)
        if "audit" in verbs:
            report = reader.audit()
            assert sum(report["num_rows"].values()) == sum(map(len, written.values()))
            assert not report["bad_rows"].get("train")
        split, images = list(written.items())[-1]
        if "evaluate" in verbs:
            assert_files(reader.evaluate(f"{root}:{split}" if len(written) > 1 else root), images, root)
        if "predict" in verbs:
            assert_pixels(reader, found, see_answers(reader, root, folder, written), root)
        if trains_in is not None:
            split, images = list(written.items())[-1]
            asked = root / folder.names[split] / ("" if folder.layout == "classes" else f"metadata{folder.table}")
            number = sum(map(len, written.values()))
            source = (asked, f"{root}:{split}" if len(written) > 1 else root, len(images))
            reader.train_for_real(CHECKPOINT[-1], trains_in, number, source)
    return "read"


def assert_files(found: list[tuple[Any, Any]], images: list[tuple[str, str]], root: Path) -> None:
    read = [(os.path.relpath(image["path"], root), label) for image, label in found]
    assert sorted(read) == sorted((name, label) for name, label in images)


def see_answers(
    reader: Reader, root: Path, folder: Folder, written: dict[str, list[tuple[str, str]]]
) -> dict[str, bytes]:
    """Path -> what the network is asked, of folders and tables; each image is answered once, under its name."""
    asked = {}
    for split, images in written.items():
        place = root / folder.names[split]
        inputs = reader.predict(place if folder.layout == "classes" else place / f"metadata{folder.table}")
        names = [row["file"] for row in reader.answers] if "file" in reader.answers[0] else None
        names = names or [str(Path(name).relative_to(place.relative_to(root))) for name, _ in images]
        found = {str(Path(folder.names[split]) / name): row["pixels"] for name, row in zip(names, inputs, strict=True)}
        if not folder.names[split]:  # the folder of all splits, and what lies beside it
            found = {name: pixels for name, pixels in found.items() if not name.startswith("extra/")}
        assert sorted(found) == sorted(name for name, _ in images)
        asked.update(found)
    return asked


def assert_pixels(reader: Reader, found: dict[str, list], asked: dict[str, bytes], root: Path) -> None:
    """Bright where it was drawn bright, and the same in training as in prediction."""
    for split, rows in reader.prepare().items():
        for row_id, row in rows.items():
            name = os.path.relpath(found[split][row_id][0]["path"], root)
            image = np.frombuffer(row["pixels"], np.uint8).reshape(SIDE, SIDE, 3).astype(int)
            assert image[8:-8, 20:].mean() - image[8:-8, :12].mean() > 100, f"{name}: what was drawn cannot be seen"
            assert row["pixels"] == asked[name], f"{name}: prediction sees other pixels than training"


@pytest.fixture(scope="module", autouse=True)
def checkpoint(tmp_path_factory):
    """The image processor that all examples share."""
    CHECKPOINT.append(write_checkpoint(tmp_path_factory.mktemp("vit")))


CHECKPOINT: list[Path] = []
write_checkpoint = tiny.write_tiny_vit


@fuzz(25)
@given(folders(), st.sampled_from(VERBS))
def test_a_folder_of_images_is_read_as_it_was_meant_or_refused(folder, verb):
    check(folder, (verb,))


@fuzz(3)
@given(folders().filter(lambda folder: not folder.excuses))
def test_folders_are_trained_on_and_answered(tmp_path_factory, folder):
    check(folder, (), tmp_path_factory.mktemp("run"))


@pytest.mark.exhaustive
@fuzz(2000, always_the_same=False)
@given(folders())
def test_many_folders_of_images_are_read_as_they_were_meant_or_refused(folder):
    check(folder)
