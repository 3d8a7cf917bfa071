"""From training to a reload by others, over the Hub: one process trains and pushes, another has plain libraries only.

It runs the code of the card as pasted and answers every test row; the predictions must be those that the run stored.
`transformers.pipeline` is asked the same rows: by the name of a whole network, with the loaded objects of an adapter,
because transformers 5.23 takes the labels of an adapter's base, and the base's latest commit.
"""

import json
import site
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

from hftl.metrics import compute_probabilities
from hftl.run_record import RunRecord, read_predictions
from tests import tiny
from tests.hub.hub_server import serve

pytestmark = pytest.mark.slow
MODES = ("full", "peft", "scratch", "probe")
RUNS = [f"{modality}-{mode}" for modality in ("text", "image") for mode in MODES]
RUNS += ["lm-full", "lm-scratch", "lm-peft", "text-local", "tokens-peft"]

TRAIN = """
import sys
from hftl import cli

for line in sys.stdin.read().splitlines():
    code = cli.main(line.split("\\t"))
    assert code == 0, (code, line)
"""
RELOAD = """
import io, json, re, sys
import torch
from contextlib import redirect_stdout
from huggingface_hub import file_exists, hf_hub_download, metadata_load
from importlib.util import find_spec
from PIL import Image
from transformers import pipeline

assert find_spec("hftl") is None
for line in sys.stdin:
    name, rows = json.loads(line)
    card = open(hf_hub_download(name, "README.md"), encoding="utf-8").read()
    code = re.search("```python\\n(.*?)```", card, re.DOTALL)[1]
    scope, printed = {}, io.StringIO()
    with redirect_stdout(printed):
        exec(code, scope)
    model, processor, logits = scope["model"], scope["processor"], []
    with torch.no_grad():
        for row in rows:
            if row.endswith(".png"):
                inputs = processor(images=Image.open(row).convert("RGB"), return_tensors="pt")
            else:
                inputs = processor(row, truncation=True, return_tensors="pt")
            logits.append(model(**inputs).logits[0].tolist())
    found = {"name": name, "logits": logits, "printed": printed.getvalue().strip()}
    kind = metadata_load(hf_hub_download(name, "README.md"))["pipeline_tag"]
    part = "image_processor" if kind == "image-classification" else "tokenizer"
    # By name for whole models. For the name of an adapter transformers 5.23 takes the labels and the newest weights of
    # the base, whatever the adapter says, so the pipeline gets what the code of the card has loaded.
    is_whole = file_exists(name, "model.safetensors")
    chosen = {"model": name} if is_whole else {"model": model, part: processor}
    pipe = pipeline(kind, device="cpu", **chosen)
    if kind == "text-generation":
        found["pipeline"] = [pipe(row, do_sample=False, max_new_tokens=4)[0]["generated_text"] for row in rows]
    else:
        answers = [pipe(row, top_k=3) for row in rows]
        found["pipeline"] = [{entry["label"]: entry["score"] for entry in answer} for answer in answers]
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """Name -> run folder, and what the second process found; the server."""
    folder = tmp_path_factory.mktemp("trip")
    tiny.write_text_task(folder)
    tiny.write_tiny_convnet(folder / "convnet")
    tiny.write_tiny_llama(folder / "llama")
    tiny.write_image_folder(folder / "photos" / "train", 6)
    tiny.write_image_folder(folder / "photos" / "test", 2, seed=1)
    tiny.write_jsonl(folder / "lm.jsonl", tiny.make_completions(12))
    photos = sorted((folder / "photos" / "test").rglob("*.png"))
    Image.new("RGB", (40, 50)).save(folder / "photo.png")  # which the card opens
    texts = [row["text"] for row in tiny.make_texts(9, seed=1)]
    for split, count in (("train", 24), ("test", 9)):
        rows = [row | {"text": f"xyzzy {row['text']}"} for row in tiny.make_texts(count, seed=int(split == "test"))]
        tiny.write_jsonl(folder / f"tokens-{split}.jsonl", rows)
    tiny.add_token(folder / "bert", folder / "bert-tokens")
    with pytest.MonkeyPatch.context() as patch, serve() as hub:
        hub.connect_client(patch, folder / "home")
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        for name in ("bert", "bert-tokens", "convnet", "llama"):
            api.create_repo(f"org/{name}")
            api.upload_folder(repo_id=f"org/{name}", folder_path=folder / name)
        environment = hub.client_environment(folder / "trainer", hub.token) | {"HFTL_CACHE": str(folder / "cache")}
        words = "\n".join("\t".join(list_words(name, folder)) for name in RUNS)
        run_process(TRAIN, words, environment, folder)
        # A base at another commit would give other answers: the pinned one must be the one that others get.
        tiny.write_tiny_bert(folder / "other", seed=9)
        api.upload_folder(repo_id="org/bert", folder_path=folder / "other")
        environment = hub.client_environment(folder / "reader", hub.token)
        del environment["PYTHONPATH"]
        rows = {"text": texts, "image": list(map(str, photos)), "lm": ["cat is:"]}
        rows["tokens"] = [f"xyzzy {text}" for text in texts]
        asked = "".join(json.dumps([f"org/{name}-run", rows[name.split("-")[0]]]) + "\n" for name in RUNS)
        lines = run_process(RELOAD, asked, environment, folder, python=make_reader(folder)).splitlines()
        answers = [json.loads(line) for line in lines if line.startswith('{"name"')]
        yield {answer["name"].split("/")[1].removesuffix("-run"): answer for answer in answers}, folder, hub


def list_words(name: str, folder: Path) -> list[str]:
    modality, mode = name.split("-")
    data = {
        "text": ["--train_file", f"{folder}/train.csv", "--test_file", f"{folder}/test.csv"],
        "tokens": ["--train_file", f"{folder}/tokens-train.jsonl", "--test_file", f"{folder}/tokens-test.jsonl"],
        "image": ["--task", "image-classification", "--dataset", f"{folder}/photos"],
        "lm": ["--task", "causal-lm", "--train_file", f"{folder}/lm.jsonl", "--test_file", f"{folder}/lm.jsonl"],
    }[modality]
    base = {"text": "bert", "tokens": "bert-tokens", "image": "convnet", "lm": "llama"}[modality]
    base = str(folder / "bert") if mode == "local" else f"org/{base}"
    words = ["train", "--mode", "peft" if mode == "local" else mode, *data, "--model_name_or_path", base]
    words += ["--use_cpu", "--max_steps", "3", "--output_dir", str(folder / "runs" / name)]
    return [*words, "--push_to_hub", "--hub_model_id", f"org/{name}-run"]


def make_reader(folder: Path) -> Path:
    """The interpreter of an environment with the packages of this one, but without hftl."""
    venv.create(folder / "reader-env", symlinks=True)
    (packages,) = (folder / "reader-env" / "lib").glob("python*/site-packages")
    for path in Path(site.getsitepackages()[0]).iterdir():
        if "hftl" not in path.name and not path.name.startswith("__editable__"):
            (packages / path.name).symlink_to(path)
    return folder / "reader-env" / "bin" / "python"


def run_process(
    code: str, stdin: str, environment: dict[str, str], folder: Path, python: Path = Path(sys.executable)
) -> str:
    command = [str(python), "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, input=stdin, env=environment, cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("lm")])
def test_others_get_the_predictions_that_the_run_stored(trip, name):
    answers, folder, _ = trip
    stored = read_predictions(folder / "runs" / name)
    logits = np.asarray(answers[name]["logits"])[stored["row_id"]]
    probabilities = compute_probabilities(logits, "single_label_classification")
    np.testing.assert_allclose(probabilities, stored["probabilities"], atol=2e-5)
    assert (probabilities.argmax(-1) == stored["prediction"]).all()


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("lm")])
def test_a_pipeline_of_the_repository_gives_the_same_probabilities(trip, name):
    answers, folder, _ = trip
    probabilities = compute_probabilities(np.asarray(answers[name]["logits"]), "single_label_classification")
    labels = RunRecord.read(folder / "runs" / name).data["label_names"]
    for row, found in zip(probabilities, answers[name]["pipeline"], strict=True):
        assert found == pytest.approx(dict(zip(labels, row.tolist(), strict=True)), abs=2e-5)


@pytest.mark.parametrize("mode", ["full", "scratch", "peft"])
def test_a_pipeline_of_a_language_model_goes_on_with_the_text(trip, mode):
    (text,) = trip[0][f"lm-{mode}"]["pipeline"]
    assert text.startswith("cat is:") and len(text) > len("cat is:")


@pytest.mark.parametrize("name", RUNS)
def test_the_code_of_the_card_answers_as_pasted(trip, name):
    answers, folder, _ = trip
    printed = answers[name]["printed"]
    labels = RunRecord.read(folder / "runs" / name).data["label_names"]
    assert printed in labels if labels else printed


@pytest.mark.parametrize("name", ["text-peft", "tokens-peft"])
def test_hftl_asks_a_pushed_adapter_over_the_commit_that_it_was_tuned_on(trip, name):
    _, folder, hub = trip
    environment = hub.client_environment(folder / "asker", hub.token)
    file, out = folder / ("test.csv" if name.startswith("text") else "tokens-test.jsonl"), folder / f"{name}.jsonl"
    run_process(TRAIN, f"predict\torg/{name}-run\t{file}\t--output_file\t{out}", environment, folder)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    stored = read_predictions(folder / "runs" / name)
    expected = stored["probabilities"].max(-1)[np.argsort(stored["row_id"])]
    np.testing.assert_allclose([row["probability"] for row in found], expected, atol=2e-5)


def test_an_adapter_names_its_base_with_the_commit_that_it_was_tuned_on(trip):
    _, _, hub = trip
    first = hub.repos["org/bert"].history("main")[1].oid
    config = json.loads(hub.repos["org/text-peft-run"].find("main").files["adapter_config.json"].content)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/bert", first)
    local = json.loads(hub.repos["org/text-local-run"].find("main").files["adapter_config.json"].content)
    assert local["base_model_name_or_path"] == "org/text-local-run-base"


def test_every_pushed_repository_is_private_and_holds_no_rows(trip):
    _, _, hub = trip
    pushed = {name: repo for name, repo in hub.repos.items() if name.endswith(("-run", "-base"))}
    assert len(pushed) == len(RUNS) + 1 and all(repo.is_private for repo in pushed.values())
    files = {file for repo in pushed.values() for file in repo.find("main").files}
    assert not [file for file in files if file.endswith((".parquet", ".yaml", ".bin")) or file == "run.json"]
