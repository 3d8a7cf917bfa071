"""The gate: a good run of each kind passes, and each of the planted faults is named.

Most faults are planted before the digests are taken, as if the run itself had saved them so: else the digest of the
file would be all that each test sees.
"""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from hftl.errors import PublishError, UserError
from hftl.hub.canary import CANARY_FILE
from hftl.hub.files import check_digests, record_files
from hftl.hub.gate import blocked, check_statically, choose_tolerance, name_problems, run_jobs, write_job
from hftl.hub.snippets import write_snippet
from hftl.hub.stage import Base, Staged, check_repo_id, read_run, stage
from hftl.run_record import RunRecord
from tests import tiny
from tests.hub.conftest import KINDS

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft's hints
]


def edit_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(path: Path, change) -> None:
    tensors = change(dict(load_file(path)))
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})


def record_again(run: Path) -> None:
    """As if the run had saved its files as they are now."""
    record = RunRecord.read(run)
    record.files = record_files(run)
    record.write(run)


def prepare(run: Path, work: Path) -> Staged:
    """What a push of the run would send; adapters go with their base, which is local in all of these tests."""
    work.mkdir()
    is_adapter = (run / "adapter_config.json").is_file()
    return stage(run, read_run(run), ("me/x", ""), work, merge=False, include_base=is_adapter)


# What is seen without loading anything


def truncate(run):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def flip_a_bit(run):
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (run / "model.safetensors").write_bytes(content)


def lose_the_tokenizer(run):
    (run / "tokenizer.json").unlink()


SINCE_SAVED = {
    "truncated file": (truncate, "file truncated: model.safetensors has 5,000 of 94,180 bytes"),
    "one bit flipped": (flip_a_bit, "file changed: model.safetensors has another sha256"),
    "file missing": (lose_the_tokenizer, "file missing: tokenizer.json"),
    "file added": (lambda run: (run / "vocab.txt").touch(), "stray file: vocab.txt came after the run"),
}


@pytest.mark.parametrize("fault", SINCE_SAVED)
def test_what_happened_to_a_file_since_the_run_is_named(fault, copy_run, tmp_path):
    plant, message = SINCE_SAVED[fault]
    run = copy_run("text-full")
    plant(run)
    assert any(str(problem).startswith(message) for problem in check_statically(prepare(run, tmp_path / "work")))


def write_pickle(run):
    torch.save({}, run / "pytorch_model.bin")


def put_pickle_under_another_name(run):
    torch.save({"a": torch.ones(2)}, run / "model.safetensors")


def write_second_adapter(run):
    (run / "second").mkdir()
    (run / "second" / "adapter_config.json").write_text("{}")


def add_whole_weights(run):
    save_file({"a": torch.ones(2)}, run / "model.safetensors")


def write_token_in_readme(run):
    (run / "README.md").write_text("hf auth login --token hf_" + "a" * 34)


def write_token_in_config(run):
    edit_json(run / "tokenizer_config.json", token="hf_" + "b" * 34)


def write_login_token(run):
    edit_json(run / "config.json", secret="a-token-of-another-form")


def permute_labels(run):
    edit_json(run / "config.json", id2label={"0": "motion", "1": "animal", "2": "weather"})


def permute_label2id(run):
    edit_json(run / "config.json", label2id={"motion": 0, "animal": 1, "weather": 2})


def write_nan(run):
    def change(tensors):
        tensors["classifier.weight"][0, 0] = float("nan")
        return tensors

    edit_weights(run / "model.safetensors", change)


def change_dtype(run):
    edit_weights(run / "model.safetensors", lambda tensors: {name: value.half() for name, value in tensors.items()})


def break_json(run):
    (run / "config.json").write_text('{"id2label"')


STATIC = {
    "pickle inside": ("text-full", write_pickle, "pickle: pytorch_model.bin"),
    "pickle under another name": ("text-full", put_pickle_under_another_name, "weights unreadable: model.safetensors"),
    ".env in the folder": ("text-full", lambda run: (run / ".env").write_text("A=1"), "stray file: the file .env"),
    "stray folder": ("text-full", lambda run: (run / "notes").mkdir(), "stray file: the folder notes"),
    "two adapters": ("text-peft", write_second_adapter, "two adapters: second/"),
    "whole weights beside an adapter": ("text-peft", add_whole_weights, "two models: "),
    "token in README": ("text-peft", write_token_in_readme, "token: README.md"),
    "token in a configuration": ("text-full", write_token_in_config, "token: tokenizer_config.json"),
    "token of the login": ("text-full", write_login_token, "token: config.json"),
    "absolute path": (
        "text-full",
        lambda run: edit_json(run / "tokenizer_config.json", vocab_file="/home/me/vocab.txt"),
        "absolute path: tokenizer_config.json holds /home/me/vocab.txt",
    ),
    "label map permuted": ("text-full", permute_labels, "label map: config.json has ['motion'"),
    "label2id permuted": ("text-full", permute_label2id, "label map: label2id"),
    "NaN weights": ("text-full", write_nan, "NaN weights: model.safetensors: classifier.weight"),
    "dtype changed": ("text-full", change_dtype, "dtype: model.safetensors holds float16, but the run saved float32"),
    "broken configuration": ("text-full", break_json, "configuration: config.json cannot be read"),
}


@pytest.mark.parametrize("fault", STATIC)
def test_a_fault_that_can_be_seen_without_loading_is_named(fault, copy_run, tmp_path, monkeypatch):
    kind, plant, message = STATIC[fault]
    monkeypatch.setattr("hftl.hub.files.get_token", lambda: "a-token-of-another-form")
    run = copy_run(kind)
    staged = prepare(run, tmp_path / "before")
    assert check_statically(staged) == []
    plant(run)
    record_again(run)
    problems = check_statically(prepare(run, tmp_path / "work"))
    assert any(str(problem).startswith(message) for problem in problems), problems


def test_labels_that_look_like_paths_are_no_paths(copy_run, tmp_path):
    run = copy_run("text-full")
    names = ["/m/01g317", "/m/0199g", "/m/04_sv"]
    edit_json(run / "config.json", id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    record = RunRecord.read(run)
    record.data["label_names"] = names
    record.write(run)
    record_again(run)
    assert check_statically(prepare(run, tmp_path / "work")) == []


HERE = (
    *(
        "/gpfs/alice/x",
        "/nfs/alice",
        "~/alice/x",
        "~alice",
        r"\\\\server\\alice\\x",
        r"C:\\Users\\alice",
        "D:/alice/x",
    ),
    *("s3://bucket/alice/x", "file:///home/alice/x", "../alice/x", "alice/my data/x", "/lustre/alice smith/x"),
    "https://alice:password@example.org/x",
)


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_path_of_any_machine_in_a_configuration_is_named(path, name, copy_run, tmp_path):
    run = copy_run("text-full")
    edit_json(run / name, some={"nested": [{"file": path}]})
    record_again(run)
    problems = [str(problem) for problem in check_statically(prepare(run, tmp_path / "work"))]
    assert problems == [f"absolute path: {name} holds {path}, which is of this machine"]


def test_a_path_in_a_chat_template_is_named(copy_run, tmp_path):
    run = copy_run("chat-peft")
    template = run / "chat_template.jinja"
    text = template.read_text()
    for number, path in enumerate(("/gpfs/alice/x.jinja", "s3://alice/x", "~alice/x")):
        template.write_text(f"{{# {path} #}}{text}")
        record_again(run)
        problems = [str(problem) for problem in check_statically(prepare(run, tmp_path / str(number)))]
        assert f"absolute path: chat_template.jinja holds {path}, which is of this machine" in problems


WORDS = {
    "additional_special_tokens": ["</s>", "[/INST]", "<|/think|>", "/no_think"],
    "stop_strings": ["</answer>", "a/b/c"],
    "chat_template": "{% if a/b %}</think> and/or https://example.org/x <tool>/x</tool>{% endif %}",
    "added_tokens_decoder": {"5": {"content": "//", "special": True}, "6": {"content": "/a/b/c"}},
    "backbone": "microsoft/resnet-50",
    "auto_map": {"AutoConfig": "org/name--configuration.Config"},
    "license_url": "https://example.org/licence",
    "problem": "a sentence, with 1 to 2 signs: all of it is text.",
    "target_modules": r".*\.layers\.\d+\.(q|v)_proj",
}


@pytest.mark.parametrize("key", WORDS)
def test_words_with_a_slash_that_configurations_hold_are_no_paths(key, copy_run, tmp_path):
    run = copy_run("text-full")
    edit_json(run / "tokenizer_config.json", **{key: WORDS[key]})
    record_again(run)
    assert check_statically(prepare(run, tmp_path / "work")) == []


# An adapter and its base


@pytest.mark.parametrize("name", ["bundled:minilm-l6", "FOLDER"])
def test_an_adapter_over_a_base_of_this_machine_is_refused(name, copy_run, published_files, tmp_path):
    run = copy_run("text-peft")
    (tmp_path / "work").mkdir()
    record = read_run(run)
    record.model["name"] = name.replace("FOLDER", str(published_files / "bert"))
    staged = stage(run, record, ("me/x", ""), tmp_path / "work", merge=False, include_base=False)
    found = [str(problem) for problem in check_statically(staged) if problem.check == "base model"]
    assert len(found) == 1 and "is on this machine only" in found[0] and "--include_base" in found[0]


@pytest.mark.parametrize(
    ("base", "written", "message"),
    [
        (Base("org/bert", ""), {"revision": ""}, "no commit of org/bert is recorded"),
        (Base("org/bert", "main"), {"revision": "main"}, "no commit of org/bert is recorded"),
        (Base("org/bert", "a" * 40), {"revision": "b" * 40}, "names org/bert at bbbb"),
        (Base("org/bert", "a" * 40), {"base_model_name_or_path": "org/other"}, "names org/other at aaaa"),
    ],
)
def test_a_base_that_is_not_pinned_or_another_one_is_refused(base, written, message, copy_run, tmp_path):
    run = copy_run("text-peft")
    config = run / "adapter_config.json"
    edit_json(config, **{"base_model_name_or_path": base.name, "revision": base.revision, **written})
    record_again(run)
    (tmp_path / "work").mkdir()
    record = read_run(run)
    record.model |= {"name": base.name, "revision": base.revision, "weights": None}  # as one of the Hub has it
    staged = stage(run, record, ("me/x", ""), tmp_path / "work", merge=False, include_base=False)
    found = [str(problem) for problem in check_statically(staged)]
    assert any(message in text for text in found), found


# What only loading shows: one fresh process for all


def drop_head(run):
    edit_weights(run / "model.safetensors", lambda t: {n: v for n, v in t.items() if "classifier" not in n})


def drop_head_of_adapter(run):
    edit_weights(run / "adapter_model.safetensors", lambda t: {n: v for n, v in t.items() if "classifier" not in n})


def drop_modules_to_save(run):
    drop_head_of_adapter(run)
    edit_json(run / "adapter_config.json", modules_to_save=None, task_type=None)


def drop_batch_statistics(run):
    edit_weights(run / "model.safetensors", lambda t: {n: v for n, v in t.items() if "running_" not in n})


def take_other_tokenizer(run):
    content = (run / "tokenizer.json").read_text()
    (run / "tokenizer.json").write_text(content.replace('"cat":', '"#":').replace('"dog":', '"cat":'))


def take_other_template(run):
    (run / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE.replace("<|end|>", "<|user|>"))


def take_other_processor(run):
    edit_json(run / "preprocessor_config.json", image_mean=[0.1, 0.5, 0.5])


def take_other_size(run):
    edit_json(run / "preprocessor_config.json", size={"height": 16, "width": 16})


def take_other_architecture(run):
    def change(tensors):
        return {name.replace("bert.encoder.layer", "roberta.encoder.layer"): v for name, v in tensors.items()}

    edit_weights(run / "adapter_model.safetensors", change)


def take_other_targets(run):
    edit_json(run / "adapter_config.json", target_modules=["q_proj", "v_proj"])


def merge_blindly(run: Path, work: Path) -> Staged:
    """An adapter that was trained over rounded weights, folded into the full ones by `--merge`."""
    work.mkdir()
    return stage(run, read_run(run), ("me/x", ""), work, merge=True, include_base=False)


COMMITS = {"a" * 40: "bert", "b" * 40: "other"}  # of org/bert: the one that the adapter was tuned on, and a later one


def write_hub_cache(files: Path, cache: Path) -> None:
    """A cache with two commits of one base."""
    tiny.write_tiny_bert(cache / "other", seed=9)
    folder = cache / "models--org--bert"
    for commit, name in COMMITS.items():
        shutil.copytree({"bert": files / "bert", "other": cache / "other"}[name], folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40)


def take_base(run: Path, work: Path, commit: str) -> Staged:
    """The adapter of a run over a base of the Hub at a commit, as its files and its record say."""
    values = {"base_model_name_or_path": "org/bert", "revision": commit}
    edit_json(run / "adapter_config.json", **values)
    record = RunRecord.read(run)
    record.model |= {"name": "org/bert", "revision": commit, "weights": None}
    record.write(run)
    record_again(run)
    work.mkdir()
    staged = stage(run, read_run(run), ("me/x", ""), work, merge=False, include_base=False)
    assert check_statically(staged) == []
    return staged


def swap_answers(run):
    rows = pq.read_table(run / CANARY_FILE)
    column = rows.column_names.index("logits")
    logits = [list(reversed(row)) for row in rows["logits"].to_pylist()]
    pq.write_table(rows.set_column(column, "logits", [logits]), run / CANARY_FILE)


def claim_code_of_its_own(run):
    edit_json(run / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})


LOADED = {
    "head deleted": ("text-full", drop_head, "weights missing, which would start at random: classifier."),
    "head of an adapter deleted": ("text-peft", drop_head_of_adapter, "weights missing"),
    "modules_to_save dropped": ("text-peft", drop_modules_to_save, "weights missing, which would start at random"),
    "BatchNorm buffers missing": ("image-scratch", drop_batch_statistics, "BatchNorm statistics missing: resnet."),
    "other tokenizer": ("text-full", take_other_tokenizer, "tokenizer: row"),
    "other chat template": ("chat-peft", take_other_template, "chat template: row"),
    "wrong processor": ("image-full", take_other_processor, "image processor: row 0 has other pixel values"),
    "other image size": ("image-full", take_other_size, "image processor: row 0 becomes [3, 16, 16] pixels"),
    "adapter for another architecture": ("text-peft", take_other_architecture, "other architecture: nothing in the"),
    "adapter for other modules": ("text-peft", take_other_targets, "does not load with plain transformers and peft"),
    "other answers": ("text-scratch", swap_answers, "answers: a logit differs"),
    "code of its own": ("text-full", claim_code_of_its_own, "does not load with plain transformers and peft"),
}


@pytest.fixture(scope="module")
def loaded(make_run, published_files, tmp_path_factory):
    """Kind of a good run, or fault -> problems that a fresh process names."""
    work = tmp_path_factory.mktemp("loaded")
    cases = {kind: prepare(make_run(kind), work / kind) for kind in KINDS}
    for fault, (kind, plant, _) in LOADED.items():
        run = Path(shutil.copytree(make_run(kind), work / f"run of {fault}"))
        plant(run)
        record_again(run)
        cases[fault] = prepare(run, work / fault)
    cases["quantized base merged blindly"] = merge_blindly(make_run("text-nf4"), work / "merged")
    write_hub_cache(published_files, work / "cache")
    for commit in COMMITS:
        run = Path(shutil.copytree(make_run("text-peft"), work / f"run at {commit}"))
        cases[f"base at {commit}"] = take_base(run, work / f"base at {commit}", commit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(work / "cache"))
        jobs = [write_job(staged, work / name / "gate") for name, staged in cases.items()]
    answers = run_jobs(jobs, work)
    assert len(answers) == len(cases)
    pairs = zip(cases.items(), answers, strict=True)
    return {name: [str(one) for one in name_problems(staged, a["problems"])] for (name, staged), a in pairs}


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_run_passes(kind, loaded, make_run, tmp_path):
    assert check_statically(prepare(make_run(kind), tmp_path / "work")) == []
    assert loaded[kind] == []


@pytest.mark.parametrize("fault", LOADED)
def test_a_fault_that_only_loading_shows_is_named(fault, loaded):
    message = LOADED[fault][2]
    assert any(text.startswith(message) for text in loaded[fault]), loaded[fault]


def test_answers_of_a_merged_quantized_base_say_what_to_do(loaded):
    (text,) = loaded["quantized base merged blindly"]
    assert text.startswith("answers: a logit differs from that of the run by ")
    assert "trained over weights in nf4" in text and "leave out --merge" in text


def test_an_adapter_over_another_commit_of_its_base_gives_other_answers(loaded):
    assert loaded[f"base at {'a' * 40}"] == []
    (text,) = loaded[f"base at {'b' * 40}"]
    assert text.startswith("answers: a logit differs") and f"the base was read as org/bert at {'b' * 40}" in text


def test_a_dead_process_is_a_problem_and_no_pass(tmp_path):
    (tmp_path / "job.json").write_text("no JSON")
    (answer,) = run_jobs([tmp_path / "job.json"], tmp_path)
    assert answer["problems"][0].startswith("loading: the process that loads the files died: json.decoder")


def test_an_adapter_over_rounded_weights_is_loaded_over_rounded_weights(make_run, tmp_path):
    """With the quantization left in config.json, transformers takes the full weights of the base for rounded ones."""
    staged = prepare(make_run("text-nf4"), tmp_path / "work")
    assert "quantization_config" in json.loads((staged.run / "config.json").read_text())
    assert "quantization_config" not in json.loads((staged.folder / "config.json").read_text())
    assert staged.base.quantization["bnb_4bit_quant_type"] == "nf4"
    assert "quantization_config=BitsAndBytesConfig(load_in_4bit=True, " in write_snippet(staged)


def test_what_is_wrong_is_listed_in_one_error(copy_run, tmp_path):
    run = copy_run("text-full")
    write_pickle(run)
    permute_labels(run)
    staged = prepare(run, tmp_path / "work")
    error = blocked(staged, check_statically(staged))
    assert isinstance(error, PublishError) and error.exit_code == 5
    assert all(text in str(error) for text in ("- pickle: ", "- label map: ", "Nothing was sent."))


def test_only_coarse_runs_may_differ_by_more(make_run, tmp_path):
    staged = prepare(make_run("text-full"), tmp_path / "work")
    assert choose_tolerance(staged) == 1e-3
    coarse = replace(staged.record, config=staged.record.config | {"dtype": "bfloat16"})
    assert choose_tolerance(replace(staged, record=coarse)) == 5e-2
    elsewhere = replace(staged.record, environment={"device": "NVIDIA H100"})
    assert choose_tolerance(replace(staged, record=elsewhere)) == 5e-2
    assert choose_tolerance(replace(staged, record=coarse, is_merged=True)) == 1e-3


# What is refused before the gate


@pytest.mark.parametrize("repo_id", ["", "x", "a/b/c", "me/my model", "me/x--y", "me/.x", "datasets/me/x", "me/x.git"])
def test_an_invalid_repository_is_refused(repo_id):
    with pytest.raises(UserError, match="give ORG/NAME"):
        check_repo_id(repo_id)


def test_runs_that_cannot_be_published_are_refused(copy_run, tmp_path):
    with pytest.raises(UserError, match="is not a run folder: it has no run.json"):
        read_run(tmp_path)
    run = copy_run("text-full")
    record = RunRecord.read(run)
    for change, message in (
        ({"status": "diverged"}, "is not complete .diverged., so there is nothing to publish"),
        ({"mode": "tfidf"}, "is a run of mode tfidf, which trains no network"),
        ({"files": {}}, "has no rows and digests to check the model by; .* Train it again with `hftl train"),
    ):
        replace(record, **change).write(run)
        with pytest.raises(UserError, match=message):
            read_run(run)


def test_flags_that_do_not_fit_the_run_are_refused(make_run, tmp_path):
    full, adapter = make_run("text-full"), make_run("text-peft")
    for run, flags, message in (
        (full, {"merge": True}, "--merge is for adapters; .* holds a whole network"),
        (full, {"include_base": True}, "--include_base is for adapters"),
        (adapter, {"merge": True, "include_base": True}, "--include_base has nothing to add"),
    ):
        with pytest.raises(UserError, match=message):
            stage(run, read_run(run), ("me/x", ""), tmp_path, **{"merge": False, "include_base": False} | flags)
    record = read_run(adapter)
    record.model |= {"name": "org/base", "weights": None}
    with pytest.raises(UserError, match="org/base is on the Hub, and the adapter names it with its commit"):
        stage(adapter, record, ("me/x", ""), tmp_path, merge=False, include_base=True)


# The canary rows themselves


def test_canary_rows_hold_inputs_and_logits_and_stay_small(make_run):
    rows = pq.read_table(make_run("text-pair-regression") / CANARY_FILE).to_pylist()
    assert {"row_id", "text", "text_pair", "input_ids", "logits"} == set(rows[0]) and len(rows) == 8
    image = pq.read_table(make_run("image-full") / CANARY_FILE).to_pylist()[0]
    assert image["image"].startswith(b"\x89PNG") and image["pixel_shape"] == [3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE]
    language = pq.read_table(make_run("lm-full") / CANARY_FILE).to_pylist()[0]
    assert len(language["logits"]) == len(language["logit_ids"]) == 64
    assert all((make_run(kind) / CANARY_FILE).stat().st_size < 100_000 for kind in KINDS)


def test_canary_rows_give_the_stored_predictions(make_run):
    run = make_run("text-full")
    rows = pq.read_table(run / CANARY_FILE).to_pylist()
    stored = pq.read_table(run / "predictions.parquet").to_pylist()
    predictions = {row["row_id"]: row["prediction"] for row in stored}
    assert [int(np.argmax(row["logits"])) for row in rows] == [predictions[row["row_id"]] for row in rows]


def test_a_run_is_not_lost_when_no_canary_rows_can_be_made(published_files, tmp_path, monkeypatch, caplog):
    from hftl.config import parse_args
    from hftl.training.run import run
    from tests.hub.conftest import list_flags

    def fail(*_):
        raise RuntimeError("odd processor")

    monkeypatch.setattr("hftl.hub.canary.build_inputs", fail)
    words = [*list_flags(published_files, "text"), "--model_name_or_path", f"{published_files}/bert", "--use_cpu"]
    record = run(parse_args([*words, "--max_steps", "1", "--output_dir", str(tmp_path / "run")], mode="full"))
    assert record.status == "completed" and "cannot be pushed: odd processor" in caplog.text
    with pytest.raises(UserError, match="has no rows and digests"):
        read_run(tmp_path / "run")


def test_neither_canary_rows_nor_predictions_go_up(make_run, tmp_path):
    run = make_run("text-full")
    assert {CANARY_FILE, "predictions.parquet", "run.json", "config.yaml"} <= {path.name for path in run.iterdir()}
    names = set(prepare(run, tmp_path / "work").files)
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert check_digests(run, RunRecord.read(run).files) == []


def test_a_header_that_lies_about_its_length_is_named(copy_run, tmp_path):
    run = copy_run("text-full")
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(struct.pack("<Q", 10**9) + content[8:])
    record_again(run)
    problems = [str(problem) for problem in check_statically(prepare(run, tmp_path / "work"))]
    assert any("its header would be 1,000,000,000 bytes long" in text for text in problems)
