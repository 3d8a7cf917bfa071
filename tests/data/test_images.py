"""One reader of images: its limit of pixels, what is no regular file, broken metadata, and nothing goes past it."""

import ast
import io
import os
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hftl.data import images
from hftl.data.images import ImageFault, find_turned_size, is_image, read_image, read_images
from hftl.data.inputs import look_at
from hftl.data.load import compute_fingerprint
from hftl.data.mask_numbers import Coding
from hftl.data.masks import check_masks
from hftl.data.pixels import measure_range, read_rgb_rows
from hftl.errors import UserError
from hftl.inference.predictor import check_window

PACKAGE = Path(images.__file__).parents[1]
ORIENTATION = 0x0112


def bomb(width=10_000, height=10_000):
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def icon(inner):
    """An icon of 16 pixels that holds another image."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


BOMBS = {"warned": bomb(), "refused": bomb(30_000, 30_000), "long": bomb(2**31 - 1, 1), "icon": icon(bomb())}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_too_many_pixels_are_never_decoded(data, monkeypatch):
    value = {"bytes": data, "path": "x.png"}
    rows = datasets.Dataset.from_dict({"row_id": [4], "image": [value], "mask": [value]})
    rows = rows.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    assert [look.fault for look in look_at(rows, "train", "image")] == ["image with too many pixels"]
    assert "image with too many pixels" in check_window({"image": [value]}, Path())[1][0]
    with pytest.raises(UserError, match="row_id 4 cannot be used: image with too many pixels"):
        read_images([value], [4])
    for read in (lambda: read_rgb_rows([value], [4], None), lambda: measure_range(rows)):
        with pytest.raises(UserError, match="row_id 4 cannot be used: image with too many pixels"):
            read()
    args = type("Arguments", (), {"on_bad_rows": "error"})
    with pytest.raises(UserError, match="cannot be read: image with too many pixels"):
        check_masks(rows, "train", Coding(), args)


def test_an_image_of_python_has_the_same_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageFault, match=r"too many pixels \(4 x 3, and at most 10 are read\)"):
        read_image(Image.new("L", (4, 3)))


@pytest.mark.parametrize("name", ["pipe.png", "folder.png", "device.png", "gone.png", "null\0.png", "loop.png"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name):
    path = str(tmp_path / name)
    make = {"pipe.png": os.mkfifo, "folder.png": os.mkdir, "device.png": lambda p: os.symlink("/dev/zero", p)}
    make.get(name, lambda p: os.symlink(p, p) if "loop" in p else None)(path)
    kind = "missing file" if name in ("gone.png", "loop.png") else "unreadable file|missing file"
    with pytest.raises(ImageFault, match=kind):
        read_image(path)
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path}], "label": [0]})
    with pytest.raises(ImageFault, match=kind):
        compute_fingerprint(rows.cast_column("image", datasets.Image()))


def test_a_file_of_a_terabyte_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageFault, match="too large a file for an image"):
        read_image(str(tmp_path / "a.png"))


def test_no_other_program_is_started_for_an_image(monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("Ghostscript was started"))
    with pytest.raises(ImageFault, match="corrupt image"):
        read_image({"bytes": encode(Image.new("RGB", (4, 4)), "EPS"), "path": "x.png"})
    assert not is_image(Path("x.eps")) and is_image(Path("x.JPG"))


@pytest.mark.parametrize("value", [None, "", {}, {"bytes": None, "path": None}, {"bytes": "text"}, 3, {"bytes": b""}])
def test_what_holds_no_image_is_said(value):
    with pytest.raises(ImageFault, match="no image|empty image file"):
        read_image(value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_metadata_say(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    data = {"bytes": encode(picture, exif=exif), "path": None}
    expected = datasets.Image().decode_example(data)
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(expected))
    assert np.array_equal(np.asarray(read_image(Image.open(io.BytesIO(data["bytes"])))), np.asarray(expected))
    assert find_turned_size(data) == expected.size
    assert read_image(read_image(data)).size == expected.size  # and not once more


def _insert(jpeg, payload):
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


BROKEN = {
    "xmp": b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>\xa8\xb0 tiff:Orientation=\"6\" </x:xmpmeta>",
    "zero": b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHIIHHII", 0x0112, 3, 1, 6 << 16, 0x011A, 5, 1, 38)
            + bytes(4) + struct.pack(">II", 72, 0),
    "cut": b"Exif\0\0MM\0*\0\0",
    "nine": b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHII", 0x0112, 3, 1, 9 << 16) + bytes(4),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_sound_picture_with_broken_metadata_is_read(kind):
    data = {"bytes": _insert(encode(Image.new("RGB", (6, 4)), "JPEG"), BROKEN[kind]), "path": None}
    assert read_image(data).size == ((4, 6) if kind in ("xmp", "zero") else (6, 4))


def test_nothing_decodes_images_past_the_reader():
    """Neither Pillow nor `datasets`; `load_check` knows nothing of hftl, and reads the PNG that hftl wrote."""
    exempt = {"data/images.py", "hub/load_check.py"}
    for path in PACKAGE.rglob("*.py"):
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        if str(path.relative_to(PACKAGE)) not in exempt:
            assert not {name for name in calls if name == "Image.open" or name.endswith("decode_example")}, path


def test_nothing_makes_colors_past_the_converter():
    """Of pictures, that is: masks have `mask_numbers`, and `load_check` reads the PNG that hftl wrote."""
    exempt = {"data/pixels.py", "data/mask_numbers.py", "data/masks.py", "hub/load_check.py"}
    for path in PACKAGE.rglob("*.py"):
        if str(path.relative_to(PACKAGE)) not in exempt:
            calls = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not [call for call in calls if ".convert('RGB" in call], path


@pytest.mark.parametrize(
    ("mode", "reason"), [("La", "corrupt image"), ("I", "an image of mode I"), ("F", "of mode F")]
)
def test_a_picture_without_colors_or_with_a_strange_depth_is_named_by_its_row(mode, reason):
    """Pillow knows modes that it cannot convert, and numbers beyond 8 bits need the range of train."""
    picture = Image.new(mode, (4, 4), 5000 if mode != "La" else 0)
    with pytest.raises(UserError, match=f"The image of row_id 7 cannot be used: .*{reason}"):
        read_rgb_rows([picture], [7], None)


def test_masks_that_lie_on_their_side_keep_their_format():
    """What is turned upright has none in Pillow; a JPEG is one still, whose numbers are blurred."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    side, mask = io.BytesIO(), Image.fromarray(np.tile(np.array([0, 1], np.uint8), (8, 4)))
    mask.save(side, "JPEG", exif=exif)
    value = {"bytes": side.getvalue(), "path": "x.jpg"}
    rows = datasets.Dataset.from_dict({"row_id": [4], "image": [value], "mask": [value]})
    rows = rows.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    with pytest.raises(UserError, match="row_id 4: the mask x.jpg is a JPEG"):
        check_masks(rows, "train", Coding(), type("Arguments", (), {"on_bad_rows": "error"}))
