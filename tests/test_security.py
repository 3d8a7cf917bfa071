"""SECURITY.md, claim by claim: what a file that somebody else made cannot do, and where a token never ends up."""

import ast
import csv
import json
import os
import pickle
import re
import shutil
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFile
from safetensors.torch import load_file

from hftl import cli
from hftl.records import redact
from hftl.yaml_file import read_yaml
from tests import tiny
from tests.faults.test_damaged_checkpoints import commit_again

ROOT = Path(__file__).parents[1]
TREES = {path: ast.parse(path.read_text()) for folder in ("hftl", "recipes") for path in (ROOT / folder).rglob("*.py")}
TOKEN = "hf_" + "QqZzToKeN" * 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def train(files, capfd):
    """Words -> exit code and everything that was printed."""

    def start(*words, **defaults):
        defaults = {
            "train_file": files / "train.csv",
            "model_name_or_path": files / "bert",
            "output_dir": "out",
        } | defaults
        words = [str(word) for name, value in defaults.items() if value for word in (f"--{name}", value)] + [
            *map(str, words)
        ]
        code = cli.main(["train", "--mode", "full", "--head_init", "random", "--max_steps", "2", *words])
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return start


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (os.system, (f"touch {Path('executed').absolute()}",))


def was_executed():
    return Path("executed").exists()


def test_the_payload_of_these_tests_works():
    pickle.loads(pickle.dumps(Payload()))
    assert was_executed()


# Code


def _calls(name):
    return [
        (path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    ]


def _keywords(node):
    return {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_nothing_allows_code_of_a_repository():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in (
                "trust_remote_code",
                "allow_all_kernels",
                "weights_only",
            ):
                assert ast.unparse(node.value) == str(node.arg == "weights_only"), f"{path}:{node.value.lineno}"
    loaders = [node for _, node in _calls("from_pretrained") if "Auto" in ast.unparse(node.func)]
    assert len(loaders) >= 4
    local = "**source"  # two conversions of a package's files, checked by sha256
    assert [
        ast.unparse(n) for n in loaders if "trust_remote_code" not in _keywords(n) and local not in ast.unparse(n)
    ] == []


def test_nothing_reads_pickles():
    imported = {
        alias.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert [
        str(path) for path, node in _calls("load") if ast.unparse(node.func) == "torch.load" and not _keywords(node)
    ] == []
    assert {_keywords(node)["allow_pickle"] for _, node in _calls("load") if "allow_pickle" in _keywords(node)} == {
        "False"
    }
    weights = [
        _keywords(node) for _, node in _calls("from_pretrained") if "ignore_mismatched_sizes" in _keywords(node)
    ]
    assert weights and all(keywords["use_safetensors"] == "True" for keywords in weights)


def test_nothing_evaluates_text_or_starts_a_shell():
    for name in ("eval", "exec"):
        assert [node.lineno for _, node in _calls(name) if isinstance(node.func, ast.Name)] == []
    assert [path for path, node in _calls("run") + _calls("Popen") if "shell" in _keywords(node)] == []
    assert [path for path, node in _calls("load") if ast.unparse(node.func) == "evaluate.load"] == []


@pytest.mark.parametrize(("chosen", "found"), [(None, "0"), ("YES", "YES")])
def test_kernels_of_the_hub_are_off_unless_asked_for(monkeypatch, chosen, found):
    monkeypatch.setenv("USE_HUB_KERNELS", chosen or "")
    if chosen is None:
        monkeypatch.delenv("USE_HUB_KERNELS")
    cli.main(["trian"])
    assert os.environ["USE_HUB_KERNELS"] == found


# Checkpoints and data that hold code


@pytest.mark.parametrize("part", ["AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer"])
def test_code_in_a_checkpoint_is_never_run(train, files, part):
    folder = Path("copy")
    tiny.write_tiny_bert(folder)
    (folder / "evil.py").write_text(f"open({str(Path('executed').absolute())!r}, 'w')\nclass Evil: pass\n")
    name = "tokenizer_config.json" if part == "AutoTokenizer" else "config.json"
    content = json.loads((folder / name).read_text())
    content["auto_map"] = {part: ["evil.Evil", "evil.Evil"] if part == "AutoTokenizer" else "evil.Evil"}
    (folder / name).write_text(json.dumps(content))

    code, output = train(model_name_or_path=folder)

    assert code in (0, 2) and "Traceback" not in output  # a type that transformers knows is loaded by its own class
    assert not was_executed()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_not_read(train, name):
    tiny.write_tiny_bert("copy")
    Path("copy/model.safetensors").unlink()
    Path("copy", name).write_bytes(pickle.dumps(Payload()))

    code, output = train(model_name_or_path="copy")

    assert code == 2 and "Traceback" not in output
    assert name != "pytorch_model.bin" or "convert them once, with `save_pretrained`" in output
    assert not was_executed()


@pytest.fixture(scope="module")
def adapter(files, tmp_path_factory):
    """A run of an adapter with a checkpoint, whose weights are a pickle."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    words = ["--mode", "peft", "--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert"]
    words += ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(folder)]
    assert cli.main(["train", *words]) == 0
    for place in (folder, folder / "checkpoint-1", folder / "checkpoint-2"):
        torch.save(load_file(place / "adapter_model.safetensors"), place / "adapter_model.bin")
        (place / "adapter_model.safetensors").unlink()
        if place != folder:
            commit_again(place)
    return folder


VERBS = {
    "predict": ["predict", "RUN", "FILES/test.csv"],
    "predict of a checkpoint": ["predict", "RUN/checkpoint-1", "FILES/test.csv"],
    "evaluate": ["evaluate", "RUN", "FILES/test.csv"],
    "export": ["export", "RUN", "onnx"],
    "merge": ["merge", "RUN", "merged"],
    "push": ["push", "RUN", "--repo_id", "org/x", "--dry_run"],
    "push with its base": ["push", "RUN", "--repo_id", "org/x", "--dry_run", "--include_base"],
    "push merged": ["push", "RUN", "--repo_id", "org/x", "--dry_run", "--merge"],
    "train from it": ["train", "--mode", "full", "--train_file", "FILES/train.csv", "--model_name_or_path", "RUN"],
    "resume": [
        "train",
        "RUN/config.yaml",
        "--output_dir",
        "RUN",
        "--resume_from_checkpoint",
        "true",
        "--max_steps",
        "3",
    ],
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_pickled_weights_of_an_adapter_are_never_read(verb, adapter, files, capsys, monkeypatch):
    """They are harmless weights here, which would load: what counts is that nothing opens them."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    words = [word.replace("RUN", str(adapter)).replace("FILES", str(files)) for word in VERBS[verb]]
    code = cli.main(words)
    output = capsys.readouterr()
    assert code == (5 if verb in ("push", "push with its base") else 2), output.err
    assert "adapter_model.bin" in output.err or verb == "train from it"
    assert "Traceback" not in output.err


def test_a_pickle_under_the_name_of_an_adapters_safetensors_is_refused(adapter, files, capsys, tmp_path):
    run = Path(shutil.copytree(adapter, tmp_path / "copy"))
    (run / "adapter_model.safetensors").write_bytes(pickle.dumps(Payload()))
    for words in (["predict", str(run), f"{files}/test.csv"], ["merge", str(run), "merged"]):
        assert cli.main(words) == 2 and "Traceback" not in capsys.readouterr().err
    assert not was_executed()


@pytest.mark.parametrize("is_listed", [False, True])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_of_a_run_is_not_run_on_resume(train, name, is_listed):
    """Listed in the manifest it is read, as of a checkpoint that somebody hands over; otherwise it is passed over."""
    saving = ["--save_strategy", "steps", "--save_steps", "1"]
    assert train(*saving)[0] == 0
    for checkpoint in Path("out").glob("checkpoint-*"):
        torch.save({"state": Payload()}, checkpoint / name)
        if is_listed:
            commit_again(checkpoint)

    try:
        code, _ = train(*saving, "--resume_from_checkpoint", "true", "--max_steps", "3", "--allow_change", "true")
        assert not is_listed or (code == 0 and name == "training_args.bin")  # which nothing reads
    except (pickle.UnpicklingError, RuntimeError) as error:  # refused by torch
        assert is_listed and "weights_only" in str(error).lower()

    assert not was_executed()


@pytest.mark.parametrize("name", ["train.pkl", "train.pt", "train.npy", "train.csv", "train.parquet", "train.json"])
def test_a_pickled_data_set_is_refused(train, name):
    Path(name).write_bytes(pickle.dumps(Payload()))
    code, output = train(train_file=name)
    assert code == 2 and output.startswith("hftl: ")
    assert not was_executed()


def test_a_folder_of_pickles_holds_no_data(train):
    Path("data").mkdir()
    Path("data/train.pkl").write_bytes(pickle.dumps(Payload()))
    assert train("--dataset", "data", train_file=None)[0] == 2
    assert not was_executed()


# YAML


def _yaml_error(text):
    Path("a.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        read_yaml(Path("a.yaml"))
    return str(error.value)


def test_a_yaml_bomb_is_refused_before_it_expands():
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    assert "The reference *a0 in line 2 is not read; write out the value" in _yaml_error(bomb)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch executed']", "not valid YAML"),
        ("a: !!python/name:os.system ''", "not valid YAML"),
        ("a: " + "[" * 5000, "nested too deeply|not valid YAML"),
        ("? [a, b]\n: c", "The key in line 1 is a sequence; expected a word"),
        ("a: !!int x", "not valid YAML"),
        ("a: 1\na: 2", "given twice"),
        ("- a", "must hold `key: value` lines"),
        ("x" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_yaml_that_is_no_configuration_is_one_sentence(text, message):
    assert re.search(message, _yaml_error(text))
    assert not was_executed()


# Paths


def write_image(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def train_images(train, tmp_path):
    tiny.write_tiny_vit(tmp_path / "vit")

    def start(*words, **defaults):
        options = {"model_name_or_path": tmp_path / "vit", "train_file": None, "task": "image-classification"}
        return train(*words, **options | defaults)

    return start


def test_a_table_cannot_name_images_above_its_folder(train_images):
    write_image("secret.png")
    Path("data").mkdir()
    Path("data/train.csv").write_text("image,label\n../secret.png,a\nx.png,b\n")
    code, output = train_images(train_file="data/train.csv")
    assert code == 2
    assert "The image path '../secret.png' leads out of the folder of its table" in output


def test_an_image_that_is_a_pipe_or_an_address_is_not_opened(train_images):
    tiny.write_image_folder("images", 4)
    os.mkfifo("images/red/pipe.png")
    code, output = train_images("--dataset", "images")
    assert (code, "1 x unreadable file" in output) == (2, True)

    rows = {"image": [{"bytes": None, "path": "https://127.0.0.1:9/x.png"}] * 4, "label": ["a", "b"] * 2}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict(rows, features=features).with_format("arrow")[:]
    pq.write_table(table.cast(features.arrow_schema), "addresses.parquet")
    code, output = train_images(train_file="addresses.parquet")
    assert (code, "is an address, and nothing is fetched" in output) == (2, True)


@pytest.mark.parametrize("layout", ["saved", "saved/train"])
def test_a_saved_data_set_cannot_name_files_outside(train, layout):
    rows = datasets.Dataset.from_list(tiny.make_texts(24))
    (datasets.DatasetDict(train=rows) if "/" in layout else rows).save_to_disk("saved")
    state = json.loads(Path(layout, "state.json").read_text())
    secret = Path(layout, state["_data_files"][0]["filename"]).rename("secret.arrow").absolute()
    state["_data_files"] = [{"filename": os.path.relpath(secret, layout)}]
    Path(layout, "state.json").write_text(json.dumps(state))
    code, output = train("--dataset", "saved", train_file=None)
    assert code == 2 and "which is not beside it" in output


def test_a_symbolic_link_to_what_is_no_image_shows_nothing_of_it(train_images):
    tiny.write_image_folder("images", 4)
    Path("secret.txt").write_text("the secret of the house")
    Path("images/red/link.png").symlink_to(Path("secret.txt").absolute())
    code, output = train_images("--dataset", "images")
    assert code == 2 and "1 x corrupt image" in output and "secret of" not in output


@pytest.mark.parametrize("name", ["bundled:../../etc", "bundled:/etc/passwd", "bundled:.."])
def test_a_bundled_name_is_a_name_and_no_path(train, name):
    assert "Unknown bundled data set" in train("--dataset", name, train_file=None)[1]
    assert "Unknown bundled checkpoint" in train(model_name_or_path=name)[1]


@pytest.mark.parametrize("key", ["vocab_file", "tokenizer_file", "merges_file", "chat_template_file"])
def test_a_tokenizer_cannot_carry_other_files_into_the_run_folder(train, key):
    Path(".env").write_text("SECRET=the-secret-of-the-house\n")
    tiny.write_tiny_bert("copy")
    config = json.loads(Path("copy/tokenizer_config.json").read_text()) | {key: "../.env"}
    Path("copy/tokenizer_config.json").write_text(json.dumps(config))
    code, output = train(model_name_or_path="copy")
    assert code in (0, 2) and "the-secret-of-the-house" not in output
    assert not [path for path in Path("out").rglob("*") if path.is_file() and b"the-secret-of" in path.read_bytes()]


# Sizes


def _claim_png(width, height):
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_decompression_bomb_is_an_error_that_names_the_row(train_images, side):
    """10,000 x 10,000 is where Pillow only warns, 30,000 x 30,000 where it refuses."""
    tiny.write_image_folder("images", 4)
    Path("images/red/2.png").write_bytes(_claim_png(side, side))
    code, output = train_images("--dataset", "images")
    assert code == 2
    assert re.search(r"1 x image with too many pixels \(row_id 10 .*red/2.png\)", output)


def test_pillow_keeps_its_limits():
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_field_past_the_limit_of_pythons_csv_is_a_long_text(train):
    rows = [(row["text"], row["label"]) for row in tiny.make_texts(24)]
    with Path("big.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows, ("a cat " * 60_000, "animal")])
    code, output = train(train_file="big.csv")
    assert code == 0, output


def test_a_quote_that_never_ends_is_an_error(train):
    Path("open.csv").write_text('text,label\na cat,animal\n"a run,motion\n' + "x,y\n" * 100_000)
    code, output = train(train_file="open.csv")
    assert code == 2 and output.startswith("hftl: ") and len(output) < 2000


# Tokens


def test_a_token_is_in_nothing_that_a_run_writes_or_prints(train, files, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "login"))
    (tmp_path / "login").write_text(TOKEN)
    caplog.set_level("DEBUG")
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--test_file", files / "test.csv"]

    code, output = train(*saving, "--run_name", f"try-{TOKEN}")

    assert code == 0, output
    written = [path for folder in (Path("."), tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    assert {"run.json", "config.yaml", "predictions.parquet", "model.safetensors"} <= {path.name for path in written}
    assert [str(path) for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in output and TOKEN not in caplog.text


def test_a_token_in_an_error_is_taken_out(train, monkeypatch):
    code, output = train(model_name_or_path=f"./{TOKEN}")
    assert code == 2 and TOKEN not in output and "hf_[redacted]" in output
    monkeypatch.setenv("HF_TOKEN", "secret-of-another-form")
    code, output = train(model_name_or_path="./secret-of-another-form")
    assert code == 2 and "secret-of-another" not in output


TOKENS = (
    *("hf_" + "aB3" * 12, "hf_oauth_" + "aB-3_" * 8, "hf_oauth_eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIx.sig-na_ture"),
    *("hf_jwt_eyJhbGciOiJIUzI1NiJ9.e30.abc", "api_org_" + "aB3" * 12),
)


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("text", ["{}", "say {}.", '{{"a": "{}"}}', "https://x/?token={}&b=1", "({})", "{}\nb"])
def test_every_kind_of_token_is_taken_out_of_texts_and_nothing_else_is(token, text):
    found = redact(text.format(token))
    assert re.search(r"(hf_|hf_oauth_|hf_jwt_|api_org_)\[redacted\]", found)
    assert token[9:] not in found and len(found) == len(text.format("")) + len(re.search(r"\w+\[redacted\]", found)[0])


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_of_any_kind_is_in_nothing_that_a_run_writes(train, files, token):
    code, output = train("--run_name", f"try-{token}", "--save_strategy", "steps", "--save_steps", "1")
    assert code == 0, output
    written = [path for path in Path("out").rglob("*") if path.is_file()]
    assert len(written) > 10 and [str(path) for path in written if token.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("text", ["s3://{}@bucket/x.csv", "https://{}@host:8000/a", "got postgres://{}@h, and"])
def test_a_password_in_an_address_is_taken_out(text):
    assert redact(text.format("user:secret")) == text.format("[redacted]")


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download",
        "hf_oauth_client_id",
        "api_org_name",
        "https://host:80/a@b",
        "a:b@c",
        "hf_jwt_",
        "12:30 x@y.z",
    ],
)
def test_words_that_are_no_secret_stay(text):
    assert redact(text) == text


@pytest.mark.parametrize("value", ["", "short", "   "])
def test_a_short_value_is_no_token_and_takes_nothing_out(monkeypatch, value):
    monkeypatch.setenv("HF_TOKEN", value)
    assert redact("short words   stay") == "short words   stay"


def test_a_token_is_not_taken_as_a_flag_or_in_a_configuration(train):
    code, output = train("--hub_token", TOKEN)
    assert code == 2 and TOKEN not in output and "HF_TOKEN instead" in output
    Path("run.yaml").write_text(f"mode: full\nhub_token: {TOKEN}\ntrain_file: x.csv\n")
    assert cli.main(["train", "run.yaml"]) == 2
    assert not Path("out").exists()


def test_no_tracker_is_told_unless_asked_for(train):
    assert train()[0] == 0
    assert json.loads(Path("out/run.json").read_text())["config"].get("report_to") is None
    from hftl.config import parse_args

    assert parse_args(["--mode", "full", "--output_dir", "x"]).training.report_to == []
