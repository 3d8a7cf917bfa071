"""The model card: valid metadata with intervals, tables, licences, and nothing of this machine."""

import json
import re
from dataclasses import replace

import pytest
from huggingface_hub import HfApi, ModelCard

from hftl.errors import UserError
from hftl.hub.card import Licences, describe_licences, describe_vocabulary, read_comparison, render_card
from hftl.hub.licences import find_licence
from hftl.hub.names import name_of
from hftl.hub.seal import is_as_written, seal
from hftl.hub.stage import Base, Staged, is_local
from hftl.records import RunRecord
from hftl.tasks import build_task
from tests.hub.conftest import KINDS
from tests.hub_storage import check_card

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
KNOWN = Licences("apache-2.0", "mit")


def as_staged(run, base=None, **changes) -> Staged:
    record = replace(RunRecord.read(run), **changes)
    return Staged(record, run, "me/x", "", run, base)


@pytest.mark.parametrize("kind", KINDS)
def test_the_metadata_are_valid_and_hold_the_scores(kind, make_run):
    run = make_run(kind)
    base = Base("org/base", "a" * 40) if (run / "adapter_config.json").is_file() else None
    text = render_card(as_staged(run, base), KNOWN)
    assert check_card(text) == []  # the rules of the Hub that tuned models break
    data = ModelCard(text).data
    record = RunRecord.read(run)
    scores = {result.metric_type: result for result in data.eval_results}
    expected = {name: value for name, value in record.metrics["test"].items() if isinstance(value, float)}
    assert {name: result.metric_value for name, result in scores.items()} == pytest.approx(expected, abs=1e-6)
    (leading,) = [result for result in scores.values() if result.metric_args]
    low, high = leading.metric_args["confidence_interval"]
    assert low <= leading.metric_value <= high and leading.metric_args["confidence_level"] == 0.95
    assert (data.library_name, data.base_model) == (("peft", "org/base") if base else ("transformers", None))
    assert "hftl" in data.tags and data.pipeline_tag == build_task(record.task).pipeline_tag


@pytest.mark.parametrize("kind", ["text-full", "image-peft", "lm-peft"])
def test_no_path_of_this_machine_and_no_token_is_in_it(kind, make_run, published_files):
    staged = as_staged(make_run(kind), Base("org/base", "a" * 40))
    staged.record.config["optim"] = "hf_" + "a" * 34
    text = render_card(staged, KNOWN)
    assert str(published_files) not in text and "hf_aaa" not in text and "hf_[redacted]" in text


PATHS = (
    *("/gpfs/alice/train.csv", "/nfs/alice/train.csv", "/lustre/alice/my data/train.csv", "~alice/train.csv"),
    *("~/alice/train.csv", r"\\server\alice\train.csv", r"C:\Users\alice\train.csv", "D:/alice/train.csv"),
    *("s3://alice:password@bucket/alice/train.csv", "file:///home/alice/train.csv", "../alice/train.csv"),
    *("https://alice:password@example.org/alice/train.csv?X-Amz-Signature=abc", "hdfs://alice/x/train.csv"),
)


@pytest.mark.parametrize("path", PATHS)
def test_of_a_path_of_any_machine_only_the_name_of_the_file_is_shown(path, make_run):
    staged = as_staged(make_run("text-full"))
    staged.record.data["source"] = staged.record.model["name"] = path
    names = ("train_file", "output_dir", "pretrain_file", "run_name", "deepspeed", "label_column", "adapter_config")
    staged.record.config |= dict.fromkeys(names, path) | {"text_columns": [path], "logging_dir": path}
    text = render_card(staged, Licences())
    assert "train.csv" in text
    assert [word for word in ("alice", "password", "server", "bucket", "Signature", "hdfs") if word in text] == []
    assert check_card(text) == [] and "| `run_name` |" not in text and "| `max_steps` | `3` |" in text


@pytest.mark.parametrize("path", ["~alice", "~", "s3://alice:password@bucket", "https://alice.example.org"])
def test_a_user_or_a_host_is_no_name_of_data(path):
    assert name_of(path) == "data"


NAMES = (
    *("x\n# Heading", "x\r\n\r\n## Heading", "x\u2028# Heading", "x\x85# Heading"),
    *("<script>alert(1)</script>", "<img src=x onerror=y>", "![x](https://example.org/x.png)", "[x](javascript:y)"),
    *("x\n---\nlicense: mit\n---\n", "x`\n```\n# Heading", "a|b|c", "</td></table>", "x -->\n# Heading"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_file_or_a_label_adds_nothing_to_a_card(name, make_run):
    """Headings, HTML, keys of the metadata: there are no more of them than with a harmless name."""

    def render(name):
        staged = as_staged(make_run("text-full"))
        staged.record.data |= {"source": f"/tmp/{name}.csv", "label_names": [name, "animal", "motion"]}
        staged.record.model["name"] = f"/tmp/{name}"
        per_class = staged.record.metrics["test"]["per_class"]
        per_class[name] = per_class.pop("animal")
        staged.record.config["optim"] = name
        return render_card(staged, Licences())

    def outline(card):
        data = ModelCard(card).data.to_dict()
        lines = [line.split("|") for line in card.splitlines()]
        headings = [line for line in card.splitlines() if line.startswith(("#", "---", "```"))]
        return sorted(data), data["tags"], headings, len(lines), [len(cells) for cells in lines if cells[0] == ""]

    card, harmless = render(name), render("plain")
    assert outline(card.replace("\\|", "")) == outline(harmless)
    spans = re.sub(r"`[^`]*`", "", card.replace("\\`", ""))  # what is in a code span is shown as it is
    assert not re.search(r"<(?!!-- written by hftl)[a-z/!]", spans.partition("\n---\n")[2])
    assert not re.search(r"(?<!\\)\]\((?!https://hf)", spans)


def test_a_card_is_as_written_until_a_letter_changes(make_run):
    card = render_card(as_staged(make_run("text-full")), KNOWN)
    assert is_as_written(card) and is_as_written(card.replace("\n", "\r\n")) and is_as_written(card + "\n")
    assert not any(map(is_as_written, (card.replace("mit", "MIT", 1) + "x", card + "x", "", card[1:], card.upper())))
    assert seal(card) == card


@pytest.mark.parametrize("is_own", [True, False])
def test_a_vocabulary_that_was_made_from_private_texts_is_told(make_run, is_own):
    changes = {"config": {"tokenizer_vocab_size": 500, "mode": "scratch"}} if is_own else {}
    staged = as_staged(make_run("text-scratch"), **changes)
    assert ("words and parts of words that occur in them" in render_card(staged, KNOWN)) is is_own
    assert (describe_vocabulary(staged) is not None) is is_own


def test_a_vocabulary_is_told_of_where_the_base_made_it(make_run, tmp_path):
    first = as_staged(make_run("text-scratch"), config={"tokenizer_vocab_size": 500}).record
    first.write(tmp_path / "first")
    second = as_staged(make_run("text-full"))
    assert describe_vocabulary(second) is None
    second.record.model["name"] = str(tmp_path / "first")
    assert "made from the training texts" in describe_vocabulary(second)
    first.config = {}
    first.model["name"] = str(tmp_path / "first")  # of itself
    first.write(tmp_path / "first")
    assert describe_vocabulary(second) is None


def test_labels_scores_per_class_cost_and_versions_are_there(make_run):
    text = render_card(as_staged(make_run("text-full")), KNOWN)
    assert "Labels: `animal`, `motion`, `weather`." in text
    assert "| class | precision | recall | F1 | rows |" in text and "| animal | " in text
    assert "kWh" in text and "g of CO2, estimated" in text
    assert "| `max_steps` | `3` |" in text and "transformers 5" in text and "WARNING" not in text


def test_a_label_cannot_break_the_table(make_run):
    staged = as_staged(make_run("text-full"))
    per_class = staged.record.metrics["test"]["per_class"]
    per_class["a|b\n`c`"] = per_class.pop("animal")
    assert "| a\\|b \\`c\\` | " in render_card(staged, KNOWN)


def test_unknown_licences_are_warned_of_and_known_ones_carried_over(make_run):
    staged = as_staged(make_run("text-full"))
    text = render_card(staged, Licences())
    assert "The licence of the base model (bert) is not known" in text and "training data (train.csv)" in text
    assert ModelCard(text).data.license is None
    assert ModelCard(render_card(staged, KNOWN)).data.license == "apache-2.0"
    assert describe_licences(staged, KNOWN) == []
    scratch = as_staged(make_run("text-scratch"))
    assert ModelCard(render_card(scratch, KNOWN)).data.license is None  # it has no weights of the base
    assert "The licence of this model is not known" in describe_licences(scratch, KNOWN)[0]


def test_licences_are_found_where_they_are_written(tmp_path, monkeypatch):
    assert find_licence("bundled:minilm-l6", "model", is_offline=True) == "apache-2.0"
    assert find_licence("bundled:fashion-mnist", "dataset", is_offline=True) == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert find_licence(str(tmp_path), "model", is_offline=True) == "mit"
    assert find_licence(str(tmp_path / "train.csv"), "dataset", is_offline=True) is None
    assert find_licence("org/never-seen", "model", is_offline=True) is None


def test_the_licence_is_that_of_the_commit_and_not_of_main(hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("org/base")
    commits = [
        api.upload_file(
            repo_id="org/base", path_in_repo="README.md", path_or_fileobj=f"---\nlicense: {name}\n---\n".encode()
        ).oid
        for name in ("mit", "cc-by-nc-4.0")
    ]
    assert find_licence("org/base", "model", revision=commits[0], is_offline=False) == "mit"
    assert find_licence("org/base", "model", is_offline=False) == "cc-by-nc-4.0"


def test_names_of_the_hub_are_told_from_those_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert all(map(is_local, ("bundled:minilm-l6", "mine", "/there", "./there", "~/there")))
    assert not is_local("org/name")


def test_a_comparison_is_shown_where_one_is_named(make_run, tmp_path):
    row = {"arm": "full", "size": 64, "mean": 0.5, "low": 0.25, "high": 0.75}
    results = {
        "arms": [{"name": "full", "title": "Full fine-tuning"}, {"name": "lora", "title": None}],
        "sizes": [64, 1024],
        "seeds": [1, 2, 3],
        "summary": [row, row | {"arm": "lora", "size": 1024, "low": None}],
        "question": {"metric": "f1_macro"},
        "verdict": {"headline": "Cannot tell"},
    }
    with pytest.raises(UserError, match="has no results.json; give the folder of `hftl compare`"):
        read_comparison(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = render_card(as_staged(make_run("text-full")), KNOWN, tmp_path)
    assert "| | 64 | 1,024 |" in text and "| Full fine-tuning | 0.500 (0.250 to 0.750) |  |" in text
    assert "| lora |  | 0.500 |" in text and "Test f1 macro, mean over 3 seeds" in text and "Cannot tell." in text
