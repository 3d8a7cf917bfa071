"""An exported classifier answers as the network does, for any number of rows of any length, or is not written."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image

import hftl
from hftl import cli
from hftl.config import parse_args
from hftl.inference import export
from hftl.training.run import run
from tests import tiny

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's hints
TEXTS = [row["text"] for row in tiny.make_texts(9, seed=1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def train(train_once):
    return lambda mode, *more: train_once(mode, "--max_steps", "3", *more)


def ask(folder, name, texts):
    """Probabilities [N, C], with onnxruntime and transformers' tokenizer alone."""
    session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(texts, padding=True, return_tensors="np")
    logits = session.run(None, {node.name: encoded[node.name] for node in session.get_inputs()})[0]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_an_adapter_of_texts_in_one_file_and_in_8_bits(train, tmp_path, capsys):
    folder, out = train("peft"), tmp_path / "out"
    capsys.readouterr()
    assert cli.main(["export", str(folder), str(out), "--quantize", "int8"]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert len(lines) == 3 and lines[0].startswith("model.onnx: ") and lines[1].startswith("model_int8.onnx: ")
    assert all("accuracy changes by " in line and "9 rows: " in line for line in lines[:2])
    rows = hftl.load(folder).predict(TEXTS)
    names = json.loads((out / "config.json").read_text())["id2label"]
    for texts, expected in ((TEXTS, rows), (TEXTS[:1], rows[:1]), (["cat " * 20, "dog"], None)):
        found = ask(out, "model.onnx", texts)
        expected = expected or hftl.load(folder).predict(texts)
        assert [names[str(place)] for place in found.argmax(1)] == [row["label"] for row in expected]
        np.testing.assert_allclose(found.max(1), [row["probability"] for row in expected], atol=1e-4)
    assert ask(out, "model_int8.onnx", TEXTS).shape == (9, 3)
    report = json.loads((out / "export.json").read_text())
    assert report["model.onnx"]["max_difference"] < 1e-4 and report["model.onnx"]["loss"][0] == 0
    assert report["model_int8.onnx"]["num_bytes"] < report["model.onnx"]["num_bytes"]
    assert report["model_int8.onnx"]["max_difference"] > 0


def test_images_of_a_network_with_batch_statistics(tmp_path):
    tiny.write_image_folder(tmp_path / "photos", 6)
    tiny.write_tiny_convnet(tmp_path / "resnet")
    words = ["--task", "image-classification", "--dataset", f"{tmp_path}/photos", "--use_cpu", "--max_steps", "3"]
    run(
        parse_args(
            [*words, "--model_name_or_path", f"{tmp_path}/resnet", "--output_dir", f"{tmp_path}/run"], mode="full"
        )
    )
    report = export.export_onnx(hftl.load(tmp_path / "run"), tmp_path / "out")
    assert report["model.onnx"].agreement == 1 and report["model.onnx"].loss is None  # it was trained on these rows
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    images = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "photos").rglob("*.png"))]
    rows = hftl.load(tmp_path / "run").predict(images)
    logits = session.run(None, {"pixel_values": processor(images, return_tensors="np")["pixel_values"]})[0]
    names = hftl.load(tmp_path / "run").source.labels.names
    assert [names[place] for place in logits.argmax(1)] == [row["label"] for row in rows]


def test_a_file_with_other_answers_is_not_written(train, tmp_path, capsys):
    words = ["export", str(train("full")), str(tmp_path / "out"), "--tolerance", "0"]
    assert cli.main(words) == 2
    assert "The exported network is another one, so nothing was written. " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_says_why(train, files, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (plain / name).write_bytes((train("full") / name).read_bytes())
    tiny.write_tiny_llama(tmp_path / "llama")
    run_folder, out = str(train("full")), str(tmp_path / "out")
    for words, message in (
        ([run_folder, str(tmp_path / "full")], "full exists already. Name a new folder"),
        ([str(plain), out], "has no run whose rows could be asked. Give some with --data"),
        ([str(tmp_path / "llama"), out], "writes texts; hftl export is for text and image classifiers"),
        ([run_folder, out, "--quantise", "int8"], "Did you mean '--quantize'?"),
    ):
        assert cli.main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["export", str(plain), out, "--data", f"{files}/test.csv"]) == 0
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert cli.main(["export", run_folder, str(tmp_path / "other")]) == 2
    assert 'hftl export needs the package onnxscript: pip install "hftl[onnx]"' in capsys.readouterr().err
