"""Paths in data stay below the folder of their table, in every reader; full paths and links of users work."""

import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hftl.config import DataArguments
from hftl.data import load
from hftl.data.boxes import read_boxes
from hftl.data.columns import choose_columns, standardize_columns
from hftl.data.folders import read_folder
from hftl.data.load import load_splits
from hftl.data.masks import read_masks
from hftl.data.paths import resolve_path
from hftl.data.stream import open_stream
from hftl.errors import UserError
from hftl.inference.predictor import check_window

LEADING_OUT = ["../secret.png", "a/../../secret.png", "..\\secret.png", "file:///etc/secret.png", "hf://x/y.png",
               "https://example.com/x.png", "zip://a.png::../x.zip", "C:\\Users\\x.png", "\\\\server\\share\\x.png",
               "data:image/png;base64,AAAA"]  # fmt: skip
REASONS = "leads out of the folder|is an address|is a full path of Windows"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder `data` with a picture, below one with a secret, which is the working folder as well."""
    for path in (tmp_path / "secret.png", tmp_path / "data" / "in" / "a.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(path)
    (tmp_path / "data" / "work").mkdir()
    monkeypatch.chdir(tmp_path / "data" / "work")
    return tmp_path / "data"


def write_table(path, column, name):
    """Two rows, the second with this path, as the ending of the table asks for."""
    names, labels = ["in/a.png", name], ["x", "y"]
    if path.suffix == ".csv":
        quoted = [f'"{value}"' for value in names]
        path.write_text(f"{column},label\n" + "".join(f"{n},{k}\n" for n, k in zip(quoted, labels, strict=True)))
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps({column: n, "label": k}) + "\n" for n, k in zip(names, labels, strict=True))
        )
    else:
        images = pa.array(
            [{"bytes": None, "path": n} for n in names], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
        table = pa.table({column: images, "label": labels})
        if "typed" in path.name:
            features = datasets.Features({column: datasets.Image(), "label": datasets.Value("string")})
            table = table.cast(features.arrow_schema)
        pq.write_table(table, path)
    return str(path)


def read_training(source, **given):
    args = DataArguments(dataset=source, task="image-classification", **given)
    raw = load_splits(args)
    return standardize_columns(raw, choose_columns(raw, args, "image"), "image", args)["train"]


def read_prediction(source, column="image"):
    stream = open_stream(source, DataArguments(task="image-classification"), "image")
    (window,) = stream.read([column], 100)
    return check_window({"image": window[column]}, stream.folder)[1]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_path_that_leads_out_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=REASONS):
        resolve_path(name, tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a..b/c.png", "größe 😀 #1%20.png", "a:b.png", "line\nbreak.png", "...png"])
def test_strange_names_are_names(tmp_path, name):
    assert resolve_path(name, tmp_path) == tmp_path / name


@pytest.mark.parametrize("table", ["t.csv", "t.jsonl", "t.parquet", "typed.parquet"])
@pytest.mark.parametrize("name", ["../secret.png", "..\\secret.png", "file:///etc/hosts", "../secret"])
def test_no_table_leads_out_in_training_or_prediction(place, table, name):
    source = write_table(place / table, "image", name)
    with pytest.raises(UserError, match=REASONS):
        read_training(source)
    faults = read_prediction(source)
    assert faults[0] is None and any(reason in faults[1] for reason in REASONS.split("|"))


@pytest.mark.parametrize("table", ["t.csv", "t.jsonl", "t.parquet", "typed.parquet"])
def test_tables_name_files_beside_them_and_by_full_paths(place, tmp_path, table):
    other = tmp_path / "other.png"
    Image.new("RGB", (6, 4)).save(other)
    source = write_table(place / table, "image", str(other))
    assert [image.size for image in read_training(source)["image"]] == [(6, 4)] * 2
    assert read_prediction(source) == [None, None]


def test_a_table_may_name_files_through_a_link_of_its_folder(place, tmp_path):
    (place / "linked").symlink_to(tmp_path)
    source = write_table(place / "t.csv", "image", "linked/secret.png")
    assert len(read_training(source)) == 2 and read_prediction(source) == [None, None]


def test_a_named_column_leads_out_no_more_than_a_guessed_one(place):
    source = write_table(place / "t.csv", "photo", "../secret")
    with pytest.raises(UserError, match="leads out of the folder"):
        read_training(source, image_column="photo")


def test_a_list_of_paths_does_not_lead_out(place):
    (place / "list.txt").write_text("in/a.png\n../secret.png\n")
    assert "leads out" in read_prediction(str(place / "list.txt"))[1]


def test_a_path_that_the_user_pipes_in_is_the_users(place, tmp_path):
    stream = open_stream("-", DataArguments(task="image-classification"), "image", ["../../secret.png\n"])
    (window,) = stream.read(["image"], 10)
    assert check_window(window, stream.folder)[1] == [None]


def test_masks_do_not_lead_out(place):
    (place / "t.csv").write_text("image,mask\nin/a.png,in/a.png\nin/a.png,../secret.png\n")
    args = DataArguments(dataset=str(place / "t.csv"), task="semantic-segmentation")
    with pytest.raises(UserError, match="leads out of the folder"):
        read_masks(load_splits(args), args)


@pytest.mark.parametrize("name", ["../secret.png", "in\\..\\..\\secret.png", "file:///etc/x.png"])
def test_images_of_coco_do_not_lead_out(place, name):
    content = {
        "images": [{"id": 1, "file_name": name}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
    }
    (place / "a.json").write_text(json.dumps(content))
    for read in (load_splits, lambda args: open_stream(args.dataset, args, "image")):
        with pytest.raises(UserError, match=REASONS):
            read(DataArguments(dataset=str(place / "a.json"), task="object-detection"))


def test_boxes_in_a_table_do_not_lead_out(place):
    rows = [{"image": "../secret.png", "objects": {"bbox": [[0, 0, 2, 2]], "category": ["x"]}}]
    (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = DataArguments(dataset=str(place / "t.jsonl"), task="object-detection")
    with pytest.raises(UserError, match="leads out of the folder"):
        read_boxes(load_splits(args), args)


@pytest.mark.parametrize("kind", ["struct", "text"])
def test_a_data_set_of_the_hub_names_no_file_of_this_machine(place, tmp_path, monkeypatch, kind):
    secret = str(tmp_path / "secret.png")
    feature = datasets.Image() if kind == "struct" else datasets.Value("string")
    rows = datasets.Dataset.from_dict(
        {"image": [secret] * 2, "label": ["x", "y"]},
        features=datasets.Features({"image": feature, "label": datasets.Value("string")}),
    )
    monkeypatch.setattr(load.datasets, "load_dataset", lambda *args, **kwargs: datasets.DatasetDict(train=rows))
    with pytest.raises(UserError, match="no part of the data set|files of this machine are not read"):
        read_training("someone/something")
    if kind == "text":
        assert "image" not in open_stream("someone/something", DataArguments(), "image").features


# Saved data sets


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})).save_to_disk(folder)
    return folder


def swap(path, target):
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["../other", "..", ".", "/etc", "train/../../other", "..\\other", 3, None])
def test_splits_of_a_saved_data_set_do_not_lead_out(saved, name):
    saved.with_name("other").mkdir()
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
    with pytest.raises(UserError, match="which is not beside it|is no name"):
        read_folder(saved)


@pytest.mark.parametrize(
    "part", ["train", "train/state.json", "train/dataset_info.json", "train/data-00000-of-00001.arrow"]
)
def test_links_of_a_saved_data_set_do_not_lead_out(saved, tmp_path, part):
    swap(saved / part, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link that leads out"):
        read_folder(saved)


@pytest.mark.parametrize("part", ["train/state.json", "train/dataset_info.json", "train/data-00000-of-00001.arrow"])
def test_a_saved_data_set_of_pipes_is_refused_at_once(saved, part):
    (saved / part).unlink()
    os.mkfifo(saved / part)
    with pytest.raises(UserError, match="is a pipe or a device"):
        read_folder(saved)


def test_a_saved_data_set_behind_a_link_of_the_user_is_read(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    assert len(read_folder(tmp_path / "link")["train"]) == 2


def test_images_of_a_saved_data_set_are_inside_of_it(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "sound")
    assert read_folder(tmp_path / "sound")["train"][0]["image"].size == (6, 4)

    (file,) = (tmp_path / "sound").glob("*.arrow")
    stored = pa.ipc.open_stream(file.read_bytes()).read_all()
    outside = pa.array([{"bytes": None, "path": str(tmp_path / "a.png")}], stored.schema.field("image").type)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, stored.schema) as writer:
        writer.write_table(pa.table({"image": outside}, schema=stored.schema))
    with pytest.raises(UserError, match="which is no part of the data set"):
        read_folder(tmp_path / "sound")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.txt", "t.png", "t"])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_pipe_as_a_source_is_refused_at_once(tmp_path, name, modality):
    os.mkfifo(tmp_path / name)
    for read in (
        lambda path: load_splits(DataArguments(dataset=path)),
        lambda path: load_splits(DataArguments(train_file=path)),
        lambda path: open_stream(path, DataArguments(), modality),
    ):
        with pytest.raises(UserError, match="is a pipe or a device"):
            read(str(tmp_path / name))


def test_a_device_behind_a_link_is_refused(tmp_path):
    (tmp_path / "t.csv").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a pipe or a device"):
        load_splits(DataArguments(train_file=str(tmp_path / "t.csv")))
    assert Path("/dev/zero").exists()
