"""Are the numbers and colors of masks those of classes, and does --class_names say which?"""

import base64
import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import hftl
from hftl.config import DataArguments, parse_args
from hftl.data.folders import read_folder
from hftl.data.mask_numbers import read_coding, to_classes
from hftl.data.masks import coding_of, name_classes, read_masks
from hftl.errors import UserError
from hftl.inference.evaluation import evaluate
from hftl.training.run import run
from tests import tiny

COUNT, SIZE = 12, 32


def draw_scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and masks of 0 and 1: a bright rectangle on noise."""
    draw, scenes = np.random.default_rng(0), []
    for _ in range(COUNT):
        image, mask = draw.integers(0, 80, (SIZE, SIZE, 3)), np.zeros((SIZE, SIZE), np.uint8)
        top, left = draw.integers(1, SIZE // 2, 2)
        window = np.s_[top : top + 13, left : left + 11]
        image[window] += 150
        mask[window] = 1
        scenes.append((image.astype(np.uint8), mask))
    return scenes


SCENES = draw_scenes()


def write(folder: Path, make, ending: str = ".png", **options) -> Path:
    """`images` and `masks`; `make` turns a mask of 0 and 1 into what is saved."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, (image, mask) in enumerate(SCENES):
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        make(mask).save(folder / "masks" / f"{index}{ending}", **options)
    return folder


def read(folder: Path, *names: str, **settings) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names, and the classes of each mask."""
    args = DataArguments(class_names=list(names) or None, **settings)
    rows = read_masks(datasets.DatasetDict(read_folder(folder)), parse_args(["--dataset", str(folder)]).data)
    found, splits = name_classes(rows, args)
    return found, [to_classes(mask, coding_of(args)) for mask in splits["train"]["mask"]]


def times(number: int):
    return lambda mask: Image.fromarray(mask * np.uint8(number))


def palette(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask * np.uint8(15)).convert("P")
    image.putdata((mask * 15).ravel().tolist())
    image.putpalette(list(range(256)) * 3)
    return image


def colored(mask: np.ndarray, colors=((0, 0, 0), (128, 64, 0))) -> Image.Image:
    return Image.fromarray(np.array(colors, np.uint8)[mask])


def smooth(mask: np.ndarray) -> Image.Image:
    """As after resizing with interpolation, or drawing without sharp edges."""
    image = Image.fromarray(mask * np.uint8(255)).resize((SIZE * 3 // 4, SIZE * 3 // 4), Image.Resampling.BICUBIC)
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def stray(mask: np.ndarray) -> Image.Image:
    """A single wrong pixel of a brush."""
    mask = mask.copy()
    mask[0, 0] = 3
    return Image.fromarray(mask)


def with_unknown(mask: np.ndarray, value: int = 15) -> Image.Image:
    """As in Pascal VOC: an object among 21 classes, with a border of 255."""
    mask = mask * np.uint8(value)
    mask[:3] = 255
    return Image.fromarray(mask)


REFUSED = {
    "0 and 255": (times(255), ".png", (), r"numbers 0, 255; .* background=0 object=255"),
    "all but 255": (lambda m: Image.fromarray((1 - m) * np.uint8(255)), ".png", (), "numbers 0, 255; "),
    "0 and 128": (times(128), ".png", (), r"numbers 0, 128; .*: --class_names background=0 object=128\."),
    "0 and 3": (times(3), ".png", (), r"numbers 0, 3; .*: --class_names background=0 object=3\."),
    "one class and 255": (with_unknown, ".png", (), r"numbers 0, 15, 255; .* 255 stands for unknown pixels unless"),
    "palette with gaps": (palette, ".png", (), r"numbers 0, 15; .*: --class_names background=0 object=15"),
    "smooth": (smooth, ".png", (), r"hold \d+ numbers, and \d+ of them hardly occur"),
    "a stray pixel": (stray, ".png", (), r"hold 3 numbers, and 1 of them hardly occur \(3\)"),
    "JPEG": (times(255), ".jpg", (), "is a JPEG, which changes numbers at edges. .* background=0 object=255"),
    "JPEG saved as PNG": (
        lambda m: recode(Image.fromarray(m * np.uint8(255))), ".png", (), "of them hardly occur",
    ),  # fmt: skip
    "one number": (times(0), ".png", (), "that count have the number 0"),
    "16 bits": (lambda m: Image.fromarray(m.astype(np.uint16) * 1000), ".png", (), "has the class 1000, but"),
    "color": (colored, ".png", (), "2 colors .* --class_names NAME=#000000 NAME=#804000"),
    "transparent": (lambda m: Image.merge("LA", [Image.fromarray(m)] * 2), ".png", (), "mode LA; .*no transparency"),
    "float": (lambda m: Image.fromarray(m.astype(np.float32)), ".tif", (), "mode F; expected one number a pixel"),
    "names and 255": (
        times(255), ".png", ("ground", "thing"),
        r"No pixel of train has the class thing \(1\): its masks hold 0, 255. .*--class_names ground=0 thing=255",
    ),  # fmt: skip
    "names and 128": (times(128), ".png", ("a", "b"), r"has the class 128, .*--class_names NAME=NUMBER"),
    "a name too many": (times(1), ".png", ("a", "b", "c"), r"No pixel of train has the class c \(2\)"),
    "a wrong number": (times(128), ".png", ("a=0", "b=127"), "has the class 128, but the classes are 0, 127"),
    "a color without pixels": (colored, ".png", ("a=#000000", "b=#804000", "c=#ffffff"), r"class c \(#ffffff\)"),
    "a color without a name": (colored, ".png", ("a=#000000", "c=#ffffff"), "the color #804000, which no class"),
    "names and JPEG": (times(255), ".jpg", ("a", "b"), "is a JPEG.*--class_names a=0 b=255"),
    "another size": (
        lambda m: Image.fromarray(m).resize((16, 16)), ".png", (), "is 16 x 16 pixels, its image 32 x 32"),
}  # fmt: skip


def recode(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return Image.open(file).convert("L")


@pytest.mark.parametrize(("make", "ending", "names", "message"), REFUSED.values(), ids=REFUSED)
def test_masks_that_would_teach_nonsense_are_refused(make, ending, names, message, tmp_path):
    write(tmp_path / "d", make, ending)
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path / "d", *names)
    assert len(str(refused.value)) < 600


def index_palette(mask: np.ndarray) -> Image.Image:
    image = Image.new("P", mask.shape[::-1])
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.putdata(mask.ravel().tolist())
    return image


READ = {
    "numbers": (times(1), ".png", (), ("0", "1")),
    "one bit": (lambda m: Image.fromarray(m > 0), ".png", (), ("0", "1")),
    "palette": (index_palette, ".png", (), ("0", "1")),
    "16 bits": (lambda m: Image.fromarray(m.astype(np.uint16)), ".png", (), ("0", "1")),
    "gray in color": (lambda m: Image.fromarray(np.dstack([m] * 3)), ".png", (), ("0", "1")),
    "opaque": (lambda m: Image.fromarray(np.dstack([m] * 3 + [m * 0 + 255])), ".png", (), ("0", "1")),
    "gray and opaque": (lambda m: Image.fromarray(m).convert("LA"), ".png", (), ("0", "1")),
    "0 and 255": (times(255), ".png", ("a=0", "b=255"), ("a", "b")),
    "0 and 128": (times(128), ".png", ("a=0", "b=128"), ("a", "b")),
    "1000 in 16 bits": (lambda m: Image.fromarray(m.astype(np.uint16) * 1000), ".png", ("a=0", "b=1000"), ("a", "b")),
    "palette with gaps": (palette, ".png", ("a=0", "b=15"), ("a", "b")),
    "JPEG": (times(255), ".jpg", ("a=0", "b=255"), ("a", "b")),
    "JPEG in gray": (times(128), ".jpg", ("a=0", "b=128"), ("a", "b")),
    "colors": (colored, ".png", ("a=#000000", "b=#804000"), ("a", "b")),
    "colors with capitals": (colored, ".png", ("a=#000000", "b=#804000".upper().replace("B=", "b=")), ("a", "b")),
    "colors of gray": (times(255), ".png", ("a=#000000", "b=#ffffff"), ("a", "b")),
    "blue, which is 255": (
        lambda m: colored(m, ((0, 0, 0), (0, 0, 255))), ".png", ("a=#000000", "b=#0000ff"), ("a", "b")),
}  # fmt: skip


@pytest.mark.parametrize(("make", "ending", "names", "expected"), READ.values(), ids=READ)
def test_masks_are_read_as_they_are_meant(make, ending, names, expected, tmp_path):
    found, masks = read(write(tmp_path / "d", make, ending), *names)
    assert found == expected
    for mask, (_, true) in zip(masks, sorted_scenes(), strict=True):
        assert (mask != true).mean() <= (0.01 if ending == ".jpg" else 0)


def quantized(mask: np.ndarray, kind: int) -> Image.Image:
    """Colors saved with a palette of their own, which begins with another color in every other file."""
    colors = [(0, 0, 0), (128, 64, 0)]
    image = Image.fromarray(mask ^ np.uint8(kind)).convert("P")
    image.putdata((mask ^ kind).ravel().tolist())
    image.putpalette(np.array(colors[:: 1 - 2 * kind], np.uint8).ravel().tolist())
    return image


def write_quantized(folder: Path, kinds, ending: str = ".png") -> Path:
    kinds = iter(kinds)
    return write(folder, lambda mask: quantized(mask, next(kinds)), ending)


@pytest.mark.parametrize("ending", [".png", ".gif", ".bmp", ".tif"])
def test_palettes_that_number_colors_anew_in_each_file_are_refused(tmp_path, ending):
    write_quantized(tmp_path / "d", [0, 1] * 6, ending)
    with pytest.raises(UserError, match="number 0 is #000000 in one and #804000 .*=#804000; or, .* background=0 ob"):
        read(tmp_path / "d")
    with pytest.raises(UserError, match="palettes of the masks differ"):
        read(tmp_path / "d", "ground", "thing")


def test_palettes_that_differ_between_splits_are_refused(tmp_path):
    write_quantized(tmp_path / "d" / "train", [0] * 12)
    write_quantized(tmp_path / "d" / "test", [1] * 12)
    with pytest.raises(UserError, match="palettes of the masks differ"):
        read(tmp_path / "d")


def test_colors_or_numbers_with_palettes_of_any_order_are_read_as_told(tmp_path):
    kinds = [0, 1] * 6
    write_quantized(tmp_path / "d", kinds)
    names, by_color = read(tmp_path / "d", "ground=#000000", "thing=#804000")
    assert names == ("ground", "thing") and all(map(np.array_equal, by_color, sorted_masks()))
    expected = [mask ^ kind for mask, kind in zip((m for _, m in SCENES), kinds, strict=True)]
    order = sorted(range(COUNT), key=str)
    assert all(map(np.array_equal, read(tmp_path / "d", "a=0", "b=1")[1], [expected[index] for index in order]))


def test_one_palette_for_all_is_read_by_its_numbers(tmp_path):
    write_quantized(tmp_path / "d", [0] * 12, ".bmp")
    assert all(map(np.array_equal, read(tmp_path / "d")[1], sorted_masks()))


@pytest.mark.parametrize(("ending", "quality"), [(".webp", 80), (".webp", 95), (".avif", 75), (".jp2", 75)])
def test_formats_that_blur_numbers_are_refused(tmp_path, ending, quality):
    write(tmp_path / "d", times(1), ending, quality=quality)
    with pytest.raises(UserError, match="is a (WEBP|AVIF|JPEG2000), which changes numbers"):
        read(tmp_path / "d")


@pytest.mark.parametrize("ending", [".avif", ".jp2"])
def test_blurred_numbers_that_are_named_count_for_the_nearest(tmp_path, ending):
    write(tmp_path / "d", times(255), ending)
    for found, mask in zip(read(tmp_path / "d", "a=0", "b=255")[1], sorted_masks(), strict=True):
        assert (found == mask).mean() > 0.97


def test_webp_without_loss_is_read(tmp_path):
    write(tmp_path / "d", times(1), ".webp", lossless=True)
    assert all(map(np.array_equal, read(tmp_path / "d")[1], sorted_masks()))


def sorted_scenes():
    """In the order of the file names."""
    return [SCENES[index] for index in sorted(range(COUNT), key=str)]


def sorted_masks():
    return [mask for _, mask in sorted_scenes()]


def test_255_is_unknown_unless_a_class_has_it(tmp_path):
    folder = write(tmp_path / "d", with_unknown)
    _, masks = read(folder, "a=0", "b=15")
    assert {number for mask in masks for number in np.unique(mask).tolist()} == {0, 1, 255}
    _, masks = read(folder, "a=0", "b=15", "c=255")
    assert {number for mask in masks for number in np.unique(mask).tolist()} == {0, 1, 2}


def test_thin_and_rare_classes_are_no_mistake(tmp_path):
    def crack(mask):
        mask = mask * 0
        mask[np.arange(5), np.arange(5)] = 1
        return Image.fromarray(mask)

    assert read(write(tmp_path / "cracks", crack))[0] == ("0", "1")

    def many(mask):
        numbers = np.random.default_rng(int(mask.sum())).integers(0, 21, (4, 4))
        mask = np.kron(numbers, np.ones((8, 8))).astype(np.uint8)
        mask[:2] = 255
        return Image.fromarray(mask)

    assert len(read(write(tmp_path / "many", many))[0]) >= 18


def test_a_number_that_train_leaves_out_among_many_is_told(tmp_path, caplog):
    def gap(mask):
        mask = mask * np.uint8(3)
        mask[-9:] = 1
        return Image.fromarray(mask)

    assert read(write(tmp_path / "d", gap))[0] == ("0", "1", "2", "3")
    assert "No pixel of train has the number 2. Name the classes" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a=0", "b"], "every class a number of its own"),
        (["a=0", "b=0"], "every class a number of its own"),
        (["a=0", "b=#ff0000"], "or every class a color"),
        (["a=0", "a=1"], "give two or more names, each once"),
        (["only=255"], "give two or more names"),
        ([f"c{k}" for k in range(256)], "has 256 names; a mask can hold 255 classes"),
    ],
)
def test_names_with_numbers_for_some_or_twice_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        read_coding(names, is_reduced=False)


def test_numbers_and_reduced_labels_exclude_each_other():
    with pytest.raises(UserError, match="--reduce_labels has to go"):
        read_coding(["a=1", "b=2"], is_reduced=True)


def test_a_run_on_0_and_255_learns_the_object_and_evaluates_it(tmp_path):
    data = write(tmp_path / "d", times(255))
    tiny.write_tiny_segformer(tmp_path / "segformer")
    words = ["--task", "semantic-segmentation", "--dataset", str(data), "--class_names", "ground=0", "thing=255"]
    words += ["--model_name_or_path", f"{tmp_path}/segformer", "--output_dir", f"{tmp_path}/run", "--max_steps", "60"]
    record = run(parse_args([*words, "--learning_rate", "3e-3", "--use_cpu"], mode="scratch"))
    assert record.data["label_names"] == ["ground", "thing"]
    assert record.metrics["validation"]["mean_iou"] > 0.7, "one class everywhere is at most .5"
    model = hftl.load(tmp_path / "run")
    assert evaluate(model, str(data)).scores["mean_iou"].value > 0.7
    answer = model.predict([data / "images" / "0.png"])[0]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
    assert set(np.unique(mask).tolist()) == {0, 1} and set(answer["labels"]) == {"ground", "thing"}
