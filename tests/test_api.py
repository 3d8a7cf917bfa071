"""hftl from Python is hftl from the command line; and what a run leaves works in transformers.pipeline."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from peft import PeftModel
from PIL import Image

import hftl
from hftl.config import parse_args
from hftl.errors import UserError
from hftl.run_record import RunRecord
from hftl.training.run import run
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's hints
ROOT = Path(__file__).parents[1]
TEXTS = [row["text"] for row in tiny.make_texts(9, seed=1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("api"))


def test_train_takes_flags_by_name_and_returns_the_record(files, tmp_path):
    record = hftl.train(
        mode="peft",
        train_file=files / "train.csv",
        test_file=files / "test.csv",
        text_columns=["text"],
        model_name_or_path=files / "bert",
        learning_rate=1e-3,
        max_steps=2,
        use_cpu=True,
        resume_from_checkpoint=None,
        output_dir=tmp_path / "run",
    )
    assert isinstance(record, hftl.RunRecord)
    assert (record.status, record.config["learning_rate"], record.config["max_steps"]) == ("completed", 1e-3, 2)
    assert record.folder == tmp_path / "run"
    assert RunRecord.read(record.folder) == record and "folder" not in json.loads(
        (record.folder / "run.json").read_text()
    )
    assert [row["row_id"] for row in hftl.load(record).predict(TEXTS[:2])] == [0, 1]


def test_train_runs_a_configuration_again_and_a_keyword_wins(files, tmp_path):
    first = hftl.train(mode="majority", train_file=files / "train.csv", output_dir=tmp_path / "a", seed=3)
    again = hftl.train(first.folder / "config.yaml", output_dir=tmp_path / "b", seed=4)
    assert (again.mode, first.seed, again.seed) == ("majority", 3, 4)


def test_a_wrong_keyword_is_a_wrong_flag(files):
    with pytest.raises(UserError, match="Unknown flag '--learning_rte'. Did you mean '--learning_rate'?"):
        hftl.train(mode="full", train_file=files / "train.csv", learning_rte=1)
    with pytest.raises(UserError, match="hftl.compare takes jobs, engine"):
        hftl.compare("x.yaml", job=1)


def test_compare_runs_an_experiment_and_stays_a_package(files, tmp_path):
    (tmp_path / "experiment.yaml").write_text(
        f"data: {{train_file: {files}/train.csv, test_file: {files}/test.csv}}\n"
        f"model_name_or_path: {files}/bert\narms: {{majority: , prior: }}\n"
        "sizes: [20]\nseeds: 2\nallow_small_test: true\n"
    )
    results = hftl.compare(tmp_path / "experiment.yaml", tmp_path / "campaign", jobs=1)
    assert {arm["name"] for arm in results["arms"]} == {"majority", "prior"}
    assert results["verdict"]["headline"] and (tmp_path / "campaign" / "report.html").is_file()
    assert importlib.import_module("hftl.compare") is hftl.compare
    assert hftl.metrics.intervals.wilson(1, 2).mid == 0.5


def test_import_and_its_names_cost_nothing_until_they_are_used():
    code = "import sys, hftl; hftl.compare; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("mode", ["full", "scratch", "probe", "peft"])
def test_a_pipeline_of_texts_gives_the_same_answers(train_once, mode):
    folder = train_once(mode, *(() if mode == "probe" else ("--max_steps", "3")))
    expected = hftl.load(folder).predict(TEXTS)
    model = str(folder)
    if mode == "peft":  # through peft, as the README says
        config = transformers.AutoConfig.from_pretrained(folder)
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, config=config)
        model = PeftModel.from_pretrained(model, folder)
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=str(folder), device="cpu")
    for found, row in zip(pipe(TEXTS), expected, strict=True):
        assert (found["label"], found["score"]) == (row["label"], pytest.approx(row["probability"], abs=1e-5))


@pytest.mark.parametrize("mode", ["full", "scratch", "probe", "peft"])
def test_a_pipeline_of_images_gives_the_same_answers(tmp_path, mode):
    tiny.write_image_folder(tmp_path / "photos", 6)
    tiny.write_tiny_vit(tmp_path / "vit")
    words = ["--task", "image-classification", "--dataset", f"{tmp_path}/photos", "--use_cpu"]
    words += ["--model_name_or_path", f"{tmp_path}/vit", "--output_dir", f"{tmp_path}/run"]
    run(parse_args([*words, *(() if mode == "probe" else ("--max_steps", "3"))], mode=mode))
    folder = tmp_path / "run"
    images = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "photos").rglob("*.png"))]
    expected = hftl.load(folder).predict(images)
    model = str(folder)
    if mode == "peft":
        config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.AutoModelForImageClassification.from_pretrained(
            tmp_path / "vit", config=config, ignore_mismatched_sizes=True
        )
        model = PeftModel.from_pretrained(model, folder)
    pipe = transformers.pipeline("image-classification", model=model, image_processor=str(folder), device="cpu")
    for found, row in zip(pipe(images), expected, strict=True):
        assert found[0]["label"] == row["label"]
        assert found[0]["score"] == pytest.approx(row["probability"], abs=2e-3)  # ours rounds pixels to 8 bits
