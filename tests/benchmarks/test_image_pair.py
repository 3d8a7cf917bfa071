"""Do both sides of the image pairs see the same images?"""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import EfficientNetImageProcessorPil

from benchmarks import photo_data
from benchmarks.public_scripts import run_image_script, write_script_processor


def test_the_script_normalizes_pixels_as_the_checkpoint_does(tmp_path):
    """It computes (pixel / 255 - mean) / spread, whatever the factor of the checkpoint's processor is."""
    processor = EfficientNetImageProcessorPil(
        size={"height": 8, "width": 8},
        rescale_factor=1 / 128,
        image_mean=[127 / 128] * 3,
        image_std=[1.0] * 3,
        include_top=False,
    )
    processor.save_pretrained(tmp_path / "model")
    folder = write_script_processor(tmp_path / "script", tmp_path / "model")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    wanted = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    found = (pixels / 255 - settings["image_mean"]) / settings["image_std"]
    assert np.allclose(found, wanted, atol=1e-5)
    again = EfficientNetImageProcessorPil.from_pretrained(folder)(Image.fromarray(pixels), return_tensors="np")
    assert np.allclose(again["pixel_values"][0].transpose(1, 2, 0), wanted, atol=1e-5)


def test_photos_have_a_validation_split_of_their_own(tmp_path):
    """Or a side that wants one would hold it out of the images that the other side trains on."""
    folder = photo_data.write_photos(tmp_path, num_train=20, num_test=10)
    counts = {split.name: len(list(split.glob("*/*.jpg"))) for split in folder.iterdir()}
    assert counts == {"train": 20, "validation": 100, "test": 10}
    assert len(list((folder / "validation").iterdir())) == 10
    with Image.open(next((folder / "train").glob("*/*.jpg"))) as photo:
        assert photo.size == (256, 256)


def test_without_torchvision_the_script_is_not_started(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="needs torchvision"):
        run_image_script(tmp_path, tmp_path, "model", "")
