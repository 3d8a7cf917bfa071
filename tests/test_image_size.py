"""A network reads what its processor gives: as it is, with another size, or it is refused in one sentence."""

import pytest
import torch
import transformers
from torch import nn

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.models.load import correct_momentum
from hftl.run import run
from tests import tiny
from tests.architectures import IMAGE_SIZE, list_architectures, shrink, write_checkpoint

IMAGES = "image-classification"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.write_image_folder(tmp_path_factory.mktemp("photos"), 4)


def train(checkpoint, photos, folder, *flags, mode="full"):
    words = ["--task", IMAGES, "--dataset", str(photos), "--model_name_or_path", str(checkpoint), "--use_cpu"]
    words += ["--max_steps", "1", "--per_device_train_batch_size", "4"] if mode != "probe" else []
    run(parse_args([*words, "--output_dir", str(folder), *flags], mode=mode))
    return transformers.AutoModelForImageClassification.from_pretrained(folder)


def with_image_size(folder, family, size):
    """A checkpoint whose configuration says one size and whose processor makes another one."""
    name = f"{family}ForImageClassification"
    config_class = list_architectures(IMAGES)[name]
    write_checkpoint(folder, IMAGES, name)
    getattr(transformers, name)(config_class(**shrink(config_class, image_size=size))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("mode", ["full", "probe", "scratch"])
@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_a_network_that_interpolates_its_positions_keeps_its_size(family, mode, photos, tmp_path):
    checkpoint = with_image_size(tmp_path / "checkpoint", family, 72)
    network = train(checkpoint, photos, tmp_path / "run", mode=mode)
    assert network.config.image_size == 72
    assert network(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)).logits.shape == (1, 3)


def test_such_a_network_trains_with_every_size_that_the_patch_divides(photos, tmp_path):
    checkpoint = with_image_size(tmp_path / "checkpoint", "Dinov2", 72)
    for size in (16, 40, 96):
        network = train(checkpoint, photos, tmp_path / f"{size}", "--image_size", str(size))
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / f"{size}")
        assert network.config.image_size == 72 and dict(processor.size)["height"] == size


def test_a_network_with_a_table_for_one_size_is_refused_with_the_flag_that_is_right(photos, tmp_path):
    checkpoint = with_image_size(tmp_path / "checkpoint", "ViT", 64)
    with pytest.raises(UserError, match="reads images of 64 pixels, and these have 32. Give --image_size 64"):
        train(checkpoint, photos, tmp_path / "run")
    assert train(checkpoint, photos, tmp_path / "run", "--image_size", "64").config.image_size == 64


def test_the_size_in_the_vision_part_of_a_configuration_is_fitted_as_well(photos, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", IMAGES, "CLIPForImageClassification")
    with pytest.raises(UserError, match="reads images of 32 pixels, and these have 48. Give --image_size 32"):
        train(checkpoint, photos, tmp_path / "run", "--image_size", "48")


def test_a_size_of_two_numbers_stays_two_numbers(photos, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", IMAGES, "HieraForImageClassification")
    network = train(checkpoint, photos, tmp_path / "run", "--image_size", "64", mode="scratch")
    assert network.config.image_size == [64, 64]


@pytest.mark.parametrize("family", ["MobileNetV1", "MobileNetV2", "EfficientNet"])
def test_batch_statistics_of_a_trained_network_are_not_those_of_the_last_batch_alone(family):
    name = f"{family}ForImageClassification"
    config_class = list_architectures(IMAGES)[name]
    with torch.device("meta"):
        network = getattr(transformers, name)(config_class())
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert max(layer.momentum for layer in layers) > 0.9  # what ends with transformers' correction
    correct_momentum(network)
    assert {layer.momentum for layer in layers} == {0.1}


@pytest.mark.parametrize("mode", ["full", "scratch"])
def test_a_mode_that_trains_moves_batch_statistics_by_a_tenth(mode, photos, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", IMAGES, "MobileNetV2ForImageClassification")
    seen = []

    class Look(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, model, **_):
            seen.extend(m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d))

    words = ["--task", IMAGES, "--dataset", str(photos), "--model_name_or_path", str(checkpoint), "--use_cpu"]
    run(parse_args([*words, "--max_steps", "1", "--output_dir", str(tmp_path / "run")], mode=mode), callbacks=[Look()])
    assert set(seen) == {0.1}
    plain = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert plain.config.to_dict().keys() == transformers.AutoConfig.from_pretrained(checkpoint).to_dict().keys()


def test_a_momentum_of_torch_is_left_alone():
    layers = nn.Sequential(nn.BatchNorm2d(2, momentum=0.01), nn.BatchNorm2d(2, momentum=None), nn.BatchNorm1d(2))
    correct_momentum(layers)
    assert [layer.momentum for layer in layers] == [0.01, None, 0.1]
