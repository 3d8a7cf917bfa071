"""Does the code of a card read an image as training did?"""

import numpy as np
import pytest
from PIL import Image, ImageOps

from hftl.data.pixels import read_rgb, to_rgb
from hftl.hub.snippets import write_reading

COLORS = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)


def palette() -> Image.Image:
    image = Image.fromarray(COLORS[..., :3]).quantize(8)
    image.info["transparency"] = 0
    return image


EIGHT_BITS = {
    "RGB": ("png", Image.fromarray(COLORS[..., :3])),
    "RGBA": ("png", Image.fromarray(COLORS)),
    "L": ("png", Image.fromarray(COLORS[..., 0])),
    "LA": ("png", Image.fromarray(COLORS).convert("LA")),
    "P with transparency": ("png", palette()),
    "P": ("png", Image.fromarray(COLORS[..., :3]).quantize(8)),
    "1": ("png", Image.fromarray(COLORS[..., 0] > 128)),
    "CMYK": ("jpg", Image.fromarray(COLORS[..., :3]).convert("CMYK")),
}
DEEP = {
    "12 bits": (Image.fromarray((COLORS[..., 0] * 16).astype(np.uint16)), [0, 4095]),
    "32 bits": (Image.fromarray(COLORS[..., 0].astype(np.int32) - 100), [-104, 156.5]),
    "float": (Image.fromarray(COLORS[..., 0] / np.float32(255)), [0, 1]),
}


def read_by_card(path, pixel_range=None) -> np.ndarray:
    names = {"Image": Image, "ImageOps": ImageOps, "np": np}
    code = write_reading(pixel_range)
    exec(code.replace("photo.png", str(path)).replace("photo.tif", str(path)), names)
    assert names["image"].mode == "RGB"
    return np.asarray(names["image"])


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("ending", "image"), EIGHT_BITS.values(), ids=EIGHT_BITS)
def test_images_of_8_bits_in_every_mode_and_orientation(ending, image, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{ending}"
    image.save(path, exif=exif)
    np.testing.assert_array_equal(read_by_card(path), np.asarray(read_rgb(path, None)))


@pytest.mark.parametrize(("image", "pixel_range"), DEEP.values(), ids=DEEP)
def test_images_of_more_bits_with_the_range_of_train(image, pixel_range, tmp_path):
    image.save(tmp_path / "photo.tif")
    expected = np.asarray(to_rgb(Image.open(tmp_path / "photo.tif"), tuple(pixel_range)))
    np.testing.assert_array_equal(read_by_card(tmp_path / "photo.tif", pixel_range), expected)
