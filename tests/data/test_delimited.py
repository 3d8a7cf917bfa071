"""Every row of a CSV or TSV file is read as it stands there, or the file is refused: none vanishes in a text."""

import csv
import io
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hftl.data.delimited import find_layout, read_records
from hftl.data.files import read_tables
from hftl.data.stream import open_stream
from hftl.errors import UserError

ROWS = [(f"text {i}", ("animal", "motion")[i % 2]) for i in range(24)]


def write(path, rows, separator, header=("text", "label")):
    path.write_text("".join(separator.join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    return path


def read_both(path):
    """What training reads and what `hftl predict` reads, which must be the same."""
    table = read_tables({"train": str(path)}, text_columns=["text"])["train"]
    stream = open_stream(str(path), SimpleNamespace(), "text")
    (window, *more) = stream.read(list(stream.features), 10_000)
    assert not more and stream.num_rows == len(table) == len(next(iter(window.values())))
    assert {name: list(map(str, values)) for name, values in table[:].items()} == {
        name: list(map(str, values)) for name, values in window.items()
    }
    return table.to_list()


def quote_starts(rows, *places):
    return [('"' + text if place in places else text, label) for place, (text, label) in enumerate(rows)]


@pytest.mark.parametrize("places", [(3, 14), (3,), (0, 1, 23)])
def test_a_tsv_that_nobody_quoted_keeps_its_rows(tmp_path, places):
    rows = quote_starts(ROWS, *places)
    found = read_both(write(tmp_path / "a.tsv", rows, "\t"))
    assert [(row["text"], row["label"]) for row in found] == rows


def test_a_tsv_text_that_opens_and_one_that_ends_a_quotation_are_two_rows(tmp_path):
    rows = [*ROWS[:3], ('"He came', "animal"), ("and saw", "motion"), ('and won"', "animal"), *ROWS[3:]]
    found = read_both(write(tmp_path / "a.tsv", rows, "\t"))
    assert [(row["text"], row["label"]) for row in found] == rows


@pytest.mark.parametrize(
    "rows",
    [
        quote_starts(ROWS, 3, 14),
        quote_starts(ROWS, 3),
        [*ROWS[:3], ('"He came', "animal"), ("and saw", "motion"), ('and won"', "animal"), *ROWS[3:]],
        [(label, text) for text, label in [*ROWS[:3], ('"He came', "animal"), ('he won"', "motion"), *ROWS[3:]]],
        [('"Hello" she said', "animal"), *ROWS],
    ],
    ids=["two open", "one opens", "opens and ends", "label first", "text behind"],
)
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_csv_in_which_quotation_marks_would_swallow_rows_is_refused(tmp_path, rows, separator):
    path = write(tmp_path / "a.csv", rows, separator)
    with pytest.raises(UserError, match="in line [0-9]+") as refused:
        read_both(path)
    assert "quotation mark" in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ['"say \\"hi\\" now",x', '"say \\"hi\\", now",x', '"\\"hi\\"",x', '"he said \\"",x'],
)
@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_backslashes_before_quotation_marks_are_refused(tmp_path, text, name, separator):
    path = tmp_path / name
    path.write_text(f"text{separator}label\na{separator}y\n{text.replace(',x', separator + 'x')}\n")
    with pytest.raises(UserError, match="backslash; double them|ends it|none ends it"):
        read_both(path)


@pytest.mark.parametrize("line", ['say \\"hi\\" now,x', '\\",x', '"a, b",the \\"x\\"', 'size 20\\",x'])
def test_backslashes_in_place_of_quotation_marks_are_refused(tmp_path, line):
    """As `csv.writer` writes them with `doublequote=False` and an `escapechar`."""
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\na,y\n{line}\n")
    with pytest.raises(UserError, match="in line 3 .* backslash; double them"):
        read_both(path)


@pytest.mark.parametrize("text", ['a \\ "b"', "C:\\dir\\", '\\"', 'ends with a backslash \\"', '"'])
def test_backslashes_in_texts_that_are_quoted_stay(tmp_path, text):
    path, out = tmp_path / "a.csv", io.StringIO()
    csv.writer(out).writerows([("text", "label"), (text, "x"), ("b", "y")])
    path.write_text(out.getvalue(), newline="")
    assert read_both(path)[0]["text"] == text


@pytest.mark.parametrize(
    "text",
    [
        "Dear Sir,\nthank you, and\nbye",
        "a, b\nc",
        'He said "no",\nand left',
        "line\r\nline, and line",
        "\n\n",
        "C:\\folder\\",
        'a 20" pipe',
    ],
)
def test_texts_that_a_writer_of_csv_quoted_are_read(tmp_path, text):
    rows = [*ROWS, (text, "animal"), ("a, b", "motion")]
    for name, dialect in (("a.csv", "excel"), ("a.tsv", "excel-tab"), ("b.csv", "unix")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, dialect).writerows([("text", "label"), *rows])
        assert [(row["text"], row["label"]) for row in read_both(tmp_path / name)] == rows


@pytest.mark.parametrize(
    "content",
    [
        "text;label\na, b;x\n1,5;y\n",
        "sep=;\ntext;label\na, b;x\n1,5;y\n",
        '"sep=;"\r\ntext;label\r\na, b;x\r\n1,5;y\r\n',
        "text\tlabel\na, b\tx\n1,5\ty\n",
        "text|label\na, b|x\n1,5|y\n",
        'text,label\n"a, b",x\n"1,5",y\n',
        '\ufefftext , label\n"a, b",x\n\n"1,5",y\n',
        'text,label\r"a, b",x\r"1,5",y\r',
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_the_separator_is_the_one_that_the_file_uses(tmp_path, content, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content.encode())
    assert read_both(path) == [{"text": "a, b", "label": "x"}, {"text": "1,5", "label": "y"}]


def test_a_file_of_one_column_is_read_whatever_its_texts_hold(tmp_path):
    path = write(tmp_path / "a.csv", [("a; b",), ("c | d",), ("e",)], ",", ("text",))
    assert [row["text"] for row in read_both(path)] == ["a; b", "c | d", "e"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,x\nb\nc,y\n", "Expected 2 fields in line 3, saw 1.*fewer fields than its header"),
        ("text,label\na,x\n\nb,c,y\n", "Expected 2 fields in line 4, saw 3.*more fields than its header"),
        ("text\na, b\n", "Expected 1 fields in line 2, saw 2"),
        ('text,label\n"a, b", "x"\n', "line 2 blanks stand in front of a quotation mark"),
    ],
)
def test_rows_of_another_length_than_the_header_are_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_both(tmp_path / "a.csv")


def test_two_columns_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "a.csv").write_text(",text, text,label\n0,a,b,x\n1,c,d,y\n")
    assert list(read_both(tmp_path / "a.csv")[0]) == ["Unnamed: 0", "text.1", "text.2", "label"]


CELLS = st.text(alphabet='ab ",;\t\n\r\\|é#', min_size=1, max_size=12).filter(lambda text: text.strip())


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(st.lists(st.tuples(CELLS, st.sampled_from(["x", "y"])), min_size=1, max_size=6), st.sampled_from(",;\t"))
@example([('"', "x"), ('",x\n"', "y")], ",")
@example([("a,x\nb", "y"), ("c", "x")], ",")
def test_what_a_writer_of_csv_wrote_is_read_as_it_was_or_refused(tmp_path_factory, rows, separator):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows([("text", "label"), *rows])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(buffer.getvalue().encode())
    try:
        found = read_both(path)
    except UserError as error:
        assert "line" in str(error)
    else:
        assert [(row["text"], row["label"]) for row in found] == rows


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(st.lists(st.text(alphabet='ab "\\', min_size=1, max_size=6).filter(str.strip), min_size=3, max_size=8))
def test_a_tsv_has_as_many_rows_as_lines(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    path.write_text(
        "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *zip(texts, "xyxyxyxy", strict=False)])
    )
    try:
        found = read_both(path)
    except UserError:
        return
    assert len(found) == len(texts)


MANY = [(f"text {index}", "ab"[index % 2]) for index in range(30)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label,note\n" + "".join(f"{t},{v}{',x' * (i < 16)}\n" for i, (t, v) in enumerate(MANY))),
        ("a.csv", "text;label;n;m\n" + "".join(f"{t};{v}{';;' * (i < 16)}\n" for i, (t, v) in enumerate(MANY))),
        ("a.tsv", "text\tlabel\tn\n" + "".join(f"{t}\t{v}{chr(9) * (i % 3 == 0)}\n" for i, (t, v) in enumerate(MANY))),
        ("a.csv", "text,label\n" + "".join(f"{t},{v}\n" for t, v in MANY) + ",\n,\n"),
        ("a.csv", "text;label;n\r\n" + "".join(f"{t};{v};\r\n" for t, v in MANY) + ";;\r\n" * 3),
    ],
)
def test_empty_cells_that_excel_leaves_out_or_adds_at_the_end_change_no_row(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    layout = find_layout(path)
    assert layout.num_rows == len(MANY)
    assert [(row[0], row[1]) for row in read_records(path, layout)] == MANY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\n" + "".join(f"{t},{v}\n" for t, v in MANY) + "half\nother,a\n", "fewer fields"),
        ("label,text\n" + "".join(f"{v},{t}\n" for t, v in MANY) + "a,half\nother\n", "fewer fields"),
        ("id,text,n\n" + "".join(f"{i},{t},\n" for i, (t, _) in enumerate(MANY)) + "9,half\nmore, or\n", "fewer"),
        ('"text","label"\n"1","x","a"\n', "if the rows have names, as R writes them"),
        ("text,label\nx,a,\ny,b,\n", "end the header as the rows end"),
    ],
)
def test_parts_of_texts_are_no_short_rows(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        find_layout(path)
