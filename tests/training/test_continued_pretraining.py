"""Pretraining on one's own texts first: made once, charged always, and refused where it makes no sense."""

import csv
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

import hftl
from hftl.config import parse_args
from hftl.errors import UserError
from hftl.inference.merge import merge_run
from hftl.run_record import read_predictions
from hftl.training import continued_pretraining as pretraining
from hftl.training.run import run
from tests import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tiny.write_text_task(tmp_path_factory.mktemp("pretraining"))
    texts = [row["text"] for row in tiny.make_texts(40, seed=5)]
    (folder / "own.txt").write_text("\n".join(texts) + "\n")
    return folder


@pytest.fixture
def train(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))

    def start(mode, *flags, name="run", task_words=()):
        words = list(task_words) or ["--train_file", f"{files}/train.csv", "--test_file", f"{files}/test.csv"]
        words += ["--model_name_or_path", f"{files}/bert", "--output_dir", str(tmp_path / name), "--use_cpu"]
        return run(parse_args([*words, "--max_steps", "3", *map(str, flags)], mode=mode)), tmp_path / name

    return start


@pytest.fixture
def own(files):
    return ("--pretrain_file", files / "own.txt", "--pretrain_steps", 4)


def test_it_is_made_once_and_a_run_that_finds_it_is_the_same(train, own, tmp_path):
    first, one = train("full", *own, name="one")
    (folder,) = (tmp_path / "cache" / "pretrained").iterdir()
    made = folder.stat().st_mtime_ns
    second, two = train("full", *own, name="two")
    assert folder.stat().st_mtime_ns == made
    weights = [load_file(path / "model.safetensors") for path in (one, two)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for record in (first, second):
        found = record.model["pretrained"]
        assert found["steps"] == 4 and found["from"].endswith("bert") and found["perplexity"] > 1
        assert record.cost["train_seconds"] > found["train_seconds"] > 0
        assert record.cost["train_flops"] > found["train_flops"] > 0
        assert record.config["pretrain_file"].endswith("own.txt") and "model_name_or_path" in record.config
        assert record.config["model_name_or_path"].endswith("bert") and record.model["name"].endswith("bert")


def test_the_body_is_another_one_than_without(train, own):
    _, plain = train("full", "--learning_rate", 0, name="plain")
    _, ours = train("full", "--learning_rate", 0, *own, name="ours")
    before, after = (load_file(path / "model.safetensors") for path in (plain, ours))
    body = [name for name in before if name.startswith("bert.encoder") and name.endswith("dense.weight")]
    assert body and not any(torch.equal(before[name], after[name]) for name in body)


def test_the_pooling_layer_of_the_checkpoint_stays(train, own, files):
    _, folder = train("full", "--learning_rate", 0, *own)
    before, after = load_file(files / "bert" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert torch.equal(before["pooler.dense.weight"], after["bert.pooler.dense.weight"])


def test_its_seconds_are_counted_once(train, own):
    new, _ = train("probe", *own, name="one")
    found, _ = train("probe", *own, name="two")
    for record in (new, found):
        parts = sum(record.cost[f"{name}_seconds"] for name in ("startup", "train", "evaluation", "save", "other"))
        assert parts == pytest.approx(record.cost["wall_seconds"], rel=0.01) and record.cost["other_seconds"] >= 0
    assert (new.model["pretrained"]["is_new"], found.model["pretrained"]["is_new"]) == (True, False)


@pytest.mark.parametrize("mode", ["peft", "probe"])
def test_adapters_and_probes_sit_on_it(train, own, mode):
    record, folder = train(mode, *own)
    assert record.status == "completed" and record.model["pretrained"]["num_texts"] > 20
    if mode == "peft":
        assert "pretrained" in (folder / "adapter_config.json").read_text()


def test_an_adapter_is_asked_and_merged_over_what_it_was_trained_on(train, own, tmp_path, files):
    """The configuration of the run names the checkpoint from which its base was made, which is another network."""
    far = ("--learning_rate", 0.01, "--max_steps", 20)  # so far that the wrong base gives other answers
    record, folder = train("peft", *own[:3], 40, *far)
    assert record.model["name"] == str(next((tmp_path / "cache" / "pretrained").iterdir()))  # which `hftl push` asks
    expected = read_predictions(folder)["probabilities"].max(1)
    texts = [row["text"] for row in csv.DictReader((files / "test.csv").read_text().splitlines())]
    merge_run(folder, tmp_path / "merged")
    for name in (folder, tmp_path / "merged"):
        found = [answer["probability"] for answer in hftl.load(str(name)).predict(texts)]
        assert found == pytest.approx(expected.tolist(), abs=1e-5), name
    shutil.rmtree(tmp_path / "cache" / "pretrained")
    for ask in (lambda: hftl.load(str(folder)), lambda: merge_run(folder, tmp_path / "again")):
        with pytest.raises(UserError, match="after pretraining on .*own.txt, which was kept in .* and is gone"):
            ask()
    assert len(hftl.load(str(tmp_path / "merged")).predict(texts)) == len(texts)


def test_from_scratch_nothing_of_the_checkpoint_is_left(train, own, files, tmp_path):
    record, folder = train("scratch", "--learning_rate", 0, "--config_overrides", "num_hidden_layers=1", *own)
    (made,) = (tmp_path / "cache" / "pretrained").iterdir()
    before, between, after = (load_file(path / "model.safetensors") for path in (files / "bert", made, folder))
    body = [name for name in between if name.startswith("bert.")]
    assert body and all(torch.equal(between[name], after[name]) for name in body)
    assert not any("layer.1." in name for name in after) and any("layer.1." in name for name in before)
    drawn = [name for name in before if name.endswith("dense.weight") and f"bert.{name}" in after]
    assert drawn and not any(torch.equal(before[name], after[f"bert.{name}"]) for name in drawn)
    assert record.mode == "scratch" and record.model["pretrained"]["steps"] == 4


def test_texts_of_a_bundled_data_set_are_those_of_train():
    assert pretraining.find_texts("bundled:wordnet").endswith("wordnet/train.parquet")


def test_other_steps_are_another_pretraining(train, own, tmp_path):
    train("probe", *own, name="one")
    train("probe", *own[:3], 5, name="two")
    assert len(list((tmp_path / "cache" / "pretrained").iterdir())) == 2


def test_texts_of_test_among_them_are_said(train, files, tmp_path, caplog):
    texts = [row["text"] for row in tiny.make_texts(9, seed=1)]
    (tmp_path / "own.txt").write_text("\n".join([*texts, *(row["text"] for row in tiny.make_texts(30, seed=7))]))
    with caplog.at_level(logging.WARNING):
        train("probe", "--pretrain_file", tmp_path / "own.txt", "--pretrain_steps", 1)
    assert "of 9 test texts are in" in caplog.text and "read without labels" in caplog.text


@pytest.mark.parametrize(
    ("mode", "task_words", "message"),
    [
        ("full", ("--task", "causal-lm", "--train_file", "{files}/own.txt"), "an encoder of texts"),
    ],
)
def test_it_is_refused_where_it_makes_no_sense(train, own, files, mode, task_words, message):
    words = [word.format(files=files) for word in task_words]
    with pytest.raises(UserError, match=message):
        train(mode, *own, task_words=words)


def test_a_file_that_is_not_there_is_named(train):
    with pytest.raises(UserError, match="--pretrain_file: there is no file /nowhere.txt"):
        train("full", "--pretrain_file", "/nowhere.txt")


def test_a_key_holds_all_that_changes_it(own, tmp_path):
    tiny.write_tiny_bert(tmp_path / "bert")
    words = ["--dataset", "x", "--model_name_or_path", f"{tmp_path}/bert", *map(str, own)]
    keys = {pretraining._compute_key(parse_args([*words, *more])) for more in ([], ["--max_length", "9"])}
    tiny.write_tiny_bert(tmp_path / "bert", seed=1)
    assert len(keys | {pretraining._compute_key(parse_args(words))}) == 3


def test_an_adapter_over_it_cannot_be_pushed(files, own):
    words = ["--dataset", "x", "--model_name_or_path", f"{files}/bert", *map(str, own), "--push_to_hub", "true"]
    with pytest.raises(UserError, match="--push_to_hub needs a base on the Hub"):
        run(parse_args([*words, "--hub_model_id", "me/model"], mode="peft"))


def test_products_of_the_run_are_those_of_its_pretraining(train, own):
    """The run inside of it must not leave its precision behind; and another one is another pretraining."""
    record, _ = train("full", *own, "--bf16", "true")
    assert record.environment["precision"].startswith("bfloat16") and record.model["pretrained"]["is_new"]
    plain, _ = train("full", *own, "--bf16", "false", name="plain")
    assert plain.environment["precision"] == "float32" and plain.model["pretrained"]["is_new"]


def test_a_resumed_run_is_charged_once(train, own):
    words = (*own, "--save_strategy", "steps", "--save_steps", 1)
    whole, folder = train("full", *words)
    (folder / "run.json").unlink()
    for name in ("model.safetensors", "checkpoint-3"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed, _ = train("full", *words, "--resume_from_checkpoint", "auto")
    charge = whole.model["pretrained"]["train_seconds"]
    assert charge < resumed.cost["train_seconds"] < whole.cost["train_seconds"] + 0.9 * charge
