"""Folding an adapter into the weights: the same answers, a plain checkpoint, and nothing written when it is not so."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hftl
from hftl import cli
from hftl.config import ModelArguments, parse_args
from hftl.errors import UserError
from hftl.inference.merge import _list_logits, fold_adapter, merge_run
from hftl.models.adapters import ADAPTERS
from hftl.models.head import head_modules
from hftl.models.modes import MODES
from hftl.run_record import read_predictions
from hftl.training.run import run
from tests import tiny
from tests.models.adapter_matrix import build_batch, train_steps
from tests.networks import build_network

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's hints


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("merge"))


@pytest.fixture(scope="module")
def train(train_once):
    return lambda mode, *more: train_once(mode, "--max_steps", "3", *more)


@pytest.mark.parametrize("name", ["roberta", "vit"])  # a head of several layers, and one without a task type
@pytest.mark.parametrize("adapter", [name for name, entry in ADAPTERS.items() if entry.is_mergeable])
def test_a_merged_network_gives_the_same_logits(adapter, name):
    network = build_network(name)
    args = ModelArguments(adapter=adapter, lora_r=4, lora_alpha=4)
    adapted = MODES["peft"].adapt(network, args, head_modules(network, []), "SEQ_CLS" if name == "roberta" else None)
    train_steps(adapted, build_batch(name))
    with torch.inference_mode():
        expected = adapted.eval()(**build_batch(name)).logits
        merged = fold_adapter(adapted).eval()
        torch.testing.assert_close(merged(**build_batch(name)).logits, expected, atol=2e-5, rtol=0)
    assert type(merged) is type(build_network(name))
    assert merged.state_dict().keys() == build_network(name).state_dict().keys()


def test_what_is_merged_is_a_plain_checkpoint_with_the_answers_of_the_run(train, tmp_path, capsys):
    folder = train("peft")
    assert cli.main(["merge", str(folder), str(tmp_path / "whole")]) == 0
    assert "the same prediction for 100.00%" in capsys.readouterr().out
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    texts = [row["text"] for row in tiny.make_texts(9, seed=1)]
    with torch.inference_mode():
        logits = network(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    stored = read_predictions(folder)["probabilities"]
    torch.testing.assert_close(logits.softmax(-1).numpy(), stored, atol=1e-5, rtol=0)
    report = json.loads((tmp_path / "whole" / "merge.json").read_text())
    assert report["agreement"] == 1.0 and report["max_difference"] < 1e-4 and report["num_answers"] == 5
    assert not list((tmp_path / "whole").glob("adapter*"))


def test_a_language_model_is_merged_and_writes_the_same_text(tmp_path, capsys):
    tiny.write_tiny_llama(tmp_path / "llama")
    words = ["--task", "causal-lm", "--model_name_or_path", f"{tmp_path}/llama", "--use_cpu", "--max_steps", "3"]
    for split, n in (("train", 24), ("validation", 6), ("test", 6)):
        words += [f"--{split}_file", str(tiny.write_jsonl(tmp_path / f"{split}.jsonl", tiny.make_completions(n)))]
    run(parse_args([*words, "--learning_rate", "0.05", "--output_dir", f"{tmp_path}/run"], mode="peft"))
    assert cli.main(["merge", f"{tmp_path}/run", f"{tmp_path}/whole"]) == 0
    assert "the same prediction for 100.00%" in capsys.readouterr().out
    prompts = [row["prompt"] for row in tiny.make_completions(4, seed=2)]
    texts = {
        name: [row["completion"] for row in hftl.load(f"{tmp_path}/{name}").predict(prompts)]
        for name in ("run", "whole", "llama")
    }
    assert texts["run"] == texts["whole"] != texts["llama"]


@pytest.mark.parametrize(
    ("outputs", "batch", "expected"),
    [
        ({"logits": torch.arange(6.0).view(2, 3)}, {}, [[0, 1, 2], [3, 4, 5]]),
        ({"logits": torch.arange(8.0).view(2, 2, 2)}, {"attention_mask": torch.tensor([[1, 0], [1, 1]])},
         [[0, 1], [4, 5], [6, 7]]),
        ({"logits": torch.arange(4.0).view(1, 2, 1, 2)}, {}, [[0, 2], [1, 3]]),
        ({"start_logits": torch.tensor([[1.0, 2]]), "end_logits": torch.tensor([[3.0, 4]])},
         {"attention_mask": torch.tensor([[1, 0]])}, [[1, 3]]),
    ],
)  # fmt: skip
def test_every_kind_of_answer_is_compared_without_the_padding(outputs, batch, expected):
    assert _list_logits(outputs, batch).tolist() == expected


def test_a_merge_that_changes_the_network_is_refused_and_leaves_nothing(train, tmp_path):
    with pytest.raises(UserError, match="is another one, so nothing was written. 5 answers to real rows"):
        merge_run(train("peft"), tmp_path / "whole", tolerance=0.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mode", "more", "message"),
    [
        ("full", (), "holds a whole network .mode full.: there is nothing to merge"),
        ("peft", ("--adapter", "prompt"), "Prompt Tuning puts virtual tokens"),
    ],
)
def test_runs_without_anything_to_merge_are_refused(train, tmp_path, mode, more, message):
    with pytest.raises(UserError, match=message):
        merge_run(train(mode, *more), tmp_path / "whole")


def test_wrong_folders_are_refused(train, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="full exists already. Name a new folder"):
        merge_run(train("peft"), tmp_path / "full")
    assert cli.main(["merge", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "nothing is not a run folder: it has no run.json" in capsys.readouterr().err
    assert cli.main(["merge", str(tmp_path), str(tmp_path / "out"), "--tolerence", "1"]) == 2
    assert "Did you mean '--tolerance'" in capsys.readouterr().err
