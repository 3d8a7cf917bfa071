"""A trained model means what its run says: labels of the run, over the weights that it was trained over."""

import csv
import json
import os
import shutil
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hftl
from hftl.compare.cells import compute_key
from hftl.compare.plan import Cell
from hftl.config import parse_args
from hftl.errors import UserError
from hftl.hub.stage import stage
from hftl.inference.evaluation import evaluate
from hftl.inference.export import export_onnx
from hftl.inference.merge import merge_run
from hftl.inference.source import find_source, load_network
from hftl.models.load import name_base
from hftl.models.weights import digest_weights
from hftl.run_record import RunRecord
from hftl.training.run import run
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's hints
TEXTS = [row["text"] for row in tiny.make_texts(9, seed=1)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A text task and a run in mode peft on it, which tests copy before they change anything."""
    folder = tiny.write_text_task(tmp_path_factory.mktemp("trained"))
    return _train(folder)


def _train(folder, *more):
    words = ["--train_file", f"{folder}/train.csv", "--use_cpu", "--max_steps", "3", "--save_strategy", "steps"]
    words += ["--model_name_or_path", f"{folder}/bert", "--output_dir", f"{folder}/run", "--save_steps", "2", *more]
    run(parse_args(words, mode="peft"))
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """The same in a folder of its own: the paths in its run name the copy."""
    shutil.copytree(trained, tmp_path / "copy")
    for name in ("config.yaml", "run.json", "adapter_config.json"):
        for file in (tmp_path / "copy").rglob(name):
            file.write_text(file.read_text().replace(str(trained), str(tmp_path / "copy")))
    return tmp_path / "copy"


def _change_labels(path, change):
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows({"text": row["text"], "label": change(row["label"])} for row in rows)


def _change_one_weight(folder):
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[1234] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FIRST, SECOND = tiny.LABELS[:2]
CHANGES = {
    "one renamed": (lambda label: "zzz" if label == FIRST else label, "labels differ in '.*zzz'"),
    "two swapped": (lambda label: {FIRST: SECOND, SECOND: FIRST}.get(label, label), "rows of train"),
    "all numbered": (lambda label: str(tiny.LABELS.index(label)), "labels differ in"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_merge_refuses_data_whose_labels_are_others_than_those_of_the_run(copy, change, tmp_path):
    function, message = CHANGES[change]
    _change_labels(copy / "train.csv", function)
    with pytest.raises(UserError, match=f"are not those that it was trained with: {message}.*put the data of the run"):
        merge_run(copy / "run", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_merged_model_has_the_labels_of_the_run_in_their_order(copy, tmp_path):
    merge_run(copy / "run", tmp_path / "whole")
    names = RunRecord.read(copy / "run").data["label_names"]
    config = transformers.AutoConfig.from_pretrained(tmp_path / "whole")
    assert [config.id2label[number] for number in range(len(names))] == names
    answers = [[row["label"] for row in hftl.load(f).predict(TEXTS)] for f in (copy / "run", tmp_path / "whole")]
    assert answers[0] == answers[1]


def test_an_export_over_changed_data_asks_for_others(copy, tmp_path):
    _change_labels(copy / "train.csv", CHANGES["two swapped"][0])
    with pytest.raises(UserError, match="rows of train.*Name rows to ask with --data"):
        export_onnx(hftl.load(copy / "run"), tmp_path / "onnx")


def test_predictions_name_the_labels_of_the_run_whatever_the_data_say_now(copy):
    before = hftl.load(copy / "run").predict(TEXTS)
    _change_labels(copy / "train.csv", CHANGES["one renamed"][0])
    assert hftl.load(copy / "run").predict(TEXTS) == before


def _stage(copy, work):
    work.mkdir()
    record = RunRecord.read(copy / "run")
    return stage(copy / "run", record, ("org/name", ""), work, merge=False, include_base=True)


def _retrain(folder):
    tiny.write_tiny_bert(folder, seed=7)


WAYS_TO_LOAD = {
    "predict": lambda copy: hftl.load(copy / "run").predict(TEXTS),
    "a checkpoint": lambda copy: hftl.load(copy / "run" / "checkpoint-2"),
    "evaluate": lambda copy: evaluate(hftl.load(copy / "run"), f"{copy}/test.csv"),
    "export": lambda copy: export_onnx(hftl.load(copy / "run"), copy / "onnx"),
    "merge": lambda copy: merge_run(copy / "run", copy / "whole"),
    "push": lambda copy: _stage(copy, copy / "stage"),
}


@pytest.mark.parametrize("way", WAYS_TO_LOAD)
def test_an_adapter_over_a_base_that_was_trained_again_is_refused(copy, way):
    WAYS_TO_LOAD[way](copy)
    shutil.rmtree(copy / "onnx", ignore_errors=True)
    shutil.rmtree(copy / "whole", ignore_errors=True)
    shutil.rmtree(copy / "stage", ignore_errors=True)
    _retrain(copy / "bert")
    with pytest.raises(UserError, match="was trained over other weights than .*bert holds now.*train the adapter"):
        WAYS_TO_LOAD[way](copy)


def test_one_changed_weight_of_the_base_is_noticed(copy):
    _change_one_weight(copy / "bert")
    with pytest.raises(UserError, match="was trained over other weights"):
        load_network(find_source(str(copy / "run")))


def _edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"layer_norm_eps": 0.1}, {"num_attention_heads": 1}])
def test_a_base_that_computes_otherwise_is_noticed(copy, change):
    _edit_config(copy / "bert", **change)
    with pytest.raises(UserError, match="was trained over other weights"):
        load_network(find_source(str(copy / "run")))


@pytest.mark.parametrize("change", [{"transformers_version": "9.9"}, {"dtype": "float32"}, {"id2label": {"0": "a"}}])
def test_a_base_that_says_other_things_of_itself_is_the_same(copy, change):
    _edit_config(copy / "bert", **change)
    load_network(find_source(str(copy / "run")))


def test_a_base_that_is_gone_is_named(copy):
    shutil.rmtree(copy / "bert")
    with pytest.raises(UserError, match="an adapter over the weights in the folder .*bert, which is not there"):
        hftl.load(copy / "run")


def test_a_base_that_was_copied_back_or_touched_is_the_same(copy):
    shutil.copytree(copy / "bert", copy / "other")
    shutil.rmtree(copy / "bert")
    shutil.move(copy / "other", copy / "bert")
    os.utime(copy / "bert" / "model.safetensors", (1, 1))
    (copy / "bert" / "README.md").write_text("notes")
    assert len(hftl.load(copy / "run").predict(TEXTS)) == len(TEXTS)


def test_a_run_without_a_digest_still_loads(copy):
    record = json.loads((copy / "run" / "run.json").read_text())
    assert len(record["model"].pop("weights")) == 32
    (copy / "run" / "run.json").write_text(json.dumps(record))
    assert len(hftl.load(copy / "run").predict(TEXTS)) == len(TEXTS)


def test_a_digest_is_of_every_byte_and_read_again_only_where_a_file_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "base" / "model.safetensors"
    file.parent.mkdir()
    save_file({"a": torch.zeros(1000)}, file)
    found = [digest_weights(str(file.parent))]
    assert not (tmp_path / "cache").exists()  # so young a file may change again within one tick of its clock
    monkeypatch.setattr("hftl.models.weights.SETTLED_NS", 0)
    time.sleep(0.02)
    assert digest_weights(str(file.parent)) == found[0] and len(list((tmp_path / "cache").rglob("*"))) == 2
    for place in (-1, 8 + 300, 200):  # the last weight, one in the middle, one of the header
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        times = file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # a tool that keeps the time of change
        found.append(digest_weights(str(file.parent)))
    assert len(set(found)) == 4


def test_shards_are_digested_by_their_index_and_names_that_are_no_folder_have_no_digest(tmp_path):
    network = transformers.BertModel.from_pretrained(tiny.write_tiny_bert(tmp_path / "bert"))
    network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    before = digest_weights(str(tmp_path / "shards"))
    shutil.copy(tmp_path / "bert" / "model.safetensors", tmp_path / "shards" / "consolidated.safetensors")
    assert digest_weights(str(tmp_path / "shards")) == before
    shard = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    save_file({name: tensor + 1 for name, tensor in load_file(shard).items()}, shard)
    assert digest_weights(str(tmp_path / "shards")) != before
    assert [digest_weights(name) for name in (None, "bundled:minilm-l6", "org/name")] == [None, None, None]


def test_the_base_of_a_run_from_the_hub_is_loaded_at_the_commit_that_was_trained():
    args = parse_args(["--model_name_or_path", "org/name"], mode="peft").model
    assert name_base(args, "org/name", "c0ffee").model_revision == "c0ffee"
    assert name_base(args, "org/name").model_revision == "main"


def test_a_cell_of_a_comparison_is_another_one_once_its_base_was_trained_again(copy):
    cell = Cell("a", 8, 0, "final", {"model_name_or_path": str(copy / "bert"), "mode": "full"})
    before = compute_key(cell, "data")
    assert compute_key(cell, "data") == before
    _retrain(copy / "bert")
    assert compute_key(cell, "data") != before
