"""Whatever bytes a user has: the answer is a result or one sentence, never a traceback.

A few examples of each, always the same. `HFTL_TEST_EXHAUSTIVE=1 pytest tests/faults/test_fuzz.py` draws thousands of
new ones (HFTL_FUZZ_EXAMPLES of each).
"""

import io
import json
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hftl.config import flag_names, parse_args
from hftl.data.inputs import look_at
from hftl.data.pixels import to_rgb
from hftl.data.similarity import group_images, group_texts
from hftl.errors import UserError
from hftl.examples import load_examples
from hftl.tasks import build_task

# The readers of `datasets` 5.2 leave a broken file open until Python collects it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
IS_EXHAUSTIVE = os.environ.get("HFTL_TEST_EXHAUSTIVE") == "1"


def fuzz(examples):
    """Settings: `examples` draws that are always the same, or thousands of new ones."""
    many = int(os.environ.get("HFTL_FUZZ_EXAMPLES", "3000"))
    return settings(
        max_examples=many if IS_EXHAUSTIVE else examples,
        derandomize=not IS_EXHAUSTIVE,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The working folder, for files that examples name by accident."""
    before = os.getcwd()
    path = tmp_path_factory.mktemp("fuzz")
    os.chdir(path)
    yield path
    os.chdir(before)


def answer(function, *args):
    """The result, or None after one sentence; anything else is a bug and fails the test."""
    try:
        return function(*args)
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return None
    except SystemExit as exit:  # --help
        assert exit.code == 0
        return None


# Configuration

FLAGS = sorted(set(flag_names()) - {"--help"})
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["1", "-1", "0.5", "1e400", "nan", "true", "none", "{}", '{"a": [1]}', "[", "steps", "epoch", "\0"]
    ),
    st.integers().map(str),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def parse_text(text):
    Path("fuzz.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return parse_args(["fuzz.yaml", "--output_dir", "out"])


@fuzz(60)
@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=60)
    | st.text(alphabet=":-?!&*[]{}#|>'\"%@` \n\tab1", max_size=40)
)
@example("? [a]\n: b")
@example("a: &a [*a]")
@example("a: !!timestamp x")
@example("!!set {a, b}")
@example("!!omap [a]")
@example("=: 1")
@example("a: " + "{" * 3000)
@example("a: \ud800")
def test_yaml_text(text):
    answer(parse_text, text)


@fuzz(40)
@given(st.dictionaries(st.sampled_from([flag.removeprefix("--") for flag in FLAGS]), values, max_size=4))
def test_yaml_values_of_any_type(content):
    answer(parse_text, json.dumps(content))


@fuzz(60)
@given(st.lists(st.tuples(st.sampled_from(FLAGS), st.lists(words, max_size=2)), max_size=4))
@example([("--learning_rate", ["nan"])])
@example([("--seed", ["9" * 5000])])
@example([("--lr_scheduler_kwargs", ["["])])
@example([("--gradient_checkpointing", [])])
def test_flags(flags):
    typed = [word for name, following in flags for word in (name, *following)]
    answer(parse_args, [*typed, "--output_dir", "out"])


@fuzz(40)
@given(st.lists(words, max_size=5))
def test_words(typed):
    answer(parse_args, typed)


# Tables


def load(data, ending, *flags):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"rows{ending}"
        path.write_bytes(data)
        args = parse_args(["--train_file", str(path), "--mode", "full", "--output_dir", "out", *flags])
        return load_examples(args.data, build_task(args.data.task), 0)


cells = st.one_of(
    st.text(max_size=8), st.sampled_from(["", " ", "NA", "1", "-1", "0.5", '"', "\0", "a,b", "\r", "nan"])
)
tables = st.lists(st.lists(cells, min_size=1, max_size=3), max_size=8)


def as_csv(rows):
    return "\n".join(",".join(row) for row in [["text", "label"], *rows]).encode("utf-8", "surrogatepass")


@fuzz(25)
@given(
    st.one_of(
        tables.map(as_csv), st.binary(max_size=80), st.binary(max_size=40).map(lambda tail: b"text,label\n" + tail)
    )
)
@example(b'text,label\n"a')
@example(b"text,text\na,b\nc,d\n")
@example(b"\xef\xbb\xbftext,label\na,x\nb,y\nc,x\nd,y\n")
@example(b"text,label\n" + b"a,x\r" * 9)
@example(b"text,label\na\0b,x\nb,y\nc,x\nd,y\n")
@example(b"\n\n\n")
@example(b"text,label\n\n\n")
@example(b",\n,\n,\n")
def test_csv_bytes(data):
    answer(load, data, ".csv")


json_rows = st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), values, max_size=3), max_size=6)


@fuzz(25)
@given(st.one_of(json_rows.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()), st.binary(max_size=60)))
@example(b'{"text": "a", "label": 1}\n{"text": 3, "label": "x"}\n')
@example(b'{"text": ["a"], "label": 1}\n{"text": ["b"], "label": 0}\n')
@example(b"[" * 2000)
@example(b'{"text": "a", "label": 1' + b"0" * 400 + b"}\n")
@example(b'{"text": "\\ud800", "label": "x"}\n{"text": "b", "label": "y"}\n')
@example(b'{"text": {"\\u0000": {}, "": [null, null]}}')
@example(b'{"text": {"\\u0000": null, "": {}}}')
@example(b"null\n")
@example(b"3\n4\n")
def test_jsonl_bytes(data):
    answer(load, data, ".jsonl")


@fuzz(15)
@given(st.binary(max_size=60), st.sampled_from([".parquet", ".csv.gz", ".tsv", ".json"]))
def test_other_tables_of_bytes(data, ending):
    answer(load, data, ending)


CHATS = st.lists(
    st.fixed_dictionaries(
        {"messages": st.lists(st.dictionaries(st.sampled_from(["role", "content"]), scalars), max_size=2)}
    ),
    max_size=4,
)


@fuzz(15)
@given(CHATS)
def test_chats(rows):
    answer(load, "\n".join(map(json.dumps, rows)).encode(), ".jsonl", "--task", "causal-lm")


@fuzz(100)
@given(st.lists(st.lists(st.text(max_size=30), min_size=1, max_size=2), min_size=1, max_size=8))
def test_texts_are_grouped_whatever_they_hold(texts):
    groups = group_texts(texts)
    assert len(groups) == len(texts)
    assert len(set(group_texts([*texts, ["the same words twice"], ["The same words, twice!"]])[-2:])) == 1


# Images


def encode(kind, mode="RGB"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


SOUND = [encode(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO")] + [encode("PNG", "P")]


@st.composite
def damaged_images(draw):
    data = bytearray(draw(st.sampled_from(SOUND)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, min(len(data) - 1, 200)))
        data[place] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@fuzz(150)
@given(st.one_of(st.binary(max_size=60), damaged_images()))
def test_an_image_is_refused_or_can_be_read_by_all_that_follows(data):
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None}]}, features=features)

    (look,) = look_at(rows, "train", "image")

    if look.fault is None:
        assert to_rgb(rows[0]["image"]).mode == "RGB"
        assert np.isfinite(look.signature).all()
        assert len(group_images(np.stack([look.signature] * 2))) == 2
