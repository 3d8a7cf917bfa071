import dataclasses
import getpass
import json
import math
import os
import socket

import numpy as np
import pytest

from hftl import run_record as records
from hftl.errors import UserError
from hftl.run_record import RunRecord
from hftl.runtime import files

RUN = {"status": "completed", "task": "text-classification", "mode": "peft", "seed": 3}


def test_a_record_reads_back_equal(tmp_path):
    record = RunRecord(
        **RUN,
        adapter="lora",
        model={"name": "bundled:x", "num_parameters": 10},
        data={"label_names": ["né", "b"]},
        metrics={"validation": {"accuracy": 0.25}},
        cost={"wall_seconds": 1.5},
    )
    record.write(tmp_path / "new" / "run")
    assert RunRecord.read(tmp_path / "new" / "run") == record


@pytest.mark.parametrize(
    ("pretrained", "seconds"),
    [
        (None, 9.0),
        ({"train_seconds": 4.0, "is_new": True}, 9.0),
        ({"train_seconds": 4.0, "is_new": False}, 5.0),
        ({"train_seconds": 4.0}, 9.0),  # before records said which
    ],
)
def test_seconds_of_a_pretraining_that_was_there_were_not_spent(pretrained, seconds):
    assert RunRecord(**RUN, model={"pretrained": pretrained}, cost={"wall_seconds": 9.0}).spent_seconds == seconds


def test_numpy_numbers_become_json_numbers(tmp_path):
    metrics = {"test": {"a": np.float32(0.5), "b": np.int64(3), "c": (np.float64(0.1),)}}
    path = RunRecord(**RUN, metrics=metrics).write(tmp_path)
    assert json.loads(path.read_text())["metrics"]["test"] == {"a": 0.5, "b": 3, "c": [0.1]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_is_written_as_null(tmp_path, value):
    path = RunRecord(**RUN, metrics={"test": {"loss": value}}).write(tmp_path)
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["metrics"]["test"] == {"loss": None}


def test_true_stays_true(tmp_path):
    path = RunRecord(**RUN, config={"bf16": True}).write(tmp_path)
    assert '"bf16": true' in path.read_text()


def test_an_object_that_json_does_not_know_is_refused_and_the_old_file_stays(tmp_path):
    RunRecord(**RUN).write(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        RunRecord(**RUN | {"seed": 4}, config={"x": object()}).write(tmp_path)
    assert RunRecord.read(tmp_path).seed == 3


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    RunRecord(**RUN).write(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        RunRecord(**RUN | {"seed": 4}).write(tmp_path)
    assert RunRecord.read(tmp_path).seed == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_content_is_on_disk_before_the_name_points_to_it(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda _: order.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    records.write_atomically(tmp_path / "file", b"content")
    assert order == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_tokens_are_never_written(tmp_path):
    token = "hf_" + "aB3" * 10
    path = RunRecord(**RUN, config={"hub_token": token}, error=f"401 with {token}!").write(tmp_path)
    assert token not in path.read_text()
    assert RunRecord.read(tmp_path).error == "401 with hf_[redacted]!"


def test_redact_leaves_other_words_alone():
    assert files.redact("hf_datasets and hf_" + "x" * 19) == "hf_datasets and hf_" + "x" * 19


def test_an_unknown_status_names_the_nearest():
    with pytest.raises(UserError, match="Unknown status 'complete'. Did you mean 'completed'"):
        RunRecord(**RUN | {"status": "complete"})


def test_a_folder_without_a_record_says_so(tmp_path):
    with pytest.raises(UserError, match="There is no run.json in .*give a folder that `hftl train` wrote"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("content", [b'{"schema": 1', b"", b"\xff\xfe", b'{"seed": "' + b"a\n" + b'"}'])
def test_a_broken_record_says_so(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match="run.json is not valid JSON: .* Run it again"):
        RunRecord.read(tmp_path)


def test_a_list_is_not_a_record(tmp_path):
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(UserError, match="holds a list; expected one JSON object"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("schema", [2, None, "1"])
def test_another_schema_says_which_one_is_read(tmp_path, schema):
    (tmp_path / "run.json").write_text(json.dumps({"schema": schema}))
    with pytest.raises(UserError, match=f"has schema {schema!r}; this version of hftl reads 1"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("change", [{"seeed": 1}, {"seed": None}])
def test_a_field_too_many_or_too_few_is_named(tmp_path, change):
    fields = dataclasses.asdict(RunRecord(**RUN)) | change
    (tmp_path / "run.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    with pytest.raises(UserError, match="does not hold the fields of a run: .*se+d"):
        RunRecord.read(tmp_path)


def test_predictions_read_back_with_their_types(tmp_path):
    probabilities = np.array([[0.1, 0.9], [0.5, 0.5], [0.75, 0.25]])
    answers = {"label": [1, 0, 0], "prediction": np.array([1, 1, 0])}
    columns = {"row_id": [7, 3, 5], **answers, "probabilities": probabilities.astype(np.float32)}
    records.write_predictions(tmp_path, columns)
    read = records.read_predictions(tmp_path)
    assert list(read) == ["row_id", "label", "prediction", "probabilities"]
    assert read["row_id"].dtype == np.int64 and read["row_id"].tolist() == [7, 3, 5]
    assert read["label"].tolist() == [1, 0, 0] and read["prediction"].tolist() == [1, 1, 0]
    assert read["probabilities"].dtype == np.float32
    np.testing.assert_array_equal(read["probabilities"], probabilities.astype(np.float32))


def test_class_names_and_regression_values_can_be_predictions(tmp_path):
    values = np.array([0.5, 1.5], np.float32)
    records.write_predictions(tmp_path, {"row_id": [0, 1], "label": ["a", "b"], "prediction": values})
    read = records.read_predictions(tmp_path)
    assert {name: column.tolist() for name, column in read.items()} == {
        "row_id": [0, 1],
        "label": ["a", "b"],
        "prediction": [0.5, 1.5],
    }


def test_multi_label_predictions_keep_their_shape(tmp_path):
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    columns = {"row_id": [0, 1], "label": labels, "prediction": 1 - labels, "probabilities": labels * 0.5}
    records.write_predictions(tmp_path, columns)
    read = records.read_predictions(tmp_path)
    np.testing.assert_array_equal(read["label"], labels)
    np.testing.assert_array_equal(read["prediction"], 1 - labels)
    assert read["probabilities"].shape == (2, 3)


def test_columns_of_unequal_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected length 2 but got length 1"):
        records.write_predictions(tmp_path, {"row_id": [0, 1], "label": [1], "prediction": [1, 1]})
    assert not list(tmp_path.iterdir())


def test_missing_and_broken_predictions_say_so(tmp_path):
    with pytest.raises(UserError, match="no predictions.parquet in .*only a run that completed has one"):
        records.read_predictions(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="predictions.parquet cannot be read: .* Run it again"):
        records.read_predictions(tmp_path)


def test_the_config_hash_ignores_the_order_of_keys():
    first = {"learning_rate": 1e-4, "nested": {"a": 1, "b": [1, 2]}}
    second = {"nested": {"b": [1, 2], "a": 1}, "learning_rate": 1e-4}
    assert records.compute_config_hash(first) == records.compute_config_hash(second)
    assert records.compute_config_hash(first) == "731365a1590def50"  # must not change from one version to the next


@pytest.mark.parametrize("other", [{"a": 2, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1}, {"a": "1", "b": [1, 2]}])
def test_the_config_hash_sees_every_change(other):
    assert records.compute_config_hash(other) != records.compute_config_hash({"a": 1, "b": [1, 2]})


def test_the_environment_names_versions_and_nothing_private(monkeypatch):
    monkeypatch.setenv("HFTL_TEST_SECRET", "a-very-secret-value")
    environment = records.describe_environment()
    text = json.dumps(environment)
    assert set(environment["packages"]) >= {"torch", "transformers", "peft", "datasets"}
    assert environment["device"] and environment["cpu"] and environment["num_threads"] == 1
    private = ["a-very-secret-value", socket.gethostname(), os.path.expanduser("~"), os.getcwd(), getpass.getuser()]
    # A name as short as "vm" or "root" may be part of another word.
    assert not [word for word in private if len(word) > 5 and word in text]


def test_the_commit_is_that_of_the_checkout_and_none_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "hftl" / "records.py"))
    assert records.describe_environment()["git_commit"] is None
