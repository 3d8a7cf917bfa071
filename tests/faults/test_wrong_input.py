"""What a user gets wrong ends before training: exit code 2, a message that says what to do, and nothing written."""

import errno
import io
import json
import os
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from hftl import cli
from hftl.records import RunRecord
from hftl.resuming.checkpoints import find_damage, rotate
from hftl.trainer import FineTuningTrainer
from tests import tiny

BERT_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Checkpoints and sound data that no test changes."""
    folder = tmp_path_factory.mktemp("shared")
    tiny.write_tiny_bert(folder / "bert")
    tiny.write_tiny_vit(folder / "vit")
    tiny.write_text_csv(folder / "train.csv", 24)
    tiny.write_text_csv(folder / "test.csv", 9, seed=1)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, cache):
    """Every test starts in an empty folder of its own; what is prepared or computed is kept for the session."""
    monkeypatch.setenv("HFTL_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(shared, capsys):
    """Words -> exit code and message. Data and model are sound unless the words name others."""

    def start(*words, task="text-classification"):
        model = shared / ("bert" if task == "text-classification" else "vit")
        defaults = {"--model_name_or_path": model, "--mode": "full", "--head_init": "random", "--output_dir": "out"}
        if not {"--train_file", "--dataset"} & set(words):
            defaults["--train_file"] = shared / "train.csv"
        left_open = [str(word) for flag, value in defaults.items() if flag not in words for word in (flag, value)]
        code = cli.main(["train", *map(str, words), *left_open, "--task", task, "--max_steps", "2"])
        return code, capsys.readouterr().err

    return start


@pytest.fixture
def refused(train, work):
    """Words -> the message of a run that must be refused and leave every file as it was."""

    def start(*words, **options):
        before = _read_all(work)
        code, message = train(*words, **options)
        assert code == 2, message
        assert _read_all(work) == before
        assert message.startswith("hftl: ")
        return message.removeprefix("hftl: ").strip()

    return start


def _read_all(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def _assert_says(pattern, message):
    assert re.search(pattern, message, re.DOTALL), message


def _write(name, *lines):
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def test_a_sound_command_runs(train, shared):
    """Without it, every refusal below could have another cause."""
    code, message = train("--test_file", shared / "test.csv")

    assert code == 0, message
    assert RunRecord.read("out").status == "completed"
    assert Path("out/model.safetensors").is_file()


# Data


def test_a_missing_train_file(refused):
    _assert_says(r"^There is no file absent.csv \(working folder: ", refused("--train_file", "absent.csv"))


def test_no_model_and_two_sources_of_data(refused, shared, capsys):
    both = refused("--dataset", "x", "--train_file", shared / "train.csv")

    _assert_says("Give exactly one of --dataset and --train_file; found both", both)
    assert cli.main(["train", "--mode", "full", "--train_file", str(shared / "train.csv"), "--output_dir", "out"]) == 2
    _assert_says("Give --model_name_or_path: a Hub id, a folder, or bundled:", capsys.readouterr().err)
    assert not Path("out").exists()


@pytest.mark.parametrize("flag", ["--label_column", "--text_columns"])
def test_a_missing_column_lists_those_there_are(refused, flag):
    message = refused(flag, "lable")

    assert message == f"Unknown column 'lable'. Did you mean 'label'? Valid: 'label', 'text'. Correct {flag}."


ANIMALS = ("a cat,animal", "a dog,animal", "a fur,animal")
MOTIONS = ("a run,motion", "to run,motion", "a jump,motion")
SOUND = ("text,label", *ANIMALS, *MOTIONS)


@pytest.mark.parametrize(
    ("train_rows", "test_rows", "message"),
    [
        (("text,label",), None, r"^train.csv has no rows; give a table with rows"),
        (SOUND, ("text,label",), r"^test.csv has no rows; give a table with rows"),
        (("text,label", *ANIMALS), None, r"Train has one class only \(animal\); at least two are needed"),
        (SOUND, ("text,label", "the rain,weather"), r"weather.* in test but never in train.*row_id 0"),
        (("text,label", "a cat,0.5", "a dog,1.5"), None, r"--problem_type regression"),
        ((*SOUND, ",motion", " ,motion", ",animal"), None, r"empty text \(row_id \d.*--on_bad_rows skip"),
        ((*SOUND, "a paw,"), None, r"row_id 6"),
        (("text,label", ANIMALS[0], MOTIONS[0]), None, r"too few to hold out a validation split.*--validation_file"),
        (("a,b,label", "a cat,x,0", "a run,y,1"), None, r"\('a'; 'b'\); say which with `--text_columns"),
        ((*SOUND, "a, paw,animal"), None, r"Cannot read train.csv as csv: .*Expected 2 fields in line 8, saw 3"),
    ],
    ids=["train", "test", "one class", "unseen", "float", "empty", "no label", "validation", "columns", "quotes"],
)  # fmt: skip
def test_rows_that_cannot_be_used(refused, train_rows, test_rows, message):
    words = ["--train_file", _write("train.csv", *train_rows)]
    words += ["--test_file", _write("test.csv", *test_rows)] if test_rows else []

    _assert_says(message, refused(*words))


def test_a_class_number_without_a_name(refused):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["animal", "motion"])}
    rows = datasets.Dataset.from_dict({"text": ["a cat", "a run", "a dog"], "label": [0, 1, 2]})
    datasets.Dataset(rows.data, datasets.DatasetInfo(features=datasets.Features(features))).save_to_disk("saved")

    _assert_says("label.*row_id 2", refused("--dataset", "saved"))


def test_texts_that_are_none(refused):
    rows = {"text": ["a cat", None, "a dog", "to run"], "label": ["animal", "motion", "animal", "motion"]}
    datasets.Dataset.from_dict(rows).save_to_disk("saved")

    _assert_says(r"empty text \(row_id 1\)", refused("--dataset", "saved"))


def _png():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"not an image", "corrupt image"), (_png()[:1000], "corrupt image"), (b"", "empty image file")],
    ids=["corrupt", "truncated", "empty"],
)
def test_images_that_cannot_be_read_are_named(refused, content, kind):
    path = tiny.write_image_folder("images", 4) / "red" / "2.png"
    path.write_bytes(content)

    message = refused("--dataset", "images", task="image-classification")

    _assert_says(
        rf"1 x {kind} \(row_id 10 .*red/2\.png\)\. Repair them, or drop them with `--on_bad_rows skip`", message
    )


def test_an_image_past_the_pixel_limit_of_pillow(refused, monkeypatch):
    tiny.write_image_folder("images", 4)
    Image.new("RGB", (100, 100)).save("images/red/2.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # Pillow refuses twice as many

    message = refused("--dataset", "images", task="image-classification")

    _assert_says(r"1 x image with too many pixels \(row_id 10 ", message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num_train_examples", "100"), r"--num_train_examples is 100, but train has 19 rows; ask for fewer"),
        (("--num_train_examples", "2"), r"--num_train_examples is 2, but there are 3 classes"),
        (("--num_train_examples_per_class", "9"), r"--num_train_examples_per_class is 9, but class animal has \d"),
        (("--num_validation_examples", "100"), r"--num_validation_examples is 100, but validation has 5 rows"),
    ],
)
def test_more_examples_than_there_are(refused, words, message):
    _assert_says(message, refused(*words))


# Names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "lora"), r"^Unknown mode 'lora'.*Valid: full, peft, probe, scratch"),
        (("--mode", "peft", "--adapter", "lorra"), r"^Unknown adapter 'lorra'\. Did you mean 'lora'"),
        (("--learning_rat", "1"), r"^Unknown flag '--learning_rat'\. Did you mean '--learning_rate'"),
        (("--dataset", "bundled:wordnett"), r"^Unknown bundled data set 'wordnett'\. Did you mean 'wordnet'"),
        (("--model_name_or_path", "bundled:minilm"), r"^Unknown bundled checkpoint 'minilm'\. Did you mean 'minilm"),
        (("--problem_type", "ranking"), r"--problem_type.*invalid choice: 'ranking'.*regression"),
        (("--mode", "scratch", "--config_overrides", "num_layers=1"), r"--config_overrides: .*has no 'num_layers'"),
        (("--mode", "scratch", "--config_overrides", "hidden_size=x"), r"--config_overrides: hidden_size='x'"),
        (("--config_overrides", "hidden_size=8"), r"works with --mode scratch only"),
        (("--mode", "peft", "--target_modules", "queri"), r"^Unknown target module 'queri'\. Did you mean 'query'"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_nearest(refused, words, message):
    _assert_says(message, refused(*words))


def test_an_unknown_task(refused, capsys, shared):
    words = ["train", "--mode", "full", "--task", "text-clasification", "--train_file", shared / "train.csv"]

    assert cli.main([*map(str, words), "--model_name_or_path", str(shared / "bert")]) == 2
    _assert_says("Unknown task 'text-clasification'. Did you mean 'text-classification'", capsys.readouterr().err)


def test_an_unknown_key_in_the_configuration(capsys, shared):
    _write("run.yaml", "mode: full", f"train_file: {shared / 'train.csv'}", "learning_rat: 1e-4")

    assert cli.main(["train", "run.yaml"]) == 2
    _assert_says("Unknown key in run.yaml: 'learning_rat'. Did you mean 'learning_rate'", capsys.readouterr().err)


# Checkpoints


@pytest.fixture
def copy_bert(shared):
    """A copy of the tiny BERT in the working folder."""
    return Path(shutil.copytree(shared / "bert", "copy"))


def test_a_model_folder_that_does_not_exist(refused):
    for name in ("./absent", "/absent/model", "a/b/c"):
        _assert_says(f"There is no checkpoint folder {name} .working folder: ", refused("--model_name_or_path", name))


@pytest.mark.parametrize("task", ["text-classification", "image-classification"])
@pytest.mark.parametrize("name", ["absent", "google-bert/absent-model"])
def test_a_hub_id_without_a_network(refused, name, task):
    tiny.write_image_folder("images", 4)
    data = ("--dataset", "images") if task == "image-classification" else ()

    message = refused("--model_name_or_path", name, *data, task=task)

    _assert_says(f"'{name}' is not a folder, and as a Hub id.*there is no network, or HF_HUB_OFFLINE is set", message)


def test_what_is_neither_a_folder_nor_a_hub_id(refused):
    _assert_says("'a b/c' is neither a folder here nor a public model", refused("--model_name_or_path", "a b/c"))


def test_a_network_without_a_head_for_the_task(refused, shared):
    tiny.write_image_folder("images", 4)
    images = ("--dataset", "images")
    transformers.WhisperConfig().save_pretrained("whisper")

    for model, words, task in (
        (shared / "vit", (), "text-classification"),  # it has no tokenizer either
        (Path("whisper"), (), "text-classification"),
        (shared / "bert", images, "image-classification"),
    ):
        message = refused("--model_name_or_path", model, *words, task=task)
        _assert_says(f"{model} is a {model.name} network, which has no head for {task}", message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "copy has no model.safetensors"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0", "Cannot load copy: .*header"),
        ("config.json", None, "Cannot load copy: "),
        ("config.json", b"{", "Cannot load copy: .*not a valid JSON file"),
        ("config.json", b'{"model_type": "nonesuch"}', "Cannot load copy: .*`nonesuch`"),
        (
            "config.json",
            b'{"auto_map": {"AutoConfig": "x.Y"}, "model_type": "z"}',
            "needs code of its own, which hftl",
        ),
        ("tokenizer.json", b"{", "Cannot load copy: "),
        ("tokenizer.json", None, "copy has no tokenizer files"),
    ],
)
def test_a_checkpoint_with_a_missing_or_broken_file(refused, copy_bert, name, content, message):
    assert sorted(path.name for path in copy_bert.iterdir()) == sorted(BERT_FILES)
    if content is None:
        (copy_bert / name).unlink()
    else:
        (copy_bert / name).write_bytes(content)
    if name == "tokenizer.json" and content is None:
        (copy_bert / "tokenizer_config.json").unlink()

    _assert_says(message, refused("--model_name_or_path", copy_bert))


def test_a_checkpoint_with_pickled_weights_only(refused, copy_bert):
    weights = load_file(copy_bert / "model.safetensors")
    (copy_bert / "model.safetensors").unlink()
    torch.save(weights, copy_bert / "pytorch_model.bin")

    _assert_says(r"no model.safetensors\..*can run code", refused("--model_name_or_path", copy_bert))


@pytest.fixture(scope="session")
def adapter(shared, cache, tmp_path_factory):
    """The run folder of a LoRA adapter, with a checkpoint of it."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    words = ["train", "--mode", "peft", "--train_file", shared / "train.csv", "--model_name_or_path", shared / "bert"]
    words += ["--output_dir", folder, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(cache))
        assert cli.main(list(map(str, words))) == 0
    return folder


@pytest.mark.parametrize("mode", ["full", "peft", "scratch", "probe", "knn"])
def test_an_adapter_is_not_a_network(refused, shared, adapter, mode):
    message = refused("--model_name_or_path", adapter, "--mode", mode, "--head_init", "auto")

    _assert_says(f"{adapter} is an adapter .LORA. over {shared / 'bert'}, not a network", message)
    _assert_says(f"merge it with `hftl merge {adapter} OUT` and name the result", message)
    _assert_says(f"start again from what it was trained on, name {shared / 'bert'}", message)
    _assert_says(f"--output_dir {adapter} --resume_from_checkpoint true", message)


def test_a_checkpoint_of_an_adapter_is_not_a_network_either(refused, adapter):
    message = refused("--model_name_or_path", adapter / "checkpoint-2")

    _assert_says(f"merge_and_unload.*--resume_from_checkpoint {adapter}/checkpoint-2", message)


def test_an_adapter_of_the_hub_is_not_a_network(refused, adapter, monkeypatch):
    monkeypatch.setattr(
        "hftl.models.load.find_adapter_config_file",
        lambda name, revision: str(adapter / "adapter_config.json") if name == "org/adapter" else None,
    )

    _assert_says("^org/adapter is an adapter .LORA. over", refused("--model_name_or_path", "org/adapter"))


@pytest.mark.parametrize("words", [("--mode", "full"), ("--mode", "peft", "--adapter", "bitfit")])
def test_a_run_that_left_a_whole_network_can_be_trained_further(train, words):
    code, message = train(*words, "--save_strategy", "steps", "--save_steps", "2")
    assert code == 0, message

    for source in ("out", "out/checkpoint-2"):
        code, message = train("--model_name_or_path", source, "--output_dir", f"further-{source.count('/')}")
        assert code == 0, message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lora_r", "5000"), r"The rank is 5000 .* even .*query has 32 inputs and 32 out.*Give --lora_r 32 or"),
        (("--adapter_config", '{"r": 33}'), r"The rank is 33 .*Give --lora_r 32 or less"),
        (("--target_modules", "queri"), r"^Unknown target module 'queri'\. Did you mean 'query'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_weights_are_read(refused, copy_bert, words, message):
    (copy_bert / "model.safetensors").unlink()
    (copy_bert / "tokenizer.json").unlink()

    _assert_says(message, refused("--model_name_or_path", copy_bert, "--mode", "peft", *words))


def test_weights_of_another_network(refused, copy_bert):
    save_file({"other": torch.zeros(3)}, copy_bert / "model.safetensors", metadata={"format": "pt"})
    _assert_says(r"\d+ of \d+ weights are not in the checkpoint", refused("--model_name_or_path", copy_bert))

    shutil.copy(copy_bert / "model.safetensors", "kept")
    config = json.loads((copy_bert / "config.json").read_text()) | {"hidden_size": 64}
    tiny.write_tiny_bert(copy_bert)
    (copy_bert / "config.json").write_text(json.dumps(config))
    _assert_says("has another shape here", refused("--model_name_or_path", copy_bert))


def test_a_checkpoint_with_weights_that_are_not_finite(refused, copy_bert):
    weights = load_file(copy_bert / "model.safetensors")
    save_file({key: value * float("nan") for key, value in weights.items()}, copy_bert / "model.safetensors")

    message = refused("--model_name_or_path", copy_bert, "--mode", "probe", "--head_init", "probe")

    _assert_says("features are not finite", message)


def test_texts_longer_than_the_model_reads(refused):
    _assert_says("--max_length is 64, but .*bert reads at most 32 tokens", refused("--max_length", "64"))


# The output folder and the disk


@pytest.mark.parametrize("name", ["run.json", "model.safetensors", "notes.txt"])
def test_an_output_folder_that_holds_another_run(refused, name):
    Path("out").mkdir()
    _write(f"out/{name}", "of another run")

    _assert_says("^out already holds files. Give a new --output_dir, or --resume_from", refused())


def test_an_output_folder_that_is_a_file(refused):
    _assert_says("--output_dir notes is a file", refused("--output_dir", _write("notes", "mine")))


@pytest.mark.parametrize("value", ["true", "checkpoint-7"])
def test_resuming_without_a_checkpoint(refused, value):
    _assert_says("There is no checkpoint in out to resume from", refused("--resume_from_checkpoint", value))
    Path("out").mkdir()
    _assert_says("There is no checkpoint in out to resume from", refused("--resume_from_checkpoint", value))


def test_no_room_on_the_disk(refused, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    _assert_says(r"The checkpoints need about .* GB in out, and 0\.0 GB are free", refused())


# What goes wrong later


def test_a_run_that_diverges_ends_with_code_3_and_leaves_no_model(train):
    code, message = train("--learning_rate", "1e30", "--warmup_steps", "0")

    assert code == 3
    _assert_says(r"The loss or its gradient is not finite at step \d of 2.*Lower --learning_rate", message)
    record = RunRecord.read("out")
    assert record.status == "diverged"
    assert "The loss or its gradient is not finite" in record.error
    assert sorted(os.listdir("out")) == ["config.yaml", "run.json"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "Out of memory: .*--auto_batch.*--gradient_ch.*peft.*nf4",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Out of memory: .*--auto_batch"),
        (RuntimeError("unable to mmap 8906352 bytes: Cannot allocate memory (12)"), "Out of memory: .*--auto_batch"),
        (MemoryError(), "Out of memory: .*--auto_batch"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "The disk is full: .*What was saved before is intact"),
    ],
    ids=["cuda", "cpu", "mmap", "python", "disk"],
)
def test_running_out_of_memory_or_disk_ends_with_code_4(train, monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(FineTuningTrainer, "training_step", fail)

    code, found = train()

    assert code == 4
    _assert_says(message, found)
    assert RunRecord.read("out").status == "failed"
    assert sorted(os.listdir("out")) == ["config.yaml", "run.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_file_that_the_system_refuses_ends_with_code_4_and_the_checkpoint_before_is_whole(train, monkeypatch, file):
    """Really refused, in a save: safetensors passes the reason on, torch.save loses it."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def refuse(folder, *args):
        rotate(folder, *args)
        too_much = (folder / "checkpoint-1" / file).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (too_much - 1000, before[1]))

    monkeypatch.setattr("hftl.trainer.rotate", refuse)
    try:
        code, message = train("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert code == 4, message
    _assert_says("The disk is full: .*What was saved before is intact.*ulimit -f", message)
    assert RunRecord.read("out").status == "failed"
    assert sorted(os.listdir("out")) == ["checkpoint-1", "config.yaml", "run.json"]
    assert find_damage(Path("out/checkpoint-1")) is None


def test_a_disk_that_fills_up_while_the_model_is_saved_ends_with_code_4(train, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hftl.run.save_artifacts", fail)

    assert train()[0] == 4
    assert RunRecord.read("out").status == "failed"


def test_a_bug_keeps_its_traceback_and_its_record(train, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(FineTuningTrainer, "training_step", fail)

    with pytest.raises(RuntimeError, match="shapes differ"):
        train()
    record = RunRecord.read("out")
    assert (record.status, record.error) == ("failed", "RuntimeError: shapes differ")
