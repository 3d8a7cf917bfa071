"""Are images of more than 8 bits read with the range of their data set, and all images upright?"""

import json
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

import hftl
from hftl.audit import audit_data
from hftl.config import parse_args
from hftl.data.images import read_image
from hftl.data.inputs import look_at
from hftl.data.pixels import choose_range, keep_range, kept_range, measure_range, to_known_rgb
from hftl.errors import UserError
from hftl.inference.evaluation import evaluate
from hftl.run import run
from tests import tiny

DRAWN = np.random.default_rng(0).random((6, 32, 32))


def open_images(arrays) -> datasets.Dataset:
    """As a data set made of arrays stores them."""
    return make_rows([Image.fromarray(array) for array in arrays])


def make_rows(images) -> datasets.Dataset:
    features = datasets.Features({"row_id": datasets.Value("int64"), "image": datasets.Image()})
    return datasets.Dataset.from_dict({"row_id": list(range(len(images))), "image": images}, features=features)


def levels_of(image: Image.Image, pixel_range=None) -> np.ndarray:
    return np.asarray(to_known_rgb(image, pixel_range))[..., 0]


# What is stored -> the range that its data set has. The numbers are those that users have asked about.
KINDS = {
    "integers of 8 bits in 32": (DRAWN * 230, np.int32, (0, 255)),
    "bright integers of 8 bits in 32": (DRAWN * 40 + 200, np.int32, (0, 255)),
    "8 bits in 16": (DRAWN * 255, np.uint16, (0, 255)),
    "16 bits": (DRAWN * 65535, np.uint16, (0, 65535)),
    "12 bits in 16": (DRAWN * 4000, np.uint16, (0, 4095)),
    "10 bits in 32": (DRAWN * 1023, np.int32, (0, 1023)),
    "14 bits in float": (DRAWN * 16000, np.float32, (0, 16383)),
    "0 to 1": (DRAWN, np.float32, (0, 1)),
    "0 to 1, dark": (DRAWN * 0.3, np.float32, (0, 1)),
    "0 and 1 in integers": (DRAWN > 0.5, np.int32, (0, 1)),
    "0 to 255 in float": (DRAWN * 255, np.float32, (0, 255)),
    "digits of 4 bits": (DRAWN * 16, np.int32, (0, 16)),
    "-1 to 1": (DRAWN * 2 - 1, np.float32, (-1, 1)),
    "Hounsfield units": (DRAWN * 4095 - 1024, np.int32, (-1024, 3072)),
    "a thermal camera": (DRAWN * 3000 + 28000, np.uint16, (27648, 31232)),
    "decibels": (DRAWN * 25 - 30, np.float32, (-32, -4)),
    "reflectances": (DRAWN * 0.02, np.float32, (0, 2**-5)),
}


@pytest.mark.parametrize(("values", "dtype", "expected"), KINDS.values(), ids=KINDS)
def test_the_range_is_that_of_the_data_set(values, dtype, expected):
    rows = open_images(values.astype(dtype))
    found = measure_range(rows)
    assert found == pytest.approx(expected)
    levels = levels_of(rows[0]["image"], found)
    raw = values[0].astype(dtype).astype(float)
    np.testing.assert_allclose(levels, (raw - found[0]) / (found[1] - found[0]) * 255, atol=0.5001)
    assert np.ptp(levels) >= np.ptp(raw) / (found[1] - found[0]) * 255 - 1


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float32])
def test_numbers_of_8_bits_are_read_as_in_8_bits(dtype):
    plain = (DRAWN * 200 + 30).astype(np.uint8)
    deep = open_images(plain.astype(dtype))
    assert measure_range(open_images(plain)) is None
    for row, expected in zip(deep, plain, strict=True):
        np.testing.assert_array_equal(levels_of(row["image"], measure_range(deep)), expected)
        np.testing.assert_array_equal(levels_of(row["image"]), expected)


def test_the_order_of_bytes_in_a_file_changes_nothing(tmp_path):
    values = (DRAWN[0] * 4095).astype(">u2")
    big = Image.frombytes("I;16B", (32, 32), values.tobytes())
    np.testing.assert_array_equal(
        levels_of(big, (0, 4095)), levels_of(Image.fromarray(values.astype("<u2")), (0, 4095))
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -3.4e38, 3.4e38])
def test_what_is_not_measured_is_black_and_has_no_say(wrong):
    values = DRAWN.astype(np.float32)
    values[:, :4] = wrong
    rows = open_images(values)
    assert measure_range(rows) == (0, 1)
    levels = levels_of(rows[0]["image"], (0, 1))
    assert not levels[:4].any() and levels[4:].max() > 250


def test_hot_pixels_of_a_sensor_do_not_darken_all_others():
    values = (np.random.default_rng(0).random((2, 150, 150)) * 4000).astype(np.uint16)
    values[:, 7, 7] = 65535
    assert measure_range(open_images(values)) == (0, 4095)


def test_two_depths_in_one_data_set_are_refused():
    deep = [(DRAWN[0] * 255).astype(np.int32), (DRAWN[1] * 65535).astype(np.uint16), (DRAWN[2] * 255).astype(np.uint8)]
    with pytest.raises(UserError, match="from 0 to 255 in mode I and from 0 to 65535 in mode I;16 of Pillow"):
        measure_range(open_images(deep))
    assert measure_range(open_images(deep[:1] + deep[2:])) == (0, 255)
    assert measure_range(open_images(deep[1:])) == (0, 65535)


def write_deep_png(path, values: np.ndarray) -> str:
    """A PNG of 16 bits a color, which Pillow cannot write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return str(path)


def test_fewer_than_16_bits_a_color_in_16_are_refused(tmp_path):
    values = DRAWN[:3].transpose(1, 2, 0)
    whole, part = (write_deep_png(tmp_path / f"{top}.png", values * top) for top in (65535, 4095))
    assert measure_range(make_rows([whole, part])) is None
    with pytest.raises(UserError, match="no pixel is brighter than 15 of 255: fewer bits are stored in 16"):
        measure_range(make_rows([part]))


@pytest.mark.parametrize(
    ("array", "pixel_range", "message"),
    [
        ((DRAWN[0] * 4000).astype(np.uint16), None, "mode I;16 whose pixels go from .* trained on images of 8 bits"),
        ((DRAWN[0] * 900 - 400).astype(np.int32), None, "mode I whose pixels go from -"),
        ((DRAWN[0] * 65535).astype(np.uint16), (0, 1), "those of train go from 0 to 1; save it as those of train"),
        (DRAWN[0].astype(np.float32), (0, 4095), "mode F .* those of train go from 0 to 4095"),
    ],
)
def test_an_image_of_another_depth_than_train_is_refused(array, pixel_range, message):
    with pytest.raises(UserError, match=message):
        to_known_rgb(Image.fromarray(array), pixel_range)


def test_dark_and_bright_images_of_the_same_depth_are_read():
    for values in (DRAWN[0] * 100, DRAWN[0] * 5 + 4090, DRAWN[0] * 0):
        levels_of(Image.fromarray(values.astype(np.uint16)), (0, 4095))


@pytest.mark.parametrize("value", ["abc", [1], [0, 0], [0, None], {"low": 0}, [0, 1e999]])
def test_a_range_that_is_none_is_refused(value):
    processor = ViTImageProcessorPil()
    processor.pixel_range = value
    with pytest.raises(UserError, match="pixel_range in preprocessor_config.json is"):
        kept_range(processor)


def test_ranges_do_not_depend_on_a_few_rows():
    assert {choose_range(low, high) for low in (0, 5, 300) for high in (2100, 3000, 4095)} == {(0, 4095)}
    assert choose_range(0, 0) == (0, 1) and choose_range(700, 700) == (700, 701)


# --- a run keeps it ----------------------------------------------------------------------------------------------


def write_classes(folder, dtype, top: float, ending: str, count: int = 12):
    """Bright and dark, told apart by nothing else."""
    for index, noise in enumerate(np.random.default_rng(1).random((count, 32, 32))):
        for name, offset in (("bright", 0.6), ("dark", 0.05)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            values = ((noise * 0.3 + offset) * top).astype(dtype)
            Image.fromarray(values).save(folder / name / f"{index}{ending}")
    return folder


def train(data, folder, *flags):
    tiny.write_tiny_vit(folder / "vit")
    words = [
        "--task",
        "image-classification",
        "--dataset",
        str(data),
        "--output_dir",
        str(folder / "run"),
        "--use_cpu",
    ]
    words += ["--model_name_or_path", str(folder / "vit"), "--head_init", "random", "--max_steps", "30"]
    return run(parse_args([*words, "--learning_rate", "1e-3", "--use_cpu", *flags], mode="full"))


@pytest.mark.parametrize(
    ("dtype", "top", "ending", "expected"),
    [
        (np.int32, 255, ".tif", [0, 255]),
        (np.uint16, 4095, ".png", [0, 4095]),
        (np.float32, 1, ".tif", [0, 1]),
    ],
)
def test_train_evaluate_predict_and_python_read_one_range(dtype, top, ending, expected, tmp_path):
    data = write_classes(tmp_path / "data", dtype, top, ending)
    record = train(data, tmp_path)
    assert record.data["pixel_range"] == expected
    assert record.metrics["validation"]["accuracy"] == 1
    stored = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert stored["pixel_range"] == expected, "so that it goes wherever the network goes"
    model = hftl.load(tmp_path / "run")
    paths = [str(path) for path in sorted(data.rglob(f"*{ending}"))]
    by_path = model.predict(paths)
    assert [row["label"] for row in by_path] == ["bright"] * 12 + ["dark"] * 12
    assert model.predict([Image.open(path) for path in paths]) == by_path
    assert model.predict([np.asarray(Image.open(path)) for path in paths]) == by_path
    assert evaluate(model, str(data)).scores["accuracy"].value == 1


def test_an_image_that_does_not_fit_train_is_named_by_its_row(tmp_path):
    record = train(write_classes(tmp_path / "data", np.uint8, 255, ".png"), tmp_path)
    model = hftl.load(record.folder)
    strange = write_classes(tmp_path / "strange", np.uint16, 4095, ".png", count=1)
    with pytest.raises(UserError, match="row_id 0 cannot be used: an image of mode I;16 .* on images of 8 bits"):
        evaluate(model, str(strange))
    path = str(strange / "bright" / "0.png")
    with pytest.raises(UserError, match="Row 0 cannot be answered: an image of mode I;16"):
        model.predict([path])
    assert model.predict([path], on_bad_rows="skip")[0]["label"] is None


def test_images_of_8_bits_leave_no_range(tmp_path):
    record = train(write_classes(tmp_path / "data", np.uint8, 255, ".png"), tmp_path)
    assert "pixel_range" not in record.data
    assert "pixel_range" not in (tmp_path / "run" / "preprocessor_config.json").read_text()


def test_the_range_follows_train_where_a_network_is_trained_on(tmp_path):
    processor = ViTImageProcessorPil()
    keep_range(processor, (0.0, 4095.0))
    assert kept_range(processor) == (0, 4095)
    keep_range(processor, measure_range(open_images(DRAWN.astype(np.float32))))
    assert kept_range(processor) == (0, 1)
    keep_range(processor, None)
    assert kept_range(processor) is None and "pixel_range" not in processor.to_json_string()


# --- upright -----------------------------------------------------------------------------------------------------

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def test_an_image_from_python_is_turned_like_its_file(tmp_path):
    model = hftl.load(train(write_classes(tmp_path / "data", np.uint8, 255, ".png"), tmp_path).folder)
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    shown.save(tmp_path / "1.png")
    paths = [tmp_path / "1.png"]
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / f"{orientation}.png")
        shown.transpose(turn).save(paths[-1], exif=exif)
        assert np.array_equal(np.asarray(read_image(paths[-1])), np.asarray(shown))
    by_path = model.predict([str(path) for path in paths])
    by_image = model.predict([Image.open(path) for path in paths])
    expected = [row["probability"] for row in by_path]
    assert expected == pytest.approx([expected[0]] * len(paths), abs=1e-6)
    assert [row["probability"] for row in by_image] == expected


# --- constant images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (40, 30), "navy"), True),
        (Image.new("L", (40, 30)), True),
        (Image.fromarray(np.full((30, 40), 700, np.uint16)), True),
        (Image.fromarray(np.full((30, 40), 3.5, np.float32)), True),
        (Image.fromarray(np.full((30, 40), np.nan, np.float32)), True),
        (Image.fromarray((DRAWN[0] * 255).astype(np.int32)), False),
        (Image.fromarray((DRAWN[0] * 3).astype(np.uint16)), False),
        (Image.fromarray((DRAWN[0] * 255).astype(np.uint8)), False),
    ],
)
def test_images_of_one_color_are_found(image, expected):
    rows = datasets.Dataset.from_dict({"image": [image]}, features=datasets.Features({"image": datasets.Image()}))
    assert [look.is_constant for look in look_at(rows, "train", "image")] == [expected]


def test_one_dot_in_a_large_photograph_is_not_constant(tmp_path):
    image = Image.new("RGB", (800, 600), "white")
    image.paste("black", (401, 301, 404, 304))
    image.save(tmp_path / "a.jpg", quality=95)
    hidden = Image.fromarray(np.dstack([np.zeros((9, 9, 3)), DRAWN[0][:9, :9] * 255]).astype(np.uint8))
    clear = Image.fromarray(np.dstack([DRAWN[:3, :9, :9].transpose(1, 2, 0) * 255, np.zeros((9, 9))]).astype(np.uint8))
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.jpg"), hidden, clear]}, features=features)
    assert [look.is_constant for look in look_at(rows, "train", "image")] == [False, False, True]


def test_the_audit_counts_constant_images(tmp_path):
    data = write_classes(tmp_path / "data", np.uint8, 255, ".png")
    for name, color in (("bright", 250), ("dark", 3)):
        Image.new("L", (32, 32), color).save(data / name / "blank.png")
    args = parse_args(["--task", "image-classification", "--dataset", str(data)])
    (found,) = [f for f in audit_data(args)["findings"] if f["kind"] == "constant_images"]
    assert sum(found["counts"].values()) == 2 and found["policy"] == "warn"
