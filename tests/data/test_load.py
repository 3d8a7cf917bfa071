import gzip
import json
import socket
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
from PIL import Image

from hftl.config import DataArguments
from hftl.data import load
from hftl.data.load import compute_fingerprint, load_splits
from hftl.data.stream import open_stream
from hftl.errors import UserError
from hftl.training_data import load_rows


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a local source reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def arguments(**given):
    names = "dataset dataset_config dataset_revision train_file validation_file test_file text_columns image_column"
    return SimpleNamespace(
        **{**dict.fromkeys(names.split()), **{name: _plain(value) for name, value in given.items()}}
    )


def _plain(value):
    return value if value is None or isinstance(value, list) else str(value)


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def write_image(path, color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (color, color, color)).save(path)
    return path


def read_train(path, **given):
    return load_splits(arguments(dataset=path, **given))["train"]


ROWS = [{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}]
CSV = "text,label\na b,x\nc,y\n"


def test_every_table_format_gives_the_same_rows(tmp_path):
    frame = pd.DataFrame(ROWS)
    write(tmp_path / "a.csv", CSV)
    write(tmp_path / "upper.CSV", CSV)
    write(tmp_path / "a.tsv", CSV.replace(",", "\t"))
    write(tmp_path / "a.json", json.dumps(ROWS))
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, ROWS)))
    frame.to_parquet(tmp_path / "a.parquet")
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(CSV)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 7
    for path in paths:
        rows = read_train(path)
        assert rows.to_list() == ROWS, path
        assert {feature.dtype for feature in rows.features.values()} == {"string"}, path


def test_a_file_name_with_glob_characters_is_read(tmp_path):
    assert len(read_train(write(tmp_path / "d[1]" / "a*.csv", CSV))) == 2


def test_csv_keeps_words_for_nothing_as_text_and_empty_cells_as_none(tmp_path):
    texts = ["NA", "null", "None", "nan", "N/A"]
    rows = read_train(write(tmp_path / "a.csv", "text,label\n" + "".join(f"{t},x\n" for t in texts) + ',x\n"",x\n'))
    assert rows["text"][:] == [*texts, None, None]


def test_csv_numbers_become_numbers_only_where_nothing_is_lost(tmp_path):
    csv = "zip,count,missing,score,mixed,long\n007,7,1,1.5,1,12345678901234567890\n123,-2,,2,b,1\n"
    rows = read_train(write(tmp_path / "a.csv", csv))
    assert {name: feature.dtype for name, feature in rows.features.items()} == {
        "zip": "string",
        "count": "int64",
        "missing": "int64",
        "score": "float64",
        "mixed": "string",
        "long": "string",
    }
    assert rows[0] == {
        "zip": "007",
        "count": 7,
        "missing": 1,
        "score": 1.5,
        "mixed": "1",
        "long": "12345678901234567890",
    }
    assert rows["missing"][:] == [1, None]


def test_csv_named_text_columns_stay_texts_even_if_all_are_numbers(tmp_path):
    rows = read_train(write(tmp_path / "a.csv", "text,label\n1.10,1\n2,2\n"), text_columns=["text"])
    assert rows["text"][:] == ["1.10", "2"]
    assert rows["label"][:] == [1, 2]


def test_csv_whose_column_turns_from_numbers_to_words_late_is_read(tmp_path):
    csv = "text,label\n" + "".join(f"{i},{i % 3}\n" for i in range(10_050)) + "hello,cat\n"
    rows = read_train(write(tmp_path / "a.csv", csv))
    assert rows[-1] == {"text": "hello", "label": "cat"}


def test_csv_with_byte_order_mark_and_line_breaks_in_quotes_is_read(tmp_path):
    rows = read_train(write(tmp_path / "a.csv", 'text,label\n"a\n""b"", c",x\n', encoding="utf-8-sig"))
    assert rows.to_list() == [{"text": 'a\n"b", c', "label": "x"}]


def test_csv_with_an_unquoted_separator_is_refused_and_not_shifted(tmp_path):
    with pytest.raises(UserError, match="more fields than its header"):
        read_train(write(tmp_path / "a.csv", "text,label\na,b,x\nc,d,y\n"))
    with pytest.raises(UserError, match="Cannot read .*b.csv as csv: .*Expected 2 fields in line 3, saw 3"):
        read_train(write(tmp_path / "b.csv", "text,label\na,x\nc,d,y\n"))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_that_is_not_utf8_is_named(tmp_path, name):
    text = "text,label\ncafé au lait,x\n" if name == "a.csv" else '{"text": "café au lait"}\n'
    with pytest.raises(UserError, match=f"{name} is not UTF-8 .*iconv"):
        read_train(write(tmp_path / name, text, encoding="latin-1"))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.jsonl", "\n\n", "has no rows"),
        ("a.jsonl", '{"text": ', "Cannot read .*a.jsonl as jsonl"),
        ("a.parquet", "not parquet", "Cannot read .*a.parquet as parquet"),
        ("a.xlsx", "x", r"unknown ending; expected one of \.csv"),
        ("README", "x", "unknown ending"),
    ],
)
def test_a_file_without_a_table_is_refused(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read_train(write(tmp_path / name, text))


def test_a_missing_file_is_named_and_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="There is no file .*none.csv"):
        load_splits(arguments(train_file=tmp_path / "none.csv"))
    monkeypatch.chdir(tmp_path)
    for name in ("none.csv", "./none", "data/2024/none", str(tmp_path / "none")):
        with pytest.raises(UserError, match=f"There is no file or folder {name}"):
            load_splits(arguments(dataset=name))


def test_exactly_one_source_of_train_is_needed(tmp_path):
    path = write(tmp_path / "a.csv", CSV)
    with pytest.raises(UserError, match="exactly one of --dataset and --train_file; found neither"):
        load_splits(arguments(test_file=path))
    with pytest.raises(UserError, match="found both"):
        load_splits(arguments(dataset=path, train_file=path))


def test_split_files_are_used_and_replace_those_of_a_dataset(tmp_path):
    path, other = write(tmp_path / "a.csv", CSV), write(tmp_path / "b.csv", "label,text\nx,other\n")
    splits = load_splits(arguments(train_file=path, validation_file=path, test_file=other))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 2, "test": 1}
    datasets.DatasetDict(train=read_train(path), test=read_train(path)).save_to_disk(tmp_path / "saved")
    splits = load_splits(arguments(dataset=tmp_path / "saved", test_file=other))
    assert splits["test"].to_list() == [{"label": "x", "text": "other"}]


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (CSV, "id,text,label,annotator\n1,z,x,ann\n", {"text": "z", "label": "x"}),
        ("Unnamed: 0,text,label\n0,a,x\n1,b,y\n", "text,label\nz,x\n", {"text": "z", "label": "x"}),
        ("text,label,stars\na,x,1\nb,y,2\n", "label,when,text\nx,2020,z\n", {"text": "z", "label": "x"}),
    ],
)
def test_a_column_of_one_split_alone_is_no_error(tmp_path, train, test, expected):
    paths = {"train_file": write(tmp_path / "a.csv", train), "test_file": write(tmp_path / "b.csv", test)}
    splits = load_splits(arguments(**paths))
    (row,) = splits["test"].to_list()
    assert {name: row[name] for name in expected} == expected
    assert splits["test"].features == splits["train"].features
    assert [name for name in row if row[name] is None] == sorted(set(row) - set(expected))


def test_a_column_that_is_read_and_that_a_split_has_not_is_named(tmp_path):
    train = write(tmp_path / "a.csv", CSV)
    for test, message in (
        ("text,target\na,x\n", "test split has no labels.*test has no 'label'"),
        ("body,label\na,x\n", "test split has no column 'text'"),
        ("text\na\n", "test split has no labels"),
    ):
        path = write(tmp_path / "b.csv", test)
        with pytest.raises(UserError, match=message):
            load_rows(DataArguments(train_file=str(train), test_file=str(path)))


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [("0 1 0", "1.0 0.0", [1, 0]), ("1.0 2.0", "2 1", [2, 1]), ("3 4 5", "5. 3", [5, 3])],
)
def test_whole_numbers_of_one_split_are_integers_in_all(tmp_path, train, test, expected):
    files = {}
    for split, labels in (("train_file", train), ("test_file", test)):
        rows = "".join(f"t{i},{label}\n" for i, label in enumerate(labels.split()))
        files[split] = write(tmp_path / f"{split}.csv", "text,label\n" + rows)
    rows = load_splits(arguments(**files))["test"]
    assert (rows["label"][:], rows.features["label"].dtype) == (expected, "int64")


def test_numbers_stay_as_they_are_written_where_another_split_has_words(tmp_path):
    train = write(tmp_path / "a.csv", "text,label\nwords,x\nmore,y\n")
    test = write(tmp_path / "b.csv", "text,label\n1.50,x\n007.10,y\n+3,x\n")
    assert load_splits(arguments(train_file=train, test_file=test))["test"]["text"][:] == ["1.50", "007.10", "+3"]


def test_splits_get_one_type_a_column(tmp_path):
    train = write(tmp_path / "a.csv", "a,b,c\n1,1,x\n2,2,y\n")
    test = write(tmp_path / "b.csv", "a,b,c\nx,1.5,3\n")
    splits = load_splits(arguments(train_file=train, test_file=test))
    assert splits["train"].to_list() == [{"a": "1", "b": 1.0, "c": "x"}, {"a": "2", "b": 2.0, "c": "y"}]
    assert splits["test"].to_list() == [{"a": "x", "b": 1.5, "c": "3"}]


@pytest.mark.parametrize("other", ["[0, 1]", '{"a": 1}', '["x"]'])
def test_lists_and_objects_beside_decimals_of_train_are_refused(tmp_path, other):
    train = write(tmp_path / "train.csv", "text,label\na,0.5\nb,1.5\n")
    test = write(tmp_path / "test.json", f'[{{"text": "a", "label": {other}}}]')
    with pytest.raises(UserError, match="columns of test do not fit the types of train"):
        load_splits(arguments(train_file=train, test_file=test))


def test_names_of_a_test_file_become_the_class_ids_of_train(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["y", "x"])})
    train = datasets.Dataset.from_list(ROWS, features=features)
    train.save_to_disk(tmp_path / "saved")
    test = write(tmp_path / "b.csv", CSV)
    splits = load_splits(arguments(dataset=tmp_path / "saved", test_file=test))
    assert splits["test"]["label"][:] == [1, 0]
    with pytest.raises(UserError, match="columns of test do not fit the types of train"):
        load_splits(arguments(dataset=tmp_path / "saved", test_file=write(tmp_path / "c.csv", "text,label\na,z\n")))


def test_a_saved_dataset_of_one_split_is_train(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert read_train(tmp_path / "one").to_list() == ROWS
    datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "dict")
    assert read_train(tmp_path / "dict").to_list() == ROWS


def test_split_names_of_others_are_understood_and_the_rest_ignored_with_a_word(tmp_path, caplog):
    rows = datasets.Dataset.from_list(ROWS)
    raw = {"train": rows, "dev": rows.select([0]), "unsupervised": rows, "testing": rows}
    datasets.DatasetDict(raw).save_to_disk(tmp_path / "saved")
    splits = load_splits(arguments(dataset=tmp_path / "saved"))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 1, "test": 2}
    assert "'unsupervised' is ignored" in caplog.text


def test_an_exact_split_name_wins_over_one_that_means_the_same(tmp_path, caplog):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(dev=rows, train=rows, validation=rows.select([1])).save_to_disk(tmp_path / "saved")
    assert len(load_splits(arguments(dataset=tmp_path / "saved"))["validation"]) == 1
    assert "'dev' is ignored" in caplog.text


def test_a_source_without_train_is_refused(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(dev=rows, test=rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="no train split; found dev, test"):
        load_splits(arguments(dataset=tmp_path / "saved"))


def test_a_split_without_rows_is_refused(tmp_path, monkeypatch):
    rows = datasets.Dataset.from_list(ROWS)
    empty = datasets.DatasetDict(train=rows, test=rows.select([]))
    empty.save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="Cannot read .*saved .*a split has no rows"):
        load_splits(arguments(dataset=tmp_path / "saved"))
    monkeypatch.setattr(load.datasets, "load_dataset", lambda *args, **kwargs: empty)
    with pytest.raises(UserError, match="The test split has no rows"):
        load_splits(arguments(dataset="a/b"))


def test_a_folder_of_tables_is_read_by_split_name(tmp_path):
    write(tmp_path / "train.csv", CSV)
    write(tmp_path / "dev.csv", "text,label\nz,x\n")
    write(tmp_path / "notes.csv", "q\n1\n")
    splits = load_splits(arguments(dataset=tmp_path))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 1}


def test_an_image_folder_of_classes_is_read(tmp_path):
    for name in ("dog/b.png", "cat/a.PNG", "cat/c train.png"):
        write_image(tmp_path / name)
    write(tmp_path / "cat" / "notes.txt", "not an image")
    rows = read_train(tmp_path)
    assert rows.features["label"].names == ["cat", "dog"]
    assert rows["label"][:] == [0, 0, 1]
    assert rows[2]["image"].size == (4, 4)


def test_an_image_folder_with_splits_shares_its_classes(tmp_path):
    for name in ("train/dog/b.png", "train/cat/a.png", "val/dog/a.png", "test/dog/a.png"):
        write_image(tmp_path / name)
    splits = load_splits(arguments(dataset=tmp_path))
    assert {split: rows["label"][:] for split, rows in splits.items()} == {
        "train": [0, 1],
        "validation": [1],
        "test": [1],
    }


def test_a_class_folder_that_is_called_train_is_a_class_beside_others(tmp_path):
    for name in ("train/a.png", "car/a.png"):
        write_image(tmp_path / name)
    assert read_train(tmp_path).features["label"].names == ["car", "train"]


def test_an_image_folder_that_is_not_one_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images; expected one folder a class"):
        read_train(tmp_path / "empty")
    write_image(tmp_path / "flat" / "a.png")
    with pytest.raises(UserError, match="a.png is not directly inside a class folder"):
        read_train(tmp_path / "flat")


def test_a_metadata_table_gives_the_labels_of_an_image_folder(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write(tmp_path / "metadata.csv", "file_name,label\nimages/a.png,007\n")
    assert read_train(tmp_path).to_list() == [{"file_name": str(tmp_path / "images" / "a.png"), "label": "007"}]


def test_a_metadata_table_must_be_in_every_split(tmp_path):
    write(tmp_path / "train" / "metadata.csv", "file_name,label\na.png,x\n")
    write_image(tmp_path / "test" / "dog" / "a.png")
    with pytest.raises(UserError, match="Other splits have a metadata table but .*test has none"):
        read_train(tmp_path)


def test_image_paths_are_relative_to_their_table(tmp_path):
    absolute = write_image(tmp_path / "elsewhere" / "b.png")
    csv = write(tmp_path / "tables" / "a.csv", f"path,photo,label\na.png,p1,x\n{absolute},p2,y\n,p3,y\n")
    assert read_train(csv)["path"][:] == [str(tmp_path / "tables" / "a.png"), str(absolute), None]
    assert read_train(csv, image_column="photo")["photo"][0] == str(tmp_path / "tables" / "p1")


def test_a_path_column_that_holds_no_images_is_left_alone(tmp_path):
    assert read_train(write(tmp_path / "a.csv", "path,label\nsrc/main.py,x\n"))["path"][:] == ["src/main.py"]


def test_bundled_data_are_resolved_by_assets(tmp_path, monkeypatch):
    paths = {}
    for split in ("train", "validation", "test"):
        pd.DataFrame(ROWS).to_parquet(path := tmp_path / f"{split}.parquet")
        paths[split] = str(path)
    monkeypatch.setattr(load.assets, "is_bundled", lambda name: name == "bundled:toy")
    monkeypatch.setattr(load.assets, "resolve_dataset", lambda name: paths)
    splits = load_splits(arguments(dataset="bundled:toy"))
    assert [splits[split].to_list() for split in paths] == [ROWS, ROWS, ROWS]


@pytest.mark.parametrize(
    "error, message",
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "Check the spelling"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset"), "Ask for access"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "load it once with a network"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "refs/convert/parquet"),
        (ValueError("BuilderConfig 'x' not found. Available: ['y']"), r"Available: \['y'\] .*--dataset_config"),
    ],
)
def test_hub_errors_say_what_to_do(monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(load.datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=f"Cannot load the data set 'a/b'.*{message}"):
        load_splits(arguments(dataset="a/b"))


def test_a_hub_id_is_loaded_with_its_configuration_and_revision(monkeypatch):
    calls = []

    def fake(name, config, *, revision):
        calls.append((name, config, revision))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))

    monkeypatch.setattr(load.datasets, "load_dataset", fake)
    args = arguments(dataset="a/b", dataset_config="c", dataset_revision="r")
    assert load_splits(args)["train"].to_list() == ROWS
    assert calls == [("a/b", "c", "r")]


@pytest.mark.skipif(not datasets.config.HF_HUB_OFFLINE, reason="needs HF_HUB_OFFLINE=1, as it is by default")
def test_an_offline_hub_id_is_explained():
    with pytest.raises(UserError, match="Cannot load the data set 'nobody/nothing'.*give local files"):
        load_splits(arguments(dataset="nobody/nothing"))


def test_fingerprint_does_not_depend_on_the_way_of_loading(tmp_path):
    write(tmp_path / "a.csv", CSV)
    write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, ROWS)))
    prints = {compute_fingerprint(read_train(tmp_path / name)) for name in ("a.csv", "b.jsonl")}
    prints.add(compute_fingerprint(datasets.Dataset.from_list(ROWS).add_column("row_id", [4, 5])))
    assert len(prints) == 1
    assert len(prints.pop()) == 16


def test_fingerprint_changes_with_texts_labels_and_order():
    changed = [
        ROWS,
        ROWS[::-1],
        ROWS[:1],
        [{**ROWS[0], "label": "z"}, ROWS[1]],
        [{**ROWS[0], "text": "a  b"}, ROWS[1]],
    ]
    assert len({compute_fingerprint(datasets.Dataset.from_list(rows)) for rows in changed}) == len(changed)


def test_fingerprint_counts_an_image_by_its_bytes(tmp_path):
    here, there = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [
        str(here),
        str(there),
        {"path": None, "bytes": here.read_bytes()},
        str(write_image(tmp_path / "c.png", 9)),
    ]
    prints = [
        compute_fingerprint(datasets.Dataset.from_dict({"image": [image], "label": [0]}, features=features))
        for image in images
    ]
    assert prints[0] == prints[1] == prints[2] != prints[3]


@pytest.mark.parametrize("width", [30, 100, 500])
def test_what_is_said_of_a_wide_table_is_short(tmp_path, width):
    names = [f"column number {index}" for index in range(width)]
    path = write(tmp_path / "a.csv", ",".join(names) + "\n" + ",".join(["x"] * width) + "\n")
    with pytest.raises(UserError, match="'column number 0', 'column number 1'.* more no column looks like") as refused:
        load_rows(DataArguments(train_file=str(path)))
    assert len(str(refused.value)) <= 2000


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        ({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}, "of columns or rows by their names"),
        ({"0": {"text": "a", "label": "x"}, "1": {"text": "b", "label": "y"}}, "of columns or rows by their names"),
        ({"columns": ["text", "label"], "index": [0], "data": [["a", "x"]]}, "of columns and data"),
        ({"version": "1.0", "data": ROWS}, "with the rows inside"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_table_that_is_one_json_object_is_refused_by_every_reader(tmp_path, content, layout, indent):
    path = write(tmp_path / "a.json", json.dumps(content, indent=indent))
    for read in (lambda: read_train(path), lambda: open_stream(str(path), arguments(), "text")):
        with pytest.raises(UserError, match=f"a.json is one object {layout}.*expected a list of rows or one object a"):
            read()


@pytest.mark.parametrize(
    "row",
    [{"text": "a", "label": "x"}, {"messages": [{"role": "user", "content": "a"}]}, {"data": "a", "n": {"b": 1}}],
)
def test_one_json_row_is_a_row(tmp_path, row):
    assert len(read_train(write(tmp_path / "a.jsonl", json.dumps(row)))) == 1


def test_the_line_that_is_not_json_is_named(tmp_path):
    for content, line in (('{"text": "a"},\n{"text": "b"}\n', 1), ('{"text": "a"}\n{"text": \n', 2)):
        with pytest.raises(UserError, match=f"Cannot read .*a.jsonl as jsonl: line {line}: "):
            read_train(write(tmp_path / "a.jsonl", content))


def test_images_without_a_task_are_recognized(tmp_path):
    for name in ("dog/b.png", "cat/a.png"):
        write_image(tmp_path / name)
    with pytest.raises(UserError, match="'image' holds images and no column holds texts.*--task image-classification"):
        load_rows(DataArguments(dataset=str(tmp_path)))


def test_texts_that_are_decimals_are_not_read_as_numbers_without_asking(tmp_path):
    path = str(write(tmp_path / "a.csv", "text,label\n1.50,x\n2.0,y\n3,x\n4.10,y\n"))
    with pytest.raises(UserError, match="1.50 would be read as 1.5; .*--text_columns text"):
        load_rows(DataArguments(train_file=path))
    splits, _ = load_rows(DataArguments(train_file=path, text_columns=["text"]))
    assert splits["train"]["text"][:] == ["1.50", "2.0", "3", "4.10"]


@pytest.mark.parametrize(
    ("task", "row", "lost"),
    [
        ("question-answering", {"question": "who?", "context": "a b", "answers": ["a"]}, "answers"),
        ("seq2seq", {"source": "a", "target": "b"}, "target"),
        ("causal-lm", {"prompt": "a", "completion": "b"}, "completion"),
        (
            "causal-lm",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "messages",
        ),
        ("token-classification", {"tokens": ["a"], "ner_tags": ["O"]}, "ner_tags"),
        ("text-classification", {"text": "a", "label": "x"}, "label"),
        ("text-classification", {"text": "a", "label": ["x", "y"]}, "label"),
    ],
)
def test_every_task_refuses_a_split_without_what_is_learnt(tmp_path, task, row, lost):
    train = write(tmp_path / "train.jsonl", f"{json.dumps(row)}\n" * 3)
    others = {**{name: value for name, value in row.items() if name != lost}, "more": 1}
    test = write(tmp_path / "test.jsonl", f"{json.dumps(others)}\n" * 3)
    with pytest.raises(UserError, match=f"test.*{lost}"):
        load_rows(DataArguments(task=task, train_file=str(train), test_file=str(test)))


def test_a_process_that_reads_a_folder_again_sees_that_its_classes_changed_names(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("RGB", (4, 4), name == "cat" and "red" or "blue").save(tmp_path / name / f"{index}.png")
    args = DataArguments(task="image-classification", dataset=str(tmp_path))

    def read_reds():
        splits, labels = load_rows(args)
        return {labels.names[row["label"]] for row in splits["train"] if row["image"].getpixel((0, 0))[0] == 255}

    assert read_reds() == {"cat"}
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (tmp_path / old).rename(tmp_path / new)
    assert read_reds() == {"dog"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
@pytest.mark.parametrize("time", ["2020-01-31", "2020-01-31T10:20:30Z", "2020-01-31 10:20"])
def test_dates_in_json_stay_as_they_are_written(tmp_path, name, time):
    rows = [{"text": time, "note": 1, "turns": [{"said": time}]}, {"text": time, "note": 2, "turns": []}]
    text = json.dumps(rows) if name == "rows.json" else "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    read = load_splits(arguments(train_file=path))["train"]
    assert read.column_names == ["text", "note", "turns"]
    assert read.to_list() == rows


@pytest.mark.parametrize(
    ("task", "header", "read"),
    [
        ("causal-lm", "question,answer", {"prompt": "2", "completion": "1.50"}),
        ("seq2seq", "source,target", {"text": "2", "target": "1.50"}),
        ("question-answering", "question,answer,context", {"text": "2", "answers": ["1.50"], "starts": [0]}),
    ],
)
def test_answers_that_are_numbers_are_learnt_as_they_are_written(tmp_path, task, header, read):
    rest = ",1.50 eur" if "context" in header else ""
    path = write(tmp_path / "a.csv", f"{header}\n2,1.50{rest}\n3,1.50{rest}\n")
    row = load_rows(DataArguments(task=task, train_file=str(path)))[0]["train"][0]
    assert {name: row[name] for name in read} == read
