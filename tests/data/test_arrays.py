"""Arrays of numbers become the picture that they are, or are refused; nothing is cut to 8 bits."""

import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hftl.config import DataArguments
from hftl.data.arrays import read_array
from hftl.data.load import load_splits
from hftl.data.paths import to_images
from hftl.data.pixels import read_rgb
from hftl.data.stream import open_stream
from hftl.errors import UserError
from hftl.inference.predictor import check_window

RAMP = np.linspace(0, 255, 48).reshape(6, 8).astype(np.uint8)
COLORS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
GRAY = np.stack([RAMP] * 3, axis=-1)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (COLORS, COLORS),
        (COLORS.tolist(), COLORS),
        (COLORS.astype(np.int16), COLORS),
        (COLORS.astype(np.float64), COLORS),
        (np.dstack([COLORS, np.full_like(RAMP, 255)]), COLORS),
        (RAMP[..., None], GRAY),
        (RAMP.astype(np.int64), GRAY),
        (RAMP.astype(np.float16), GRAY),
        (RAMP.astype(np.uint16) * 257, GRAY),
        (RAMP / 255, GRAY),
        (RAMP > 99, (GRAY > 99) * 255),
        (COLORS > 99, (COLORS > 99) * 255),
    ],
)
def test_an_array_is_the_picture_of_its_numbers(array, expected):
    assert np.array_equal(np.asarray(read_rgb(read_array(array), None)), expected)


BAD = {
    "16 bits": (COLORS.astype(np.uint16) * 257, r"uint16 \[6, 8, 3\] from 0 to 65535; colors are uint8"),
    "12 bits": (COLORS.astype(np.int32) * 16, "from 0 to 4080; colors are uint8"),
    "negative": (COLORS.astype(np.int64) - 1, "from -1 to 254; colors are uint8"),
    "0 to 1": (COLORS / 255, "from 0 to 1; colors are uint8"),
    "not a number": (np.where(COLORS > 9, np.nan, COLORS), "from nan to nan; colors are uint8"),
    "0.5 to 127.5": (COLORS / 2, "from 0 to 127.5; colors are uint8"),
    "channels first": (COLORS.transpose(2, 0, 1), r"\[3, 6, 8\].*transpose\(1, 2, 0\)"),
    "two channels": (COLORS[..., :2], r"\[6, 8, 2\]; expected"),
    "a batch": (COLORS[None], r"\[1, 6, 8, 3\]; expected"),
    "empty": (COLORS[:0], r"\[0, 8, 3\]; expected"),
    "ragged": ([[1, 2], [3]], "lists of unequal lengths; expected"),
    "texts": ([["a"]], "expected"),
}


@pytest.mark.parametrize(("array", "message"), BAD.values(), ids=BAD)
def test_an_array_that_is_no_picture_of_8_bits_is_refused(array, message):
    with pytest.raises(UserError, match=message):
        read_array(array)
    (fault,) = check_window({"image": [array]}, None)[1]
    assert fault and "Error:" not in fault


@pytest.mark.parametrize("value", [io.BytesIO(b"\x89PNG"), 5, {1}, object()])
def test_what_is_no_image_at_all_says_what_to_give(value):
    assert "give a PIL image, an array" in check_window({"image": [value]}, None)[1][0]


def write(path, arrays):
    pq.write_table(pa.table({"image": [a.tolist() for a in arrays], "label": ["a", "b"] * (len(arrays) // 2)}), path)
    return path


def train(path):
    args = DataArguments(dataset=str(path), task="image-classification")
    return to_images(load_splits(args)["train"], "image", args)


@pytest.mark.parametrize("arrays", [[COLORS, COLORS[::-1]], [RAMP, 255 - RAMP], [COLORS[:4], COLORS]])
def test_arrays_in_parquet_are_the_same_pictures_in_training_and_prediction(tmp_path, arrays):
    path = write(tmp_path / "t.parquet", arrays)
    expected = [array if array.ndim == 3 else np.stack([array] * 3, -1) for array in arrays]
    stream = open_stream(str(path), DataArguments(), "image")
    window = next(iter(stream.read(["image"], 9)))
    for found in (train(path)["image"], check_window(window, tmp_path)[0]["image"]):
        assert all(np.array_equal(read_rgb(a, None), b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("array", [COLORS.astype(int) * 16, COLORS / 255, COLORS.transpose(2, 0, 1)])
def test_arrays_in_parquet_that_are_no_pictures_name_their_row(tmp_path, array):
    with pytest.raises(UserError, match="row_id 1 cannot be used: an array of"):
        train(write(tmp_path / "t.parquet", [array if i == 1 else COLORS for i in range(4)]))


def test_arrays_of_fixed_shape_in_a_saved_data_set_are_pictures(tmp_path):
    features = datasets.Features({"image": datasets.Array3D((6, 8, 3), "uint8"), "label": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": [COLORS, COLORS], "label": ["a", "b"]}, features).save_to_disk(tmp_path / "d")
    assert np.array_equal(np.asarray(train(tmp_path / "d")[1]["image"]), COLORS)


@pytest.mark.parametrize("ending", ["PNG", "BMP", "TIFF"])
def test_files_stored_as_bytes_are_read_in_training_and_prediction(tmp_path, ending):
    file = io.BytesIO()
    Image.fromarray(COLORS).save(file, ending)
    pq.write_table(pa.table({"image": [file.getvalue()] * 2, "label": ["a", "b"]}), tmp_path / "t.parquet")
    window = next(iter(open_stream(str(tmp_path / "t.parquet"), DataArguments(), "image").read(["image"], 9)))
    found, faults = check_window(window, tmp_path)
    assert faults == [None, None]
    for image in (*train(tmp_path / "t.parquet")["image"], *found["image"]):
        assert np.array_equal(np.asarray(image), COLORS)


def test_bytes_that_are_no_image_are_refused():
    assert check_window({"image": [b"GIF", b""]}, None)[1] == ["corrupt image", "empty image file"]
