"""Every task that is not a label a row, in its modes: a run is complete and plain libraries give its answers.

A new task is one line of `TASK_CASES` and the function that writes its tiny data.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from peft import PeftModel

import hftl
from hftl.config import parse_args
from hftl.hub.load_check import build_inputs, compute_logits
from hftl.run_record import CANARY_FILE, RunRecord, read_predictions
from hftl.tasks import TASKS, build_task, scores_of
from hftl.training.run import run
from tests import tiny
from tests.tasks.test_semantic_segmentation import write_pairs


def write_words(folder: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        rows = tiny.make_texts(24 if split == "train" else 9, seed=seed)
        words = [row["text"].split() for row in rows]
        tags = [["B-X" if word in tiny.CLASS_WORDS[0] else "O" for word in row] for row in words]
        table = [{"tokens": row, "tags": marks} for row, marks in zip(words, tags, strict=True)]
        tiny.write_jsonl(folder / f"{split}.jsonl", table)


def write_texts(folder: Path) -> None:
    for split, count, seed in (("train", 24, 0), ("test", 9, 1)):
        rows = [{"text": row["text"]} for row in tiny.make_texts(count, seed=seed)]
        if split == "test":
            rows = [{"text": row["text"] + " [MASK]"} for row in rows]  # what is asked of a row without targets
        tiny.write_jsonl(folder / f"{split}.jsonl", rows)


def write_questions(folder: Path) -> None:
    for split, count, seed in (("train", 24, 0), ("test", 9, 1)):
        rows = []
        for row in tiny.make_texts(count, seed=seed):
            words = row["text"].split()
            answers = {"text": [words[1]], "answer_start": [len(words[0]) + 1]}
            answers = {"text": [], "answer_start": []} if len(rows) % 4 == 3 else answers
            rows.append({"question": f"what is {words[0]}", "context": row["text"], "answers": answers})
        tiny.write_jsonl(folder / f"{split}.jsonl", rows)


def write_masks(folder: Path) -> None:
    for split, count, seed in (("train", 12, 0), ("test", 6, 1)):
        write_pairs(folder / split, count, seed)
        names = [f"{folder / split}/{{}}/{number}.png" for number in range(count)]
        rows = [{"image": name.format("images"), "mask": name.format("masks")} for name in names]
        tiny.write_jsonl(folder / f"{split}.jsonl", rows)


def write_boxes(folder: Path) -> None:
    for split, count, seed in (("train", 12, 0), ("test", 6, 1)):
        write_pairs(folder / split, count, seed)
        box = {"bbox": [[4.0, 4.0, 12.0, 8.0]]}
        names = [f"{folder / split}/images/{number}.png" for number in range(count)]
        rows = [{"image": n, "objects": box | {"category": ["ab"[i % 2]]}} for i, n in enumerate(names)]
        tiny.write_jsonl(folder / f"{split}.jsonl", rows)


def write_summaries(folder: Path) -> None:
    for split, count, seed in (("train", 24, 0), ("test", 9, 1)):
        rows = [{"document": r["prompt"], "summary": r["completion"]} for r in tiny.make_completions(count, seed)]
        tiny.write_jsonl(folder / f"{split}.jsonl", rows)


def write_tiny_t5(folder: Path) -> None:
    tiny.write_tiny_llama(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": len(tokenizer)}
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **tokens)).save_pretrained(folder)


# task -> (what writes its tiny checkpoint, what writes train.jsonl and test.jsonl)
TASK_CASES = {
    "token-classification": (tiny.write_tiny_bert, write_words),
    "question-answering": (tiny.write_tiny_bert, write_questions),
    "semantic-segmentation": (tiny.write_tiny_segformer, write_masks),
    "object-detection": (tiny.write_tiny_yolos, write_boxes),
    "seq2seq": (write_tiny_t5, write_summaries),
    "masked-lm": (tiny.write_tiny_bert, write_texts),
}
MODES = [(task, mode) for task in TASK_CASES for mode in TASKS[task].modes if mode != "zero-shot"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base, done = tmp_path_factory.mktemp("tasks"), {}

    def get(task: str, mode: str) -> tuple[RunRecord, Path, Path]:
        data = base / task
        if not data.exists():
            write_checkpoint, write_data = TASK_CASES[task]
            write_checkpoint(data / "checkpoint")
            write_data(data)
        if (task, mode) not in done:
            words = ["--task", task, "--train_file", f"{data}/train.jsonl", "--test_file", f"{data}/test.jsonl"]
            words += ["--model_name_or_path", f"{data}/checkpoint", "--output_dir", f"{base}/{task}-{mode}"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HFTL_CACHE", str(base / "cache"))
                record = run(parse_args([*words, "--max_steps", "3"], mode=mode))
            done[task, mode] = record, base / f"{task}-{mode}", data
        return done[task, mode]

    return get


def test_every_task_is_here_or_in_the_contract_of_labels_and_languages():
    assert {*TASK_CASES, "text-classification", "image-classification", "causal-lm"} == set(TASKS)


@pytest.mark.parametrize("task, mode", MODES)
def test_plain_libraries_give_the_stored_answers(task, mode, runs):
    _, folder, data = runs(task, mode)
    kind = build_task(task)
    auto = getattr(transformers, kind.auto_model)
    if mode == "peft":
        config = transformers.AutoConfig.from_pretrained(folder)
        base = auto.from_pretrained(data / "checkpoint", config=config, ignore_mismatched_sizes=True)
        network = PeftModel.from_pretrained(base, folder).eval()
    else:
        network = auto.from_pretrained(folder).eval()
    processor = getattr(transformers, kind.processor_class).from_pretrained(folder)
    rows = pq.read_table(folder / CANARY_FILE).to_pylist()
    assert len(rows) == kind.num_canary_rows
    for row in rows:
        found = compute_logits(network, build_inputs(processor, row), kind.outputs, is_last=kind.is_answer_last)
        found = found if row.get("logit_ids") is None else found[row["logit_ids"]]
        np.testing.assert_allclose(found, row["logits"], atol=2e-5)


@pytest.mark.parametrize("task, mode", MODES)
def test_run_folder_is_complete_and_its_rows_add_up(task, mode, runs):
    record, folder, _ = runs(task, mode)
    assert (record.status, record.mode, set(record.metrics)) == ("completed", mode, {"validation", "test"})
    table = read_predictions(folder)
    for name, score in scores_of(record.data["problem_type"]).items():
        assert np.isfinite(record.metrics["test"][name])
        if score.by_row is not None and np.isfinite(by_row := score.by_row(table)).all():
            assert by_row.mean() == pytest.approx(record.metrics["test"][name], abs=1e-6)


@pytest.mark.parametrize("task", TASK_CASES)
def test_rows_without_targets_are_answered(task, runs):
    _, folder, data = runs(task, "full")
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    answers = hftl.load(folder).predict(rows)
    assert [answer["row_id"] for answer in answers] == list(range(len(rows)))
