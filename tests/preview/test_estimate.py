"""What fits where: cards, the largest batch and length, and what the command says."""

import json

import pytest
import torch

from hftl.cli import main
from hftl.config import parse_args
from hftl.cost.devices import CARD_GIB, RESERVED_BYTES, find_capacity, find_peak_flops
from hftl.errors import UserError
from hftl.preview.estimate import estimate
from hftl.preview.step import Plan, Shape, Simulator, build_network
from hftl.tasks import build_task
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    tiny.write_tiny_bert(folder / "bert")
    (folder / "bert" / "model.safetensors").unlink()  # weights are never read
    tiny.write_tiny_convnet(folder / "resnet")
    return folder


def parse(folder, *flags, name="bert", mode=None):
    words = ["--dataset", "x", "--model_name_or_path", str(folder / name), "--output_dir", str(folder / "out")]
    return parse_args([*words, *flags, *(["--mode", mode] if mode else [])])


def test_cards_are_found_by_name_and_by_size():
    assert find_capacity("H100") == 80 * 2**30 - RESERVED_BYTES
    assert find_capacity("a100-40") < find_capacity("a100") == find_capacity("80GB")
    assert find_capacity("RTX 4090") == find_capacity("24 GiB")
    with pytest.raises(UserError, match="Did you mean 'h100'.*Or give a size, such as 24GB"):
        find_capacity("h10")
    assert all(find_peak_flops(name.replace("-", " ")) for name in CARD_GIB if name != "a10g")


def test_every_mode_is_there_without_weights(folder):
    found = estimate(parse(folder), "24GB")
    assert [arm.name for arm in found.arms] == ["full", "lora", "qlora", "scratch", "probe"] and not found.left_out
    assert all(arm.step.peak <= found.capacity and arm.largest_rows > 100 for arm in found.arms)
    assert all(arm.longest == tiny.MAX_LENGTH for arm in found.arms)  # which the network reads at most


@pytest.fixture(scope="module")
def small_card(folder):
    return estimate(parse(folder), "1.2GB")


@pytest.mark.parametrize("mode", ["full", "peft"])
def test_the_most_rows_fit_and_a_few_more_do_not(folder, small_card, mode):
    found = small_card
    arm = next(arm for arm in found.arms if arm.name == {"peft": "lora"}.get(mode, mode))
    task, args = build_task("text-classification"), parse(folder, mode=mode)
    plan = Plan(torch.bfloat16)
    simulator = Simulator(build_network(args.model, task), task, plan)
    assert simulator.find_peak(Shape(arm.largest_rows, found.shape.length)) <= found.capacity * 1.001
    assert simulator.find_peak(Shape(round(1.02 * arm.largest_rows) + 1, found.shape.length)) > found.capacity


def test_an_adapter_that_a_network_cannot_have_is_left_out_with_its_reason(folder):
    args = parse(folder, "--task", "image-classification", "--adapter", "prompt", name="resnet")
    found = estimate(args, "24GB")
    assert [arm.name for arm in found.arms] == ["full", "scratch", "probe"]
    assert "there is none" in found.left_out["prompt"]
    assert found.shape == Shape(32, 32)  # that of its processor
    assert found.arms[0].longest is None and found.arms[0].seconds is None


def run(capsys, *words):
    code = main(["estimate", *map(str, words)])
    return code, "".join(capsys.readouterr())


def test_the_command_prints_a_table_and_writes_json(folder, tmp_path, capsys):
    words = ["--model_name_or_path", folder / "bert", "--gpu", "h100", "--num_train_examples", "50000"]
    code, text = run(capsys, *words, "--output_file", tmp_path / "estimate.json")
    assert code == 0 and "on h100 with 79.0 GiB" in text and "An epoch of 50,000 rows" in text
    content = json.loads((tmp_path / "estimate.json").read_text())
    full = content["arms"][0]
    assert full["name"] == "full" and full["fits"] is True and full["seconds"] > 0 and full["money"] > 0
    assert full["step"]["peak"] > full["step"]["weights"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpu", "h10"), "Did you mean 'h100'"),
        (("--model_name_or_path", "/nowhere/x"), "There is no checkpoint folder /nowhere/x"),
        (("--probe",), "--probe makes steps of one mode: give --mode"),
        (
            ("--mode", "full", "--gpu", "1.002GB"),
            "--per_device_train_batch_size",
        ),
        (("--mode", "full", "--gpu", "1.0001GB"), "a single row does not fit"),
    ],
)
def test_what_cannot_be_is_said_with_code_2(folder, capsys, words, message):
    model = [] if "--model_name_or_path" in words else ["--model_name_or_path", folder / "bert"]
    code, text = run(capsys, *model, *words)
    assert code == 2 and message in text


@pytest.mark.slow
def test_real_steps_stand_beside_the_prediction(tmp_path, capsys):
    files = tiny.write_text_task(tmp_path)
    words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--mode", "full"]
    code, text = run(capsys, *words, "--probe", "--use_cpu", "--output_file", tmp_path / "out.json")
    assert code == 0 and "Real steps of full on this machine" in text
    assert json.loads((tmp_path / "out.json").read_text())["probe"]["seconds"] > 0
