"""`hftl audit`, and the audit before each run: what is said, what is written, what is dropped."""

import json
from pathlib import Path

import pytest

from hftl import cli
from hftl.preview.audit import _count
from hftl.run_record import RunRecord
from tests import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))


def write_leaky(files):
    """Train, with a column of authors, and a test set that holds its first row."""
    lines = (files / "train.csv").read_text().splitlines()
    authors = ["author", *(f"p{index % 6}" for index in range(len(lines) - 1))]
    Path("train.csv").write_text("\n".join(f"{line},{name}" for line, name in zip(lines, authors, strict=True)))
    test = [*(files / "test.csv").read_text().splitlines(), lines[1]]
    names = ["author", *(f"q{index}" for index in range(len(test) - 2)), "p0"]
    Path("test.csv").write_text("\n".join(f"{line},{name}" for line, name in zip(test, names, strict=True)))
    return ["--train_file", "train.csv", "--test_file", "test.csv", "--text_columns", "text"]


def test_the_report_is_a_table_and_a_file(files, capsys):
    words = write_leaky(files)
    assert cli.main(["audit", *words, "--group_column", "author", "--output_file", "out/audit.json"]) == 0
    output = capsys.readouterr().out
    report = json.loads(Path("out/audit.json").read_text())
    found = {finding["kind"]: finding for finding in report["findings"]}
    assert found["duplicates_across_splits"]["counts"] == {"test": 1}
    assert found["duplicates_across_splits"]["examples"] == ["test 9 ~ train 0"]
    assert found["group_leakage"]["counts"] == {"test": 1}  # none in validation, which is held out by groups
    assert report["num_rows"]["test"] == 10
    lines = output.splitlines()
    assert lines[0].startswith("train.csv: train 20, validation 4, test 10 rows, checked in ")
    assert lines[2].startswith("warn  duplicates_across_splits  test 1 of 10 (10 %)")
    assert "test 9 ~ train 0" in output and "--audit duplicates_across_splits=drop" in output.replace("\n      ", " ")
    assert all(len(line) <= 140 for line in lines)
    assert "small_test_set" in output


def test_an_error_policy_is_exit_code_2_after_the_whole_report(files, capsys):
    words = write_leaky(files)
    assert cli.main(["audit", *words, "--audit", "duplicates_across_splits=error"]) == 2
    captured = capsys.readouterr()
    assert "error  duplicates_across_splits" in captured.out and "small_test_set" in captured.out
    assert captured.err == "hftl: A run on these data would be refused for: duplicates_across_splits.\n"


def test_bad_rows_are_in_the_report_with_their_ids(files, capsys):
    words = write_leaky(files)
    with Path("train.csv").open("a") as file:
        file.write("\n ,animal,p1\n")
    assert cli.main(["audit", *words]) == 2
    assert "bad_rows" in (output := capsys.readouterr().out) and "train 24: empty text" in output
    assert cli.main(["audit", *words, "--on_bad_rows", "skip"]) == 0


def test_cut_texts_need_a_tokenizer(files, capsys):
    words = [*write_leaky(files), "--max_length", "5"]
    assert cli.main(["audit", *words]) == 0
    assert "truncated_texts" not in capsys.readouterr().out
    assert cli.main(["audit", *words, "--model_name_or_path", str(files / "bert")]) == 0
    assert "warn  truncated_texts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name the data as for `hftl train`"),
        (["--dataset", "bundled:wordnett"], "Did you mean 'wordnet'"),
        (["--datset", "x"], "Unknown flag '--datset'. Did you mean '--dataset'"),
        (["--train_file", "train.csv", "--output_file"], "--output_file needs a file"),
        (["--train_file", "train.csv", "--text_columns", "text", "--group_column", "autor"], "Did you mean 'author'"),
        (
            ["--train_file", "train.csv", "--text_columns", "text", "--audit", "leaks=drop"],
            "Unknown finding in --audit",
        ),
    ],
)
def test_a_mistake_is_one_sentence(files, capsys, words, message):
    write_leaky(files)
    assert cli.main(["audit", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_records_what_it_found_and_drops_what_it_is_told_to(files, capsys):
    words = [*write_leaky(files), "--mode", "full", "--head_init", "random", "--max_steps", "1", "--max_length", "5"]
    words += ["--model_name_or_path", str(files / "bert"), "--validation_fraction", "0.25"]
    flags = ["--group_column", "author", "--audit", "duplicates_across_splits=drop", "--output_dir", "out"]
    assert cli.main(["train", *words, *flags]) == 0, capsys.readouterr().err
    data = RunRecord.read("out").data
    found = {finding["kind"]: finding for finding in data["audit"]["findings"]}
    assert (found["duplicates_across_splits"]["policy"], found["duplicates_across_splits"]["num_dropped"]) == (
        "drop",
        1,
    )
    assert data["audit"]["num_duplicates"]["test"] == 0
    assert data["num_train_examples"] + data["num_validation_examples"] == 23 and data["num_test_examples"] == 10
    assert found["truncated_texts"]["counts"]["train"] == data["tokens"]["train"]["num_cut"] > 0
    assert found["group_leakage"]["policy"] == "warn"
    assert cli.main(["train", "out/config.yaml", "--output_dir", "again"]) == 0
    assert RunRecord.read("again").data["audit"]["findings"] == data["audit"]["findings"]


def test_a_run_is_refused_where_cut_texts_are_an_error(files, capsys):
    words = [*write_leaky(files), "--mode", "full", "--max_steps", "1", "--max_length", "5", "--output_dir", "out"]
    words += ["--model_name_or_path", str(files / "bert"), "--audit", "truncated_texts=error"]
    assert cli.main(["train", *words]) == 2
    assert "refused by --audit. truncated_texts" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("count", "total", "shown"),
    [(180, 180, "100"), (999, 1000, "100"), (99, 100, "99"), (1, 192, "0.52"), (1, 3, "33")],
)
def test_shares_are_written_without_an_exponent(count, total, shown):
    finding = {"kind": "small_test_set", "counts": {"test": count}}
    assert _count(finding, {"test": total}) == f"test {count:,} of {total:,} ({shown} %)"
