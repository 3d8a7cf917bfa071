"""Words that start with #, and comments, in CoNLL files of every layout."""

import gzip

import pytest

from hftl.data.conll import read_conll
from hftl.errors import UserError

SENTENCES = [
    [("#Paris", "B-LOC"), ("is", "O"), ("old", "O")],
    [("I", "O"), ("like", "O"), ("#Rome", "B-LOC")],
    [("#", "O"), ("1", "O"), ("dog", "O")],
    [("#tbt", "O")],
    [("old", "O"), ("Rome", "B-LOC")],
]
WORDS = [[word for word, _ in sentence] for sentence in SENTENCES]


def write(path, sentences, separator="\t", comment=""):
    parts = ["".join(separator.join(row) + "\n" for row in sentence) for sentence in sentences]
    path.write_text("\n".join(comment + part for part in parts))
    return path


@pytest.mark.parametrize("separator", ["\t", " ", "  "])
@pytest.mark.parametrize("middle", [(), ("NN",), ("NN", "B-NP")])
def test_a_word_that_starts_with_a_hash_is_a_word(tmp_path, separator, middle):
    rows = [[(word, *middle, tag) for word, tag in sentence] for sentence in SENTENCES]
    found = read_conll(write(tmp_path / "a.conll", rows, separator))
    assert found["tokens"][:] == WORDS
    assert found["tags"][:] == [[tag for _, tag in sentence] for sentence in SENTENCES]


@pytest.mark.parametrize("comment", ["# sent_id = 3\n# text = a b\n", "# a comment\n", "#begin document (x)\n", "#\n"])
def test_a_line_without_the_columns_of_a_word_is_a_comment(tmp_path, comment):
    assert read_conll(write(tmp_path / "a.conll", SENTENCES, "\t", comment))["tokens"][:] == WORDS


def test_a_file_of_hashtags_alone_is_read(tmp_path):
    path = write(tmp_path / "a.conll", [[("#one",), ("#two",)], [("#three",)]])
    assert read_conll(path, needs_tags=False)["tokens"][:] == [["#one", "#two"], ["#three"]]
    path = write(tmp_path / "b.conll", [[("#one", "B"), ("#two", "I")], [("#three", "O")]], " ")
    assert read_conll(path)["tags"][:] == [["B", "I"], ["O"]]


@pytest.mark.parametrize("tag", ["B-TAG", "S_TAG", "b-tag"])
def test_a_tag_that_only_hashtags_have_is_a_tag(tmp_path, tag):
    path = write(tmp_path / "a.conll", [[("#one", tag), ("two", "O")]], " ")
    assert read_conll(path)["tags"][:] == [[tag, "O"]]


@pytest.mark.parametrize(
    "line, width", [("# newdoc", 2), ("#end document", 2), ("# sent_id 1", 3), ("# sent_id = 1", 4)]
)
def test_what_may_be_a_comment_or_a_word_is_refused_by_its_line(tmp_path, line, width):
    rows = [[("Rome", *["X"] * (width - 2), "B-LOC"), ("is", *["X"] * (width - 2), "O")]]
    path = write(tmp_path / "a.conll", [*rows, *rows], " ")
    path.write_text(path.read_text() + f"\n{line}\n" + path.read_text())
    with pytest.raises(UserError, match=f"line 7: '{line}' may be a comment or the word '#.*put tabs between"):
        read_conll(path)


def test_comments_of_conll_u_stay_comments(tmp_path):
    line = "1\t#Rome\tRome\tPROPN\t_\t_\t0\troot\t_\t_\n"
    (tmp_path / "a.conllu").write_text(f"# newdoc\n# text = #Rome\n{line}\n# x\n{line}")
    found = read_conll(tmp_path / "a.conllu")
    assert found["tokens"][:] == [["#Rome"], ["#Rome"]] and found["tags"][:] == [["PROPN"], ["PROPN"]]


@pytest.mark.parametrize(
    "text",
    [
        "1\tAm\tADP\tO\n2\tRhein\tPROPN\tB-LOC\n\n1\tund\tCONJ\tO\n",
        "# global.columns = ID FORM NER\n1\tAm\tO\n2\tRhein\tB-LOC\n\n1\tund\tO\n",
        "0 Am O\n1 Rhein B-LOC\n\n0 und O\n",
        "# global.columns = ID FORM NER\n1-2\tAmRhein\t_\n1\tAm\tO\n2\tRhein\tB-LOC\n\n1\tund\tO\n1.1\tso\t_\n",
    ],
)
def test_a_column_that_counts_the_words_is_passed_over(tmp_path, text):
    path = tmp_path / "a.conll"
    path.write_text(text)
    assert read_conll(path)["tokens"][:] == [["Am", "Rhein"], ["und"]]
    path.write_text("1 CD O\n2 CD B-X\n\n3 CD O\n")
    assert read_conll(path)["tokens"][:] == [["1", "2"], ["3"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Caf\xe9 O\n\n".encode("cp1252"), "CP1252"),
        ("Paris B-LOC\n\n".encode("utf-16"), "UTF-16"),
        (b"#begin document (a); part 000\n" + b"a 0 0 In IN * - - - S * -\n\n#end document\n", "OntoNotes"),
    ],
)
def test_files_in_other_encodings_and_layouts_are_named(tmp_path, data, message):
    path = tmp_path / "a.conll"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_conll(path)


def test_packed_words_are_read(tmp_path):
    path = tmp_path / "a.conll.gz"
    path.write_bytes(gzip.compress(b"Paris B-LOC\nis O\n\n"))
    assert read_conll(path)["tokens"][:] == [["Paris", "is"]]
