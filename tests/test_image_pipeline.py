"""Do images reach the network as the checkpoint's own processor makes them, and is augmentation what it says?"""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    ViTImageProcessorPil,
)

from hftl.config import DataArguments
from hftl.data.labels import LabelInfo
from hftl.data.pixels import to_rgb
from hftl.errors import UserError
from hftl.tasks.image_classification import (
    CROPS,
    ImageClassification,
    ImageCollator,
    augment,
    measure_normalization,
    processed_size,
    set_image_size,
)

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# As in the checkpoints of these names: google/vit-base-patch16-224, facebook/convnext-tiny-224 (a resize to 256 and
# a crop of 224), google/efficientnet-b0, microsoft/resnet-50 and facebook/regnet or CLIP (edge and crop apart).
PROCESSORS = {
    "vit": lambda: ViTImageProcessorPil(),
    "convnext": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875, **IMAGENET),
    "efficientnet": lambda: EfficientNetImageProcessorPil(),
    "efficientnet with offset": lambda: EfficientNetImageProcessorPil(rescale_factor=1 / 127.5, rescale_offset=True),
    "resnet": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875, resample=3, **IMAGENET),
    "edge and crop": lambda: BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_convert_rgb=True
    ),
}


def build_images():
    """Wide, tall, smaller and larger than what the processor gives; one grey and one with transparency."""
    rng = np.random.default_rng(0)
    shapes = [(300, 260, 3), (180, 400, 3), (40, 30, 3), (512, 512, 3), (64, 64), (70, 90, 4)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def prepare(processor, images, labels=None):
    rows = datasets.Dataset.from_dict(
        {"row_id": list(range(len(images))), "image": images, "label": labels or [0] * len(images)},
        features=datasets.Features(
            {"row_id": datasets.Value("int64"), "image": datasets.Image(), "label": datasets.Value("int64")}
        ),
    )
    return ImageClassification().prepare(rows, processor, DataArguments(), "fingerprint")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))


# --- decoding ----------------------------------------------------------------------------------------------------


def make_palette(transparency=None):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def make_cmyk(*pixels):
    return Image.merge("CMYK", [Image.fromarray(np.array([band], np.uint8)) for band in zip(*pixels, strict=True)])


RED, BLUE, WHITE, BLACK, GREY = [255, 0, 0], [0, 0, 255], [255] * 3, [0] * 3, [128] * 3
MODES = {
    "RGB": (Image.fromarray(np.array([[RED, BLUE]], np.uint8)), [RED, BLUE]),
    "L": (Image.fromarray(np.array([[0, 128]], np.uint8)), [BLACK, GREY]),
    "1": (Image.fromarray(np.array([[False, True]])), [BLACK, WHITE]),
    "LA": (
        Image.merge("LA", [Image.new("L", (2, 1), 0), Image.fromarray(np.array([[255, 0]], np.uint8))]),
        [BLACK, WHITE],
    ),  # fmt: skip
    "RGBA": (Image.fromarray(np.array([[[*RED, 255], [*RED, 0]]], np.uint8)), [RED, WHITE]),
    "RGBA, half": (Image.fromarray(np.array([[[*BLACK, 255], [*BLACK, 127]]], np.uint8)), [BLACK, GREY]),
    "P": (make_palette(), [RED, BLUE]),
    "P with transparency": (make_palette(transparency=1), [RED, WHITE]),
    "CMYK": (make_cmyk([0, 255, 255, 0], [0, 0, 0, 255]), [RED, BLACK]),
    "I;16": (Image.fromarray(np.array([[0, 32896]], np.uint16)), [BLACK, GREY]),
    "I": (Image.fromarray(np.array([[65535, 0]], np.int32)), [WHITE, BLACK]),
    "F": (Image.fromarray(np.array([[0.0, 1.0]], np.float32)), [BLACK, WHITE]),
}


@pytest.mark.parametrize(("image", "expected"), MODES.values(), ids=MODES)
def test_every_mode_of_pillow_becomes_rgb(image, expected):
    found = to_rgb(image)
    assert found.mode == "RGB" and found.size == image.size
    np.testing.assert_array_equal(np.asarray(found)[0], expected)


def test_the_modes_are_the_ones_of_their_names():
    assert {image.mode for image, _ in MODES.values()} == {name.split(",")[0].split(" ")[0] for name in MODES}


# --- evaluation is the processor's own ---------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [None, 48])
@pytest.mark.parametrize("name", PROCESSORS)
def test_without_augmentation_pixels_are_exactly_the_processors(name, image_size):
    processor = PROCESSORS[name]()
    if image_size:
        set_image_size(processor, image_size)
    images = build_images()
    rows = prepare(processor, images, labels=[3, 1, 2, 0, 1, 1])
    batch = ImageClassification().build_collator(processor, None, "strong")(list(rows))
    expected = processor([to_rgb(image) for image in images], return_tensors="pt")["pixel_values"]
    size = image_size or 224 if name not in ("efficientnet", "efficientnet with offset") else image_size or 346
    assert batch["pixel_values"].shape == (6, 3, size, size) and batch["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-5, rtol=0)
    assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    assert batch["labels"].tolist() == [3, 1, 2, 0, 1, 1] and rows["row_id"][:] == list(range(6))


@pytest.mark.parametrize(("size", "expected"), [(32, 32), (97, 97), (400, 400)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_size_asked_for_is_the_size_that_comes_out(name, size, expected):
    processor = PROCESSORS[name]()
    set_image_size(processor, size)
    wide = Image.new("RGB", (300, 100))
    assert processed_size(processor) == expected
    assert processor(wide, return_tensors="np")["pixel_values"].shape == (1, 3, expected, expected)


def test_another_size_keeps_the_share_that_is_cropped():
    processor = PROCESSORS["edge and crop"]()
    set_image_size(processor, 112)
    assert (processor.size["shortest_edge"], processor.crop_size["height"], processor.crop_size["width"]) == (
        128,
        112,
        112,
    )


LABELS = LabelInfo("single_label_classification", ("a", "b"))


def test_the_configuration_follows_the_processor():
    from transformers import ResNetConfig, ViTConfig

    processor = PROCESSORS["vit"]()
    set_image_size(processor, 96)
    config = ViTConfig()
    ImageClassification().adjust_config(config, processor, LABELS)
    assert config.image_size == 96
    config = ResNetConfig()
    ImageClassification().adjust_config(config, processor, LABELS)
    assert not hasattr(config, "image_size")


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_normalization_is_measured(name):
    processor = PROCESSORS[name]()
    scale, shift = measure_normalization(processor)
    image = Image.new("RGB", (64, 64), (10, 100, 200))
    expected = processor(image, return_tensors="np")["pixel_values"][0][:, 20, 20]
    np.testing.assert_allclose(np.array([10, 100, 200]) * scale + shift, expected, atol=1e-5)


def test_a_processor_that_is_not_linear_is_refused():
    class Gamma(ViTImageProcessorPil):
        def __call__(self, image, **kwargs):
            return {"pixel_values": np.asarray(super().__call__(image, **kwargs)["pixel_values"]) ** 3}

    with pytest.raises(UserError, match="Gamma does more than scale and shift pixels"):
        measure_normalization(Gamma())


def test_preparing_again_comes_from_the_cache_unless_the_processor_changes():
    calls = []

    class Counted(ViTImageProcessorPil):
        def __call__(self, images, **kwargs):
            calls.append(isinstance(images, list))  # a batch of rows, not a colour that is measured
            return super().__call__(images, **kwargs)

    def count(size):
        calls.clear()
        prepare(Counted(size={"height": size, "width": size}), build_images())
        return sum(calls)

    assert [count(16), count(16), count(24)] == [1, 0, 1]


# --- augmentation ------------------------------------------------------------------------------------------------

SIZE = 32


def build_collator(augmentation):
    """Pixels as they are, from 0 to 255."""
    return ImageCollator(np.ones(3, np.float32), np.zeros(3, np.float32), augmentation)


def build_ramps(count):
    """Red grows by 4 a pixel from left to right, green by 4 from top to bottom."""
    columns, rows = np.meshgrid(np.arange(SIZE) * 4, np.arange(SIZE) * 4)
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    return [
        {"pixels": pixels.tobytes(), "height": SIZE, "width": SIZE, "augmentation_seed": (0, 0, row)}
        for row in range(count)
    ]


def read_crops(images):
    """Width, height (shares of the image; negative when mirrored) and the left and top edge, from the ramps."""
    middle = slice(8, 24)  # away from the border, where the ramp ends
    width = (images[:, 0, 16, 23] - images[:, 0, 16, 8]) / (15 * 4)
    height = (images[:, 1, 23, 16] - images[:, 1, 8, 16]) / (15 * 4)
    assert images[:, :, middle, middle].isfinite().all()
    return width.numpy(), height.numpy()


@pytest.mark.parametrize("augmentation", ["light", "strong"])
def test_a_crop_keeps_the_share_of_the_area_that_is_written_there(augmentation):
    width, height = read_crops(build_collator(augmentation)(build_ramps(400))["pixel_values"])
    areas, ratios = CROPS[augmentation]
    area, ratio = np.abs(width) * height, np.abs(width) / height
    assert areas[0] * 0.97 < area.min() < areas[0] + 0.1 and areas[1] - 0.1 < area.max() <= areas[1] * 1.01
    assert ratios[0] * 0.97 < ratio.min() and ratio.max() < ratios[1] * 1.03
    assert augmentation == "light" or (ratio.min() < 0.8 and ratio.max() > 1.25)
    assert 0.42 < (width < 0).mean() < 0.58  # half of them are mirrored
    assert (height > 0).all()  # none stands on its head


def test_crops_lie_inside_of_the_image_and_all_over_it():
    images = build_collator("strong")(build_ramps(400))["pixel_values"]
    assert images[:, 0].min() >= 0 and images[:, 0].max() <= 124
    centre = images[:, 1, 15:17, 15:17].mean((1, 2)) / 124
    assert centre.min() < 0.35 and centre.max() > 0.65


def test_strong_crops_are_smaller_than_light_ones():
    areas = {}
    for augmentation in CROPS:
        width, height = read_crops(build_collator(augmentation)(build_ramps(200))["pixel_values"])
        areas[augmentation] = (np.abs(width) * height).mean()
    assert areas["strong"] < 0.7 < 0.75 < areas["light"]


def test_the_whole_image_is_itself_or_its_mirror_image():
    torch.manual_seed(0)
    images = torch.rand(20, 3, SIZE, SIZE)
    found = augment(images, [(0, 0, row) for row in range(20)], (1.0, 1.0), (1.0, 1.0))
    is_same = [torch.allclose(new, old, atol=1e-5) for new, old in zip(found, images, strict=True)]
    is_mirrored = [torch.allclose(new, old.flip(-1), atol=1e-5) for new, old in zip(found, images, strict=True)]
    assert [same != mirrored for same, mirrored in zip(is_same, is_mirrored, strict=True)] == [True] * 20
    assert 4 < sum(is_mirrored) < 16


def test_augmentation_depends_on_the_seed_of_the_row_alone():
    collator, rows = build_collator("strong"), build_ramps(8)
    together = collator(rows)["pixel_values"]
    torch.manual_seed(99)
    np.random.seed(99)
    for index in (5, 0):
        assert torch.equal(collator([rows[index]])["pixel_values"][0], together[index])
    assert torch.equal(collator(rows[::-1])["pixel_values"], together.flip(0))
    for seed in ((1, 0, 3), (0, 1, 3), (0, 0, 4)):
        assert not torch.equal(collator([rows[3] | {"augmentation_seed": seed}])["pixel_values"][0], together[3])


@pytest.mark.parametrize(("augmentation", "is_seeded"), [("none", True), ("light", False), ("strong", False)])
def test_rows_without_a_seed_and_runs_without_augmentation_stay_as_they_are(augmentation, is_seeded):
    rows = build_ramps(3)
    plain = [{key: value for key, value in row.items() if key != "augmentation_seed"} for row in rows]
    found = build_collator(augmentation)(rows if is_seeded else plain)["pixel_values"]
    assert found[1, 0, 5].tolist() == [4.0 * column for column in range(SIZE)]


@pytest.mark.parametrize("augmentation", ["none", "light"])
@pytest.mark.parametrize("num_rows", [1, 4])
def test_batches_are_channels_last(augmentation, num_rows):
    found = build_collator(augmentation)(build_ramps(num_rows))["pixel_values"]
    assert found.shape == (num_rows, 3, SIZE, SIZE)
    assert found.is_contiguous(memory_format=torch.channels_last)
