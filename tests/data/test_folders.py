"""What becomes of the files in a folder of images: read, left out and named, or an error; links, litter, metadata."""

import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

from hftl.config import DataArguments
from hftl.data.folders import find_images, list_files, read_folder
from hftl.data.load import load_splits
from hftl.data.paths import resolve_images
from hftl.data.stream import open_stream
from hftl.errors import UserError


def draw(path, color=0, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, 9, 9)).save(path)
    return path


def fill(root, names=("blue", "red"), count=2, ending=".png"):
    for place, name in enumerate(names):
        for index in range(count):
            draw(root / name / f"{index}{ending}", 50 * place + index)
    return root


def count_labels(rows):
    labels = rows.with_format(None)["label"][:]
    return {rows.features["label"].int2str(label): labels.count(label) for label in set(labels)}


def predicted_files(folder):
    stream = open_stream(str(folder), DataArguments(task="image-classification"), "image")
    return [name for window in stream.read(["file"], 100) for name in window["file"]]


# What cannot be read


@pytest.mark.parametrize(
    "names", [["a.HEIC", "b.heic"], ["hash0", "hash1"], ["scan.pdf"], ["fig.eps"], ["x.jpg_large"]]
)
def test_a_class_whose_files_are_not_read_is_an_error(tmp_path, names):
    fill(tmp_path)
    (tmp_path / "green").mkdir()
    for name in names:
        (tmp_path / "green" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"class folder .*green holds no image, but {len(names)} other files"):
        read_folder(tmp_path)


@pytest.mark.parametrize("split", ["", "train", "Training"])
def test_an_empty_class_of_train_is_an_error(tmp_path, split):
    fill(tmp_path / split)
    (tmp_path / split / "green").mkdir()
    with pytest.raises(UserError, match="class folder .*green holds no image"):
        read_folder(tmp_path)


def test_an_empty_class_of_test_is_no_error_but_is_said(tmp_path, caplog):
    fill(tmp_path / "train")
    fill(tmp_path / "test", ["red"])
    (tmp_path / "test" / "blue").mkdir()
    assert count_labels(read_folder(tmp_path)["test"]) == {"red": 2}
    assert "blue is empty" in caplog.text


@pytest.mark.parametrize("ending", [".HEIC", ".dcm", ".png?w=300", ""])
def test_what_is_skipped_is_counted_and_named(tmp_path, caplog, ending):
    fill(tmp_path)
    for index in range(3):
        (tmp_path / "red" / f"odd{index}{ending}").write_bytes(b"x")
    assert count_labels(read_folder(tmp_path)["train"]) == {"blue": 2, "red": 2}
    assert "skipped 3 of 7 files" in caplog.text and f"odd0{ending}" in caplog.text
    caplog.clear()
    assert predicted_files(tmp_path / "red") == ["0.png", "1.png"]
    assert "skipped 3 of 5 files" in caplog.text


# Litter


@pytest.mark.parametrize(
    "litter",
    ["__MACOSX", "@eaDir", ".git", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "#recycle", "__pycache__"],
)
def test_folders_of_systems_and_programs_never_count(tmp_path, caplog, litter):
    fill(tmp_path)
    draw(tmp_path / litter / "thumb.png")
    draw(tmp_path / "red" / litter / "thumb.png")
    assert count_labels(read_folder(tmp_path)["train"]) == {"blue": 2, "red": 2}
    assert len(predicted_files(tmp_path)) == 4
    assert caplog.text == ""


def test_files_of_systems_are_passed_over_without_a_word(tmp_path, caplog):
    fill(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (tmp_path / "red" / name).write_bytes(b"x")
    assert count_labels(read_folder(tmp_path)["train"]) == {"blue": 2, "red": 2}
    assert caplog.text == ""


@pytest.mark.parametrize("stray", ["docs", "__MACOSX", "notebooks", "raw/blue"])
def test_a_stray_folder_beside_the_splits_is_left_out(tmp_path, caplog, stray):
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=1)
    draw(tmp_path / stray / "figure.png")
    splits = read_folder(tmp_path)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4, "test": 2}
    assert ("left out are the folders" in caplog.text) is (stray != "__MACOSX")


def test_a_class_may_be_called_train(tmp_path):
    rows = read_folder(fill(tmp_path, ["car", "plane", "train"]))["train"]
    assert count_labels(rows) == {"car": 2, "plane": 2, "train": 2}


# Links


def test_linked_files_classes_and_splits_are_read(tmp_path):
    real, linked = fill(tmp_path / "real"), tmp_path / "linked"
    (linked / "train" / "mixed").mkdir(parents=True)
    (linked / "train" / "red").symlink_to(real / "red")
    (linked / "train" / "mixed" / "a.png").symlink_to(real / "blue" / "0.png")
    (linked / "test").symlink_to(real)
    splits = read_folder(linked)
    assert count_labels(splits["train"]) == {"mixed": 1, "red": 2}
    assert count_labels(splits["test"]) == {"blue": 2, "red": 2}
    assert splits["test"][0]["image"].size == (6, 4)
    assert len(predicted_files(linked)) == 7


def test_loops_of_links_end(tmp_path, caplog):
    fill(tmp_path)
    (tmp_path / "red" / "again").symlink_to(tmp_path)
    (tmp_path / "blue" / "self").symlink_to(".")
    (tmp_path / "red" / "nowhere").symlink_to("nowhere")
    assert len(find_images(tmp_path)) == 4
    assert "is passed over: the link leads back" in caplog.text


def test_folders_that_link_to_each_other_do_not_multiply(tmp_path):
    places = [tmp_path / f"f{index}" for index in range(9)]
    for place in places:
        place.mkdir()
        for other in places:
            (place / f"to-{other.name}").symlink_to(other)
    draw(places[0] / "x.png")
    assert 0 < len(list_files(tmp_path)) < 2000


def test_a_broken_link_to_an_image_is_a_row_and_not_skipped(tmp_path):
    fill(tmp_path)
    (tmp_path / "red" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert len(read_folder(tmp_path)["train"]) == 5


# Names that are no text


@pytest.mark.parametrize("place", ["red/caf\udce9.png", "caf\udce9/0.png", "train/\udc82t\udc82/0.jpg"])
def test_an_image_whose_name_is_not_utf8_is_refused_in_one_sentence(tmp_path, place):
    if not place.startswith("train"):
        fill(tmp_path)
    draw(tmp_path / place)
    for read in (read_folder, find_images):
        with pytest.raises(UserError, match=r"name '.*\\udc.*' is not UTF-8.*convmv"):
            read(tmp_path)


def test_a_mask_whose_name_is_not_utf8_is_refused(tmp_path):
    draw(tmp_path / "images" / "a.png")
    draw(tmp_path / "masks" / "\udce9.png")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_folder(tmp_path)


def test_a_text_beside_the_images_may_have_any_name(tmp_path, caplog):
    fill(tmp_path)
    (tmp_path / "red" / "l\udce9eme.txt").write_text("x")
    assert len(read_folder(tmp_path)["train"]) == 4 and "skipped 1 of 5" in caplog.text
    assert caplog.text.encode()  # a terminal takes it


# Folders of classes that lie elsewhere


@pytest.mark.parametrize(
    ("roots", "advice"),
    [
        (["animals"], "--dataset .*/animals$"),
        (["My Photos"], "--dataset '.*/My Photos'$"),
        (["seg_train/seg_train", "seg_test/seg_test"], "one of seg_test/seg_test, seg_train/seg_train, name that"),
        (["training_set", "test_set"], "one of test_set, training_set, name that"),
    ],
)
def test_the_folder_above_the_classes_is_named(tmp_path, roots, advice):
    for root in roots:
        fill(tmp_path / root)
    with pytest.raises(UserError, match=advice):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["cover.png", "train/0.jpg"])
def test_images_without_a_class_are_told_of_metadata(tmp_path, name):
    fill(tmp_path / Path(name).parent)
    draw(tmp_path / name)
    with pytest.raises(UserError, match="folder of its class, or write metadata.csv"):
        read_folder(tmp_path)


# Metadata


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_above_the_splits_are_divided_by_folder(tmp_path, name):
    rows = [{"file_name": f"{s}/{i}.png", "label": "ab"[i % 2]} for s in ("train", "test") for i in range(4)]
    for row in rows:
        draw(tmp_path / row["file_name"])
    (tmp_path / "docs").mkdir()
    table = datasets.Dataset.from_list(rows)
    writers = {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}
    writers[name.split(".")[1]](str(tmp_path / name))
    splits = read_folder(tmp_path)
    assert {split: part["label"][:] for split, part in splits.items()} == {"train": list("abab"), "test": list("abab")}
    assert all(f"/{split}/" in path for split, part in splits.items() for path in part["file_name"])


def test_metadata_that_name_one_folder_are_train(tmp_path):
    draw(tmp_path / "train" / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/a.png,x\n")
    assert list(read_folder(tmp_path)) == ["train"]


def test_an_image_of_no_split_is_refused_and_does_not_become_train(tmp_path):
    for name in ("train/a.png", "test/b.png", "more/c.png"):
        draw(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/a.png,x\ntest/b.png,y\nmore/c.png,x\n")
    with pytest.raises(UserError, match="row 2 names .*more/c.png', which is of no split"):
        read_folder(tmp_path)


def test_images_that_metadata_do_not_name_are_counted(tmp_path, caplog):
    for index in range(4):
        draw(tmp_path / f"{index}.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,x\n1.png,y\n")
    assert len(read_folder(tmp_path)["train"]) == 2
    assert "do not name them: 2, " in caplog.text and "2.png" in caplog.text


def test_backslashes_of_windows_are_folders(tmp_path):
    draw(tmp_path / "images" / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\nimages\\a.png,x\n")
    rows = load_splits(SimpleNamespace(**{**vars(DataArguments()), "dataset": str(tmp_path), "train_file": None}))
    assert rows["train"]["file_name"][:] == [str(tmp_path / "images" / "a.png")]


@pytest.mark.parametrize("name", ["test.csv", "test.jsonl", "test.parquet"])
def test_a_table_of_images_alone_is_read(tmp_path, name):
    draw(tmp_path / "in" / "a.png")
    table = datasets.Dataset.from_dict({"image": ["in/a.png"]})
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[name.split(".")[1]](tmp_path / name)
    rows = read_folder(tmp_path)
    assert rows["test"].column_names == ["image"] and rows["test"]["image"][:] == [str(tmp_path / "in" / "a.png")]


def test_a_column_of_stored_paths_alone_is_read(tmp_path):
    draw(tmp_path / "in" / "a.png")
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [{"path": "in/a.png", "bytes": None}]}, features=features)
    assert resolve_images(rows, tmp_path, None)[0]["image"].size == (6, 4)


# Pairs and tables


def test_two_images_of_one_name_are_not_one(tmp_path):
    draw(tmp_path / "images" / "a.png")
    draw(tmp_path / "images" / "a.jpg")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(draw(tmp_path / "masks" / "a.png"))
    with pytest.raises(UserError, match="have one name"):
        read_folder(tmp_path)


def test_pairs_in_folders_inside_and_through_links_are_read(tmp_path):
    draw(tmp_path / "real" / "town" / "a.png")
    (tmp_path / "d").mkdir()
    for name in ("images", "masks"):
        (tmp_path / "d" / name).symlink_to(tmp_path / "real")
    rows = read_folder(tmp_path / "d")["train"]
    assert len(rows) == 1 and rows[0]["mask"].size == (6, 4)


def test_two_tables_of_one_split_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(UserError, match="two tables of one split"):
        read_folder(tmp_path)


def test_a_pipe_named_like_a_table_is_refused(tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(UserError, match="train.csv is a pipe or a device"):
        read_folder(tmp_path)
