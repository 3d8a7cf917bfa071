"""Every adapter on every kind of network, as the table in docs/adapters.md says; and one flag trains each."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hftl.config import parse_args
from hftl.models.adapters import ADAPTERS
from hftl.run_record import RunRecord, read_predictions
from hftl.training.run import run
from tests import tiny
from tests.models.adapter_matrix import END, PAGE, START, measure, write_table


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's hints on GPT-2's layers, on ranks and on tied weights
def test_the_table_in_the_docs_is_what_comes_out(tmp_path):
    table = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0].strip()
    assert write_table(measure(tmp_path)) == table


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("adapters"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")  # AdaLoRA's own, which peft reads
@pytest.mark.parametrize(
    "adapter", ["adalora", "bitfit", "eva", "fourierft", "ln-tuning", "prefix", "prompt", "p-tuning"]
)
def test_one_flag_trains_it(adapter, files, tmp_path):
    words = ["--adapter", adapter, "--train_file", f"{files}/train.csv", "--test_file", f"{files}/test.csv"]
    words += ["--model_name_or_path", f"{files}/bert", "--output_dir", str(tmp_path / "run"), "--max_steps", "4"]
    run(parse_args([*words, "--lora_r", "4", "--num_virtual_tokens", "3", "--use_cpu"], mode="peft"))
    record = RunRecord.read(tmp_path / "run")
    assert record.status == "completed" and record.adapter == adapter
    assert record.config["learning_rate"] == (ADAPTERS[adapter].learning_rate or 5e-3)
    if adapter == "bitfit":
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    else:
        base = AutoModelForSequenceClassification.from_pretrained(files / "bert", num_labels=3)
        network = PeftModel.from_pretrained(base, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    texts = [row["text"] for row in tiny.make_texts(9, seed=1)]
    with torch.inference_mode():
        logits = network.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    stored = read_predictions(tmp_path / "run")
    torch.testing.assert_close(logits.softmax(-1).numpy(), stored["probabilities"], atol=1e-5, rtol=0)
