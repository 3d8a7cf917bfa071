"""A file that is not UTF-8 is refused with the command that converts it, whatever kind of file it is."""

import gzip
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from hftl.data.encoding import detect_encoding, not_utf8
from hftl.data.files import read_tables
from hftl.data.stream import open_stream
from hftl.errors import UserError

TEXTS = {
    "cp1252": ("Le café était très bon, déjà vu", "Grüße aus München", "it’s fine", "¿qué tal, señor?"),
    "cp1250": ("To był bardzo dobry film, żółć i jaźń", "příliš žluťoučký kůň"),
    "cp1251": ("Это очень хороший фильм, мне понравилось", "стол и стул"),
    "koi8-r": ("Это очень хороший фильм, мне понравилось", "стол и стул"),
    "cp932": ("これはとても良い映画でした。", "映画が好き"),
    "euc-jp": ("これはとても良い映画でした。", "映画が好きです"),
    "cp949": ("이 영화는 정말 재미있었어요", "배송이 빠르고 좋아요"),
    "gb18030": ("这部电影真的很好看，我非常喜欢他的表演", "快递很快，东西也不错"),
    "big5": ("這部電影真的很好看，我非常喜歡他的表演", "我們都很喜歡這個"),
    "cp1253": ("Αυτή ήταν μια πολύ καλή ταινία", "Ωραίο προϊόν"),
    "cp1254": ("Çok güzel bir film, teşekkürler ağır", "bir yağmurlu gün, çığ düştü"),
    "utf-16": ("hello", "café"),
    "utf-16-le": ("hello there", "good bye"),
    "utf-16-be": ("hello there", "good bye"),
    "utf-32": ("hello", "café"),
}


@pytest.mark.parametrize(("encoding", "text"), [(name, text) for name, texts in TEXTS.items() for text in texts])
def test_the_encoding_of_a_text_is_detected(encoding, text):
    data = f"text,label\n{text},x\nplain words,y\n".encode(encoding)
    assert detect_encoding(data).lower().replace("-", "") == encoding.replace("-", "")


@pytest.mark.parametrize("encoding", ["utf-16", "cp932", "cp1252", "utf-16-le"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt", "a.csv.gz"])
def test_every_reader_names_the_command_that_converts_a_file(tmp_path, encoding, name):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS[encoding], "xy", strict=False)]
    content = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)
    if ".js" in name:
        content = (
            json.dumps(rows, ensure_ascii=False)
            if name == "a.json"
            else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        )
    if name == "a.tsv":
        content = content.replace(",x", "\tx").replace("text,", "text\t")
    path = tmp_path / name
    data = content.encode(encoding)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for read in (lambda: read_tables({"train": str(path)}), lambda: _read_stream(path)):
        with pytest.raises(UserError, match=f"{name} is not UTF-8 but") as refused:
            read()
        command = re.search("`(.*iconv.*)`", str(refused.value))[1]
        if shutil.which("iconv"):
            subprocess.run(command, shell=True, cwd=tmp_path, check=True)
            converted = tmp_path / f"utf8-{name.removesuffix('.gz')}"
            assert converted.read_text(encoding="utf-8-sig").strip() == content.strip()


def _read_stream(path):
    stream = open_stream(str(path), SimpleNamespace(), "text")
    return list(stream.read(list(stream.features), 10))


def test_a_utf8_file_with_a_broken_byte_is_not_said_to_be_another_encoding(tmp_path):
    data = "text,label\n" + "gréât ça été déjà vu très,x\n" * 20
    (tmp_path / "a.csv").write_bytes(data.encode() + b"caf\xe9,y\n")
    with pytest.raises(UserError, match=r"but for 1 of its bytes, the first in line 22 \(0xe9\)"):
        read_tables({"train": str(tmp_path / "a.csv")})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04\x14\0" + b"\0\x01" * 300, "ZIP archive.*save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel file"),
        (b"\x1f\x8b\x08\0", "packed by gzip; let its name end in .gz"),
        (b"PAR1\x15\xff", "let its name end in .parquet"),
    ],
)
def test_files_of_other_programs_are_named(tmp_path, data, message):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    assert re.search(message, str(not_utf8(path)))
