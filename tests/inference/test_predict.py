"""Answers of a trained network: the same as those of its run, in order, from every source, to every kind of file."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image

import hftl
from hftl import cli
from hftl.config import parse_args
from hftl.errors import UserError
from hftl.inference import predictor
from hftl.inference.outputs import open_output
from hftl.inference.source import find_source
from hftl.run_record import read_predictions
from hftl.training.run import run
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's hints
ROOT = Path(__file__).parents[2]
TEXTS = [row["text"] for row in tiny.make_texts(9, seed=1)]  # of test.csv


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("predict"))


@pytest.fixture(scope="module")
def train(train_once):
    return lambda mode, *more: train_once(mode, *(() if mode == "probe" else ("--max_steps", "3")), *more)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with images in class folders, a tiny ViT and a run on both for each mode."""
    folder, made = tmp_path_factory.mktemp("images"), {}
    tiny.write_image_folder(folder / "photos", 6)
    tiny.write_tiny_vit(folder / "vit")

    def make(mode):
        if mode not in made:
            words = ["--task", "image-classification", "--dataset", f"{folder}/photos", "--use_cpu"]
            words += ["--model_name_or_path", f"{folder}/vit", "--output_dir", f"{folder}/{mode}"]
            words += [] if mode == "probe" else ["--max_steps", "3"]
            run(parse_args(words, mode=mode))
            made[mode] = folder / mode
        return made[mode]

    make.photos = folder / "photos"
    return make


def read_jsonl(text):
    return [json.loads(line) for line in text.splitlines()]


def predict(capsys, *words):
    capsys.readouterr()  # what training said
    assert cli.main(["predict", *map(str, words)]) == 0, capsys.readouterr().err
    return read_jsonl(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("full", ()),
        ("peft", ()),
        ("peft", ("--adapter", "prefix")),
        ("peft", ("--adapter", "bitfit")),
        ("peft", ("--adapter", "pissa")),
        ("scratch", ()),
        ("probe", ()),
    ],
)
def test_answers_are_those_that_the_run_stored(train, files, capsys, mode, more):
    folder = train(mode, *more)
    rows = predict(capsys, folder, files / "test.csv", "--top_k", "3")
    stored = read_predictions(folder)
    names = hftl.load(folder).source.labels.names
    assert [row["row_id"] for row in rows] == list(range(9))
    for row, place in zip(stored["probabilities"], stored["row_id"], strict=True):
        order, answer = np.argsort(-row), rows[place]
        assert [answer["label"], answer["label_2"], answer["label_3"]] == [names[i] for i in order]
        found = [answer["probability"], answer["probability_2"], answer["probability_3"]]
        np.testing.assert_allclose(found, row[order], atol=1e-5)


def test_every_source_of_texts_gives_the_same_answers(train, files, tmp_path, capsys, monkeypatch):
    folder = train("full")
    expected = [row["label"] for row in predict(capsys, folder, files / "test.csv")]
    tiny.write_jsonl(tmp_path / "a.jsonl", [{"text": text, "id": 7} for text in TEXTS])
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    pq.write_table(pq.read_table(_as_parquet(TEXTS, tmp_path)), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.csv").write_bytes((files / "test.csv").read_bytes())
    (tmp_path / "data" / "train.csv").write_bytes((files / "train.csv").read_bytes())
    for source in ("a.jsonl", "a.json", "a.txt", "a.parquet", "data", "data:test"):
        assert [row["label"] for row in predict(capsys, folder, tmp_path / source)] == expected, source
    assert len(predict(capsys, folder, f"{tmp_path}/data:train")) == 24
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(TEXTS)))
    assert [row["label"] for row in predict(capsys, folder, "-")] == expected


def _as_parquet(texts, folder):
    import pyarrow as pa

    pq.write_table(pa.table({"text": texts}), folder / "whole.parquet")
    return folder / "whole.parquet"


def test_windows_and_batches_of_any_size_give_the_same_in_order(train, monkeypatch):
    texts = [text for index, text in enumerate(TEXTS) for text in (text, " ".join(text.split()[: index % 3 + 1]))]
    one = hftl.load(train("peft")).predict(texts)
    monkeypatch.setattr(predictor, "WINDOW_DEFAULT", 4)
    other = hftl.load(train("peft"), batch_size=3).predict(texts)
    assert [row["row_id"] for row in other] == list(range(18))
    assert [row["label"] for row in one] == [row["label"] for row in other]
    np.testing.assert_allclose([r["probability"] for r in one], [r["probability"] for r in other], atol=1e-5)


def test_files_hold_the_same_rows_in_every_format(train, files, tmp_path, capsys):
    folder, expected = train("full"), predict(capsys, train("full"), files / "test.csv")
    for name in ("out.jsonl", "new/out.csv", "out.parquet"):
        assert predict(capsys, folder, files / "test.csv", "--output_file", tmp_path / name) == []
    assert read_jsonl((tmp_path / "out.jsonl").read_text()) == expected
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == expected
    with (tmp_path / "new" / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["row_id"]), row["label"], float(row["probability"])) for row in rows] == [
        (row["row_id"], row["label"], row["probability"]) for row in expected
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "new", "out.parquet"}


def test_a_terminal_gets_a_table_and_how_fast_it_was(train, files, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cli.main(["predict", str(train("full")), str(files / "test.csv")]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].split() == ["row_id", "label", "probability"]
    assert len(lines) == 10 and lines[1].split()[0] == "0" and len(lines[1].split()[2]) == 6
    assert "9 rows in " in output.err and " a second" in output.err


def test_a_reader_that_has_enough_is_no_error(train, tmp_path):
    (tmp_path / "in.txt").write_text(f"{TEXTS[0]}\n" * 3000)  # more than a pipe holds
    command = f"{sys.executable} -m hftl predict {train('full')} {tmp_path}/in.txt | head -n 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and read_jsonl(result.stdout)[0]["row_id"] == 0
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr


@pytest.mark.parametrize("mode", ["full", "peft", "probe"])
def test_images_in_folders_files_and_tables(images, capsys, tmp_path, mode):
    folder = images(mode)
    rows = predict(capsys, folder, images.photos)
    assert [row["file"] for row in rows] == sorted(
        str(p.relative_to(images.photos)) for p in images.photos.rglob("*.png")
    )
    one = predict(capsys, folder, images.photos / "red" / "3.png")
    by_file = {row["file"]: row for row in rows}
    assert one[0]["probability"] == pytest.approx(by_file["red/3.png"]["probability"], abs=1e-5)
    (images.photos.parent / "list.csv").write_text("image\nphotos/red/3.png\nphotos/blue/0.png\n")
    listed = predict(capsys, folder, images.photos.parent / "list.csv")
    assert [row["label"] for row in listed] == [by_file[name]["label"] for name in ("red/3.png", "blue/0.png")]
    with Image.open(images.photos / "red" / "3.png") as image:
        image.load()
        assert hftl.load(folder).predict([image])[0]["label"] == one[0]["label"]
    stored = read_predictions(folder)  # of the validation part
    names = hftl.load(folder).source.labels.names
    expected = [names[index] for index in stored["prediction"]]
    assert [rows[place]["label"] for place in stored["row_id"]] == expected


def write_pairs(path, n):
    rows = tiny.make_texts(n)
    tiny.write_jsonl(path, [{"a": r["text"], "b": r["text"][::-1], "label": r["label"]} for r in rows])
    return path


def test_pairs_need_both_texts(tmp_path, files, capsys):
    write_pairs(tmp_path / "train.jsonl", 24)
    words = ["--train_file", f"{tmp_path}/train.jsonl", "--text_columns", "a", "b", "--use_cpu", "--max_steps", "2"]
    run(parse_args([*words, "--model_name_or_path", f"{files}/bert", "--output_dir", f"{tmp_path}/run"], mode="full"))
    rows = predict(capsys, tmp_path / "run", tmp_path / "train.jsonl")
    pairs = [(row["text"], row["text"][::-1]) for row in tiny.make_texts(24)]
    model = hftl.load(tmp_path / "run")
    assert [row["label"] for row in model.predict(pairs)] == [row["label"] for row in rows]
    assert cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "train.jsonl"), "--text_columns", "a"]) == 2
    assert "reads a text and its pair a row; found a." in capsys.readouterr().err
    with pytest.raises(UserError, match="reads a text and its pair a row; found text"):
        model.predict(["one"])


def test_several_labels_and_values(tmp_path, files, capsys):
    rows = [{**row, "label": f"{row['label']},any", "value": float(i)} for i, row in enumerate(tiny.make_texts(24))]
    tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    words = ["--train_file", f"{tmp_path}/train.jsonl", "--text_columns", "text", "--use_cpu", "--max_steps", "2"]
    words += ["--model_name_or_path", f"{files}/bert"]
    many = ["--problem_type", "multi_label_classification", "--label_column", "label"]
    run(parse_args([*words, *many, "--output_dir", f"{tmp_path}/many"], mode="full"))
    found = predict(capsys, tmp_path / "many", tmp_path / "train.jsonl", "--threshold", "0.01")
    assert all(set(row["labels"]) == {"animal", "any", "motion", "weather"} for row in found)
    assert all(row["probabilities"] == sorted(row["probabilities"], reverse=True) for row in found)
    found = predict(capsys, tmp_path / "many", tmp_path / "train.jsonl", "--threshold", "0.6")
    assert all(p >= 0.6 for row in found for p in row["probabilities"])
    value = ["--problem_type", "regression", "--label_column", "value"]
    run(parse_args([*words, *value, "--output_dir", f"{tmp_path}/value"], mode="full"))
    found = predict(capsys, tmp_path / "value", tmp_path / "train.jsonl")
    assert set(found[0]) == {"row_id", "value"}
    stored = read_predictions(tmp_path / "value")
    np.testing.assert_allclose([found[i]["value"] for i in stored["row_id"]], stored["prediction"], rtol=1e-4)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    tiny.write_tiny_llama(folder / "llama")
    tiny.write_jsonl(folder / "train.jsonl", tiny.make_completions(32))
    words = ["--task", "causal-lm", "--train_file", f"{folder}/train.jsonl", "--use_cpu", "--max_steps", "20"]
    words += ["--model_name_or_path", f"{folder}/llama", "--output_dir", f"{folder}/run"]
    run(parse_args(words, mode="peft"))
    return folder


def test_a_language_model_goes_on_from_each_prompt_as_it_does_alone(writer, capsys):
    rows = predict(capsys, writer / "run", writer / "train.jsonl", "--max_new_tokens", "8", "--batch_size", "5")
    base = transformers.AutoModelForCausalLM.from_pretrained(writer / "llama", dtype=torch.float32)
    network = PeftModel.from_pretrained(base, writer / "run").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(writer / "run")
    for row, example in list(zip(rows, tiny.make_completions(32), strict=True))[:6]:
        inputs = tokenizer(example["prompt"], return_tensors="pt")
        written = network.generate(**inputs, do_sample=False, max_new_tokens=8, pad_token_id=tokenizer.eos_token_id)
        text = tokenizer.decode(written[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert row["completion"] == text
    model = hftl.load(writer / "run")
    chat = [{"role": "user", "content": "dog the:"}]
    assert set(model.predict([chat, chat], max_new_tokens=4)[1]) == {"row_id", "completion"}
    long = model.predict(["dog " * 200], max_new_tokens=40)  # more than the 64 tokens of the network
    assert isinstance(long[0]["completion"], str)


def test_an_adapter_is_merged_when_that_changes_nothing(train, monkeypatch, caplog):
    folder = train("peft")
    model = hftl.load(folder)
    assert isinstance(model.network, PeftModel)
    expected = model.predict(TEXTS)
    assert type(model.network).__name__ == "BertForSequenceClassification"
    monkeypatch.setattr(predictor, "TOLERANCE", -1.0)
    model = hftl.load(folder)
    found = model.predict(TEXTS)
    assert isinstance(model.network, PeftModel)
    assert "The adapter is not merged, which would be faster: a logit differs by" in caplog.text
    np.testing.assert_allclose([r["probability"] for r in found], [r["probability"] for r in expected], atol=1e-5)


def test_a_merged_adapter_that_cannot_merge_is_used_as_it_is(train):
    model = hftl.load(train("peft", "--adapter", "prefix"))
    model.predict(TEXTS)
    assert isinstance(model.network, PeftModel)


def test_checkpoints_and_folders_of_other_tools_are_asked_too(train, files, tmp_path, capsys):
    stored = predict(capsys, train("full"), files / "test.csv")
    for mode in ("full", "peft"):
        folder = train(mode, "--save_strategy", "steps", "--save_steps", "3")
        checkpoint = next(folder.glob("checkpoint-*"))
        whole = predict(capsys, folder, files / "test.csv")
        assert [r["label"] for r in predict(capsys, checkpoint, files / "test.csv")] == [r["label"] for r in whole]
    other = tmp_path / "other"  # plain files of transformers, and none of ours
    other.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((train("full") / name).read_bytes())
    assert predict(capsys, other, files / "test.csv") == stored
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        (adapter / name).write_bytes((train("peft") / name).read_bytes())
    found, expected = (predict(capsys, f, files / "test.csv") for f in (adapter, train("peft")))
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    (adapter / "config.json").unlink()
    with pytest.raises(UserError, match="A config.json beside the adapter would name its labels"):
        hftl.load(adapter)


@pytest.mark.slow
def test_a_repository_of_the_hub_is_asked_like_a_folder(train, files, hub, tmp_path):
    """Through the unmodified client, from a server on loopback, in a process of its own."""
    api = huggingface_hub.HfApi(endpoint=hub.endpoint, token=hub.token)
    for mode in ("full", "peft"):
        api.create_repo(f"org/{mode}")
        files_of = ["*.safetensors", "*config.json", "tokenizer*"]
        api.upload_folder(repo_id=f"org/{mode}", folder_path=train(mode), allow_patterns=files_of)
    code = "import sys; from hftl import cli; sys.exit(cli.main(['predict', sys.argv[1], sys.argv[2]]))"
    for mode in ("full", "peft"):
        words = [sys.executable, "-c", code, f"org/{mode}", str(files / "test.csv")]
        result = subprocess.run(words, env=hub.client_environment(tmp_path), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        expected = hftl.load(train(mode)).predict(TEXTS)
        assert [row["label"] for row in read_jsonl(result.stdout)] == [row["label"] for row in expected]


@pytest.mark.parametrize("kind", ["error", "skip"])
def test_bad_rows_stop_everything_or_are_answered_with_nothing(train, tmp_path, capsys, kind):
    rows = [{"text": text} for text in TEXTS]
    rows[4]["text"], rows[7]["text"] = "  ", None
    tiny.write_jsonl(tmp_path / "in.jsonl", rows)
    words = ["predict", str(train("full")), f"{tmp_path}/in.jsonl", "--output_file", f"{tmp_path}/out.jsonl"]
    if kind == "error":
        assert cli.main(words) == 2
        assert "Row 4 cannot be answered: empty text, and 1 more near it." in capsys.readouterr().err
        assert not (tmp_path / "out.jsonl").exists() and len(list(tmp_path.iterdir())) == 1
        return
    assert cli.main([*words, "--on_bad_rows", "skip"]) == 0
    found = read_jsonl((tmp_path / "out.jsonl").read_text())
    assert [row["row_id"] for row in found if row["label"] is None] == [4, 7]
    assert found[4] == {"row_id": 4, "label": None, "probability": None}


def test_windows_of_bad_rows_alone_fit_every_format(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predictor, "WINDOW_DEFAULT", 2)
    tiny.write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in ["", " ", *TEXTS[:3], "", ""]])
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        words = [train("full"), tmp_path / "in.jsonl", "--on_bad_rows", "skip", "--output_file", tmp_path / name]
        predict(capsys, *words)
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert table == read_jsonl((tmp_path / "out.jsonl").read_text())
    assert [row["label"] is None for row in table] == [True, True, False, False, False, True, True]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("content", "fault"), [(b"not an image", "corrupt image"), (None, "missing file"), (b"", "empty image file")]
)
def test_evaluation_names_the_row_of_a_bad_image_or_skips_it(images, tmp_path, capsys, content, fault):
    model, rows = str(images("full")), ["image,label", "photos/red/3.png,red", "photos/blue/0.png,blue"]
    if content is not None:
        (images.photos.parent / "bad.png").write_bytes(content)
    table = images.photos.parent / "bad.csv"
    table.write_text("\n".join([*rows, "bad.png,red"]) + "\n")
    try:
        assert cli.main(["evaluate", model, str(table)]) == 2
        assert re.search(rf"1 x {fault}: .*bad.png \(row_id 2\).*--on_bad_rows skip", capsys.readouterr().err)
        assert cli.main(["evaluate", model, str(table), "--on_bad_rows", "skip"]) == 0
        assert "bad.csv: 2 rows" in capsys.readouterr().out
    finally:
        (images.photos.parent / "bad.png").unlink(missing_ok=True)


def test_images_that_cannot_be_read_are_named(images, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    assert cli.main(["predict", str(images("full")), str(tmp_path)]) == 2
    assert "Row 0 cannot be answered: corrupt image: " in capsys.readouterr().err
    (tmp_path / "list.csv").write_text("image\nabsent.png\n")
    assert cli.main(["predict", str(images("full")), str(tmp_path / "list.csv")]) == 2
    assert f"missing file: {tmp_path}/absent.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "absent.csv"], "There is no file or folder absent.csv"),
        (["{run}", "{files}/test.csv", "--output_file", "out.xlsx"], "out.xlsx has an unknown ending"),
        (["{run}", "{files}/test.csv", "--output_file", "{files}/test.csv"], "is what is read; name another file"),
        (["{run}", "{files}/test.csv", "--top_k", "0"], "--top_k is 0; give 1 or more"),
        (["{run}", "{files}/test.csv", "--threshold", "2"], "--threshold is 2.0; give a probability"),
        (["{run}", "{files}/test.csv", "--batch_size", "many"], "--batch_size is 'many'; give a number"),
        (["{run}", "{files}/test.csv", "--batch_size", "0"], "--batch_size is 0; give 1 or more, or auto"),
        (["{run}", "{files}/test.csv", "--topk", "2"], "Unknown flag '--topk'. Did you mean '--top_k'?"),
        (["{run}", "{files}/test.csv", "--text_columns", "txt"], "Unknown column 'txt'. Did you mean 'text'?"),
        (["{run}", "{files}/bert/config.yaml"], "There is no file or folder"),
        (["{run}", "{files}/empty.csv"], "empty.csv is empty (0 bytes)"),
        (["{run}", "{files}/header.csv"], "header.csv has no rows"),
        (["{run}", "{files}/broken.jsonl"], "Cannot read {files}/broken.jsonl as jsonl: line 2"),
        (["{run}", "{files}/latin.csv"], "latin.csv is not UTF-8"),
        (["{run}", "{files}/surplus.csv"], "Rows of {files}/surplus.csv have more fields than its header"),
        (["{run}", "{files}/list.jsonl"], "expected one JSON object a row"),
        (["{run}", "{files}/notes.md"], "notes.md has an unknown ending"),
        (["{run}", "bundled:wordnet:tset"], "Unknown split of bundled:wordnet: 'tset'. Did you mean 'test'?"),
        (["{files}/bert", "{files}/test.csv"], "holds BertModel, which answers none of the tasks"),
        (["{files}/absent/run", "{files}/test.csv"], "There is no checkpoint folder"),
        (["{baseline}", "{files}/test.csv"], "is the baseline majority: its run left scores and no network"),
    ],
)
def test_each_mistake_is_one_line(train, files, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (files / "empty.csv").touch()
    (files / "header.csv").write_text("text\n")
    (files / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (files / "latin.csv").write_bytes("text\nçà\n".encode("latin1"))
    (files / "surplus.csv").write_text("text\na,b,c\n")
    (files / "list.jsonl").write_text("[1, 2]\n")
    (files / "notes.md").write_text("text\n")
    names = {"run": train("full"), "files": files, "baseline": tmp_path / "majority"}
    if words[0] == "{baseline}":
        from hftl.baselines import run_baseline

        run_baseline(
            parse_args(
                ["--mode", "majority", "--train_file", f"{files}/train.csv", "--output_dir", f"{tmp_path}/majority"]
            )
        )
    assert cli.main(["predict", *(word.format(**names) for word in words)]) == 2
    assert message.format(**names) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,review,stars\n1,a cat,5\n"),
        ("a.csv", "Text\na cat\n"),
        ("a.csv", "a cat\nto run\n"),
        ("a.jsonl", '{"sentence": "a cat"}\n'),
        ("a.tsv", "text label\na cat\n"),
    ],
)
def test_a_table_without_the_column_of_training_is_refused(train, tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    assert cli.main(["predict", str(train("full")), str(tmp_path / name)]) == 2
    assert "reads the column 'text', as in training; found" in capsys.readouterr().err


def test_a_flag_names_another_column_than_that_of_training(train, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("id;review\n" + "".join(f"{i};{text}\n" for i, text in enumerate(TEXTS)))
    (tmp_path / "b.csv").write_text("note;text\n" + "".join(f"{i};{text}\n" for i, text in enumerate(TEXTS)))
    expected = [row["label"] for row in hftl.load(train("full")).predict(TEXTS)]
    named = predict(capsys, train("full"), tmp_path / "a.csv", "--text_columns", "review")
    assert [row["label"] for row in named] == expected
    assert [row["label"] for row in predict(capsys, train("full"), tmp_path / "b.csv")] == expected


@pytest.mark.parametrize("name", ["file_name", "path", "img"])
def test_a_model_of_class_folders_reads_tables_with_another_usual_name(images, capsys, name):
    table = images.photos.parent / f"{name}.csv"
    table.write_text(f"{name}\nphotos/red/3.png\nphotos/blue/0.png\n")
    alone = [predict(capsys, images("full"), images.photos / path)[0] for path in ("red/3.png", "blue/0.png")]
    assert [row["label"] for row in predict(capsys, images("full"), table)] == [row["label"] for row in alone]


@pytest.mark.parametrize("separator", ["\t", ";", "|"])
def test_predict_answers_every_line_of_a_table(train, tmp_path, capsys, separator):
    rows = [("text", "id"), *((f'"{text}' if i in (1, 4) else text, str(i)) for i, text in enumerate(TEXTS))]
    path = tmp_path / "a.csv"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    if separator == "\t":
        assert len(predict(capsys, train("full"), path)) == len(TEXTS)
    else:
        assert cli.main(["predict", str(train("full")), str(path)]) == 2
        assert "goes on behind the quotation mark" in capsys.readouterr().err


@pytest.mark.parametrize("separator", ["\t", ";", "|"])
def test_evaluate_reads_a_table_as_training_does(train, files, tmp_path, capsys, separator):
    lines = (files / "test.csv").read_text().splitlines()
    (tmp_path / "a.csv").write_text("".join(line.replace(",", separator) + "\n" for line in lines))
    (tmp_path / "b.csv").write_text("".join(line.replace("text,", "body,") + "\n" for line in lines))
    assert cli.main(["evaluate", str(train("full")), str(files / "test.csv")]) == 0
    expected = capsys.readouterr().out.splitlines()[1:]
    assert cli.main(["evaluate", str(train("full")), str(tmp_path / "a.csv")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == expected
    assert cli.main(["evaluate", str(train("full")), str(tmp_path / "b.csv")]) == 2
    assert "reads the column 'text', as in training; found 'body'" in capsys.readouterr().err


def test_a_wrong_row_from_python_says_what_to_give(train):
    model = hftl.load(train("full"))
    for rows, message in (
        ("one text", "Give a list of rows; found a str"),
        ([("a", "b", "c")], "A pair is two texts"),
        ([b"some bytes"], "Row 0 .* bytes, which are no text"),
        (["a text", float("nan")], "Row 1 .* empty text"),
        ([np.float32("nan")], "Row 0 .* empty text"),
        (["half \ud83d of one"], "Row 0 .* half of a surrogate pair"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict(rows)
    assert model.predict([{"text": TEXTS[0], "id": 3}]) == model.predict(TEXTS[:1])
    assert model.predict([]) == []
    assert [row["label"] for row in model.predict([b"x", float("nan"), None], on_bad_rows="skip")] == [None] * 3
    assert model.predict(["caf\u00e9 \U0001f600"])[0]["label"] is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_len": 12}, "Unknown setting 'max_len'. Did you mean 'max_length'"),
        ({"max_length": "12"}, "max_length is '12'; give a whole number"),
        ({"max_length": 2.5}, "max_length is 2.5"),
        ({"text_column": "text"}, "Did you mean 'text_columns'"),
    ],
)
def test_a_setting_from_python_that_is_none_is_refused(train, settings, message):
    with pytest.raises(UserError, match=message):
        hftl.load(train("full"), **settings)


def test_a_mistyped_policy_for_bad_rows_is_refused(train):
    with pytest.raises(UserError, match="on_bad_rows: 'skp'. Did you mean 'skip'"):
        hftl.load(train("full")).predict(["a"], on_bad_rows="skp")


def test_memory_that_runs_out_halves_the_batch(train, monkeypatch):
    model = hftl.load(train("full"), batch_size=8)
    expected, answer = model.predict(TEXTS), model.task.answer

    def fail_above_two(network, batch, *rest):
        if len(batch["input_ids"]) > 2:
            raise torch.OutOfMemoryError("too much")
        return answer(network, batch, *rest)

    monkeypatch.setattr(model.task, "answer", fail_above_two)
    found = model.predict(TEXTS)
    assert model.batch_size == 2
    np.testing.assert_allclose([r["probability"] for r in found], [r["probability"] for r in expected], atol=1e-5)


def test_what_a_name_stands_for_is_found_without_weights(train, tmp_path):
    source = find_source(str(train("peft")))
    assert (source.task.name, source.labels.names) == ("text-classification", tiny.LABELS)
    assert source.adapter == str(train("peft")) and source.record.mode == "peft"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows(train, tmp_path):
    """100,000 rows take less than 60 MB more than 4,000, in a process of their own."""
    peaks = []
    for n in (4_000, 100_000):
        texts = (" ".join(TEXTS[i % 9].split()[: 1 + i % 5]) for i in range(n))
        (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in texts))
        code = (
            "import resource, sys; from hftl import cli; "
            f"assert cli.main(['predict', {str(train('full'))!r}, {str(tmp_path / 'in.txt')!r}, '--output_file', "
            f"{str(tmp_path / 'out.jsonl')!r}]) == 0; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout.split()[-1]) / 1024)
        with (tmp_path / "out.jsonl").open() as file:
            assert sum(1 for _ in file) == n
    assert peaks[1] < 1500 and peaks[1] - peaks[0] < 60, peaks


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_the_old_output_whole(train, tmp_path):
    """The second window of rows ends the process as a kill does: no cleaning up, and no half file under the name."""
    (tmp_path / "in.txt").write_text("".join(f"{TEXTS[i % 9]}\n" for i in range(50)))
    code = (
        "import os, sys; from hftl import cli; from hftl.inference import predictor\n"
        "predictor.Predictor.window_size = property(lambda self: 8)\n"
        "answer = predictor.Predictor.answer\n"
        "def answer_once(self, *words, first=0, **more):\n"
        "    return os._exit(9) if first else answer(self, *words, first=first, **more)\n"
        "predictor.Predictor.answer = answer_once\n"
        "cli.main(['predict', *sys.argv[1:]])"
    )
    for ending in ("jsonl", "csv", "parquet"):
        out = tmp_path / f"out.{ending}"
        out.write_bytes(b"the old answers")
        words = [str(train("full")), str(tmp_path / "in.txt"), "--output_file", str(out)]
        assert subprocess.run([sys.executable, "-c", code, *words], capture_output=True).returncode == 9
        assert out.read_bytes() == b"the old answers"
        left = [path for path in tmp_path.iterdir() if path.name.startswith(f".{out.name}.")]
        assert len(left) == 1 and b"old answers" not in left[0].read_bytes()  # it was writing beside the file


# Formulas

FORMULAS = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    " =1+1",
    "\uff1d1+1",
    "-animal",
    "\n=1",
)
HARMLESS = ("-1", "+1", "-0.5", "1e-5", "-3.5e+2", "animal", "a=b", "50 %", "", "'x", "e-mail@x.y", "-7%")


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("place", ["cell", "header"])
def test_a_text_that_a_spreadsheet_would_compute_is_quoted_in_csv(text, place, tmp_path):
    columns = {"label": [text], "row_id": [0]} if place == "cell" else {text: ["animal"], "row_id": [0]}
    with open_output(str(tmp_path / "out.csv"), io.StringIO()) as write:
        write(columns)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert (rows[1][0] if place == "cell" else rows[0][0]) == f"'{text}"


@pytest.mark.parametrize("text", HARMLESS)
def test_a_text_that_computes_nothing_stays_in_csv(text, tmp_path):
    with open_output(str(tmp_path / "out.csv"), io.StringIO()) as write:
        write({"label": [text], "value": [-0.5], "labels": [["=a"]], "missing": [None]})
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == [text, "-0.5", '["=a"]', ""]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_only_csv_is_quoted(ending, tmp_path):
    with open_output(str(tmp_path / f"out.{ending}"), io.StringIO()) as write:
        write({"label": ["=1+1"]})
    content = (tmp_path / f"out.{ending}").read_bytes()
    assert b"=1+1" in content and b"'=1+1" not in content


@pytest.mark.parametrize("flags", [[], ["--keep_formulas"]])
def test_labels_that_are_formulas_are_quoted_unless_asked_for(flags, files, tmp_path, capsys):
    rows = [row | {"label": f"={row['label']}"} for row in tiny.make_texts(24)]
    tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    words = ["--train_file", f"{tmp_path}/train.jsonl", "--model_name_or_path", f"{files}/bert", "--use_cpu"]
    run(parse_args([*words, "--max_steps", "1", "--output_dir", f"{tmp_path}/run"], mode="full"))
    words = ["predict", f"{tmp_path}/run", f"{files}/test.csv", "--output_file", f"{tmp_path}/out.csv", *flags]
    assert cli.main(words) == 0
    with (tmp_path / "out.csv").open() as file:
        labels = {row["label"] for row in csv.DictReader(file)}
    assert labels and all(label.startswith("=" if flags else "'=") for label in labels)


@pytest.mark.parametrize(
    "content", ["a cat\n\nto run\n", "red shoes\nblue hats\n\n", "one two three\n\nfour five six\n"]
)
def test_lines_of_as_many_words_are_rows_and_no_columns_of_words(train, tmp_path, capsys, content):
    """With an empty line among them they look like CoNLL, which a classifier of texts does not read."""
    (tmp_path / "a.txt").write_text(content)
    run = train("full")
    capsys.readouterr()
    assert cli.main(["predict", str(run), str(tmp_path / "a.txt"), "--on_bad_rows", "skip"]) == 0
    answers = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    assert [label is None for label in answers] == [not line for line in content.splitlines()]
