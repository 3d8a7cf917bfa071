"""How are the bytes of a text file read, and in which encoding are they if not in UTF-8?

Files are UTF-8, with or without a byte order mark, packed or not. Any other is refused: the encoding is guessed from
what its letters would be, and the command that converts it is named. Must not know what the text means.
"""

import codecs
import gzip
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from hftl.errors import UserError

UNPACKED = (OSError, EOFError, zlib.error)  # what gzip raises at a broken file
LOOKED_AT = 1 << 20  # bytes from the first that is not UTF-8
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
SHEET = "save the sheet as CSV UTF-8"
NO_TEXTS = {
    b"PK\x03\x04": ("a ZIP archive, as those of .xlsx and .ods are", f"{SHEET}, or unpack it"),
    b"\xd0\xcf\x11\xe0": ("an Excel file", SHEET),
    b"\x1f\x8b": ("packed by gzip", "let its name end in .gz"),
    b"PAR1": ("a Parquet file", "let its name end in .parquet"),
    b"BZh": ("packed by bzip2", "unpack it"),
    b"\xfd7zXZ": ("packed by xz", "unpack it"),
    b"(\xb5/\xfd": ("packed by Zstandard", "unpack it"),
    b"SQLite format 3": ("a database of SQLite", "export its table as CSV"),
    b"%PDF": ("a PDF file", "write its texts into a table"),
}
_WESTERN = "éèàüäöáíóñçêßôîâúãåøæ’“”–—…«»°€£¿¡"
_RUSSIAN = "оеаинтсрвлкмдпу", "йцгшщзхъфыжэячьбюёіїєґ" + "".join(map(chr, range(0x410, 0x430))) + "«»–—№“”"
_JAPANESE = "".join(map(chr, range(0x3041, 0x30FF))) + "、。", "「」"
_KOREAN = "이다는고에의가을지하한나도로아사어기리라그시자정서영인", "".join(map(chr, range(0xAC00, 0xD7A4)))
_CHINESE = "的一是不了在人有我他中大上下好很看自之年心天生也子可你到得要就那，。！？"
# Encoding as Python and iconv call it -> frequent letters of texts in it, apart from ASCII, and further ones, which
# count half. Of two that explain a file equally well the first is named.
LETTERS = {
    "CP1252": (_WESTERN, "ëìïòõùûýÿœÀÁÂÃÄÅÆÇÈÉÊÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝŒ‘"),
    "CP1250": (_WESTERN + "ąćęłńśźżčďěňřšťůžőűăşţý", "ĄĆĘŁŃŚŹŻČĎĚŇŘŠŤŮŽŐŰÁÉÍÓÚ"),
    "CP1251": _RUSSIAN,
    "KOI8-R": _RUSSIAN,
    "CP932": _JAPANESE,
    "EUC-JP": _JAPANESE,
    "CP949": _KOREAN,
    "GB18030": (_CHINESE + "这们来为国说时会对学家过电动难欢", ""),
    "BIG5": (_CHINESE + "這們來為國說時會對學家過電動難歡", ""),
    "CP1253": ("αοιετσνηυρκπλμςάέήίόύώ", "βγδζθξφχψωΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩΆΈΉΊΌΎΏ"),
    "CP1254": (_WESTERN + "ığş", "İĞŞÇÖÜ"),
    "CP1255": ("יוהאלרבמתשנדחטע", "".join(map(chr, range(0x5D0, 0x5EB)))),
    "CP1256": ("اليمنرتبوهة", "".join(map(chr, range(0x621, 0x64B))) + "،؟"),
    "CP874": ("านรอกเงมยลวดทสตคป่้ัีิ์ไ", "".join(map(chr, range(0xE01, 0xE4F)))),
    "MACINTOSH": (_WESTERN, "ëìïòõùûýÿœÀÁÂÃÄÅÆÇÈÉÊÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝŒ‘"),
    "CP850": (_WESTERN, "ëìïòõùûýÀÁÂÃÄÅÆÇÈÉÊÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝ"),
    "CP866": _RUSSIAN,
}
_PYTHON_NAMES = {"MACINTOSH": "mac-roman"}
_TITLES = {"CP932": "Shift-JIS (CP932)", "CP1252": "Windows-1252 (CP1252)"}
_WEIGHTS = {"GB18030": 8, "BIG5": 8, "CP932": 2, "EUC-JP": 2, "CP949": 1}  # Chinese has thousands of letters


def ending(path: str | Path) -> str:
    """The last ending of a name, small, that of a packed file without its `.gz`."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def open_text(path: Path, newline: str | None = None, errors: str | None = None) -> TextIO:
    """A text file, also one that ends in .gz; `newline` and `errors` as `open` takes them."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig", newline=newline, errors=errors)


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where it ends in .gz."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def read_bytes(path: Path) -> bytes:
    """All of a file, unpacked."""
    with open_bytes(path) as file:
        return file.read()


def read_lines(path: Path) -> Iterator[str]:
    r"""The lines of a text, which end at \n, \r\n and \r alone: `splitlines` would cut at U+2028 and \x85 as well.

    Raises:
        UserError: it is not UTF-8, or not packed as its name says.
    """
    with open_text(path) as file:
        try:
            for line in file:
                if "\0" in line and (detect_encoding(read_bytes(path)) or "").startswith("UTF"):
                    raise not_utf8(path)
                yield line.removesuffix("\n")
        except UnicodeDecodeError as error:
            raise not_utf8(path) from error
        except UNPACKED as error:
            raise UserError(f"Cannot read {path}: {error}. Check the file.") from error


def not_utf8(path: Path) -> UserError:
    """What is wrong with a file that could not be read as UTF-8, and the command that mends it."""
    try:
        data = read_bytes(path)
    except UNPACKED as error:
        return UserError(f"Cannot read {path}: {error}. Check the file.")
    for mark, (kind, advice) in NO_TEXTS.items():
        if data.startswith(mark):
            return UserError(f"{path} is no text but {kind}; {advice}.")
    found = detect_encoding(data)
    if found is None:
        place, count = _find_broken(data)
        line = data.count(b"\n", 0, place) + 1
        return UserError(
            f"{path} is not UTF-8 but for {count:,} of its bytes, the first in line {line:,} ({data[place]:#x}). "
            f"Repair them, or leave them out with {_convert(path, 'UTF-8', ' -c')}."
        )
    title = _TITLES.get(found, found)
    return UserError(f"{path} is not UTF-8 but, it seems, {title}; convert it with {_convert(path, found)}.")


def _convert(path: Path, encoding: str, flag: str = "") -> str:
    source, target = shlex.quote(str(path)), shlex.quote(f"utf8-{path.name.removesuffix('.gz')}")
    if path.suffix.lower() == ".gz":
        return f"`gunzip -c {source} | iconv{flag} -f {encoding} -t UTF-8 > {target}`"
    return f"`iconv{flag} -f {encoding} -t UTF-8 {source} > {target}`"


def detect_encoding(data: bytes) -> str | None:
    """The encoding of bytes that are no UTF-8, by the name that iconv knows; None: UTF-8 with a few broken bytes."""
    for mark, name in MARKS.items():
        if data.startswith(mark):
            return name
    begin = data[:LOOKED_AT]
    if begin.count(0) > len(begin) // 8:  # texts of two bytes a letter, most of them ASCII
        return "UTF-16LE" if begin[1::2].count(0) > begin[::2].count(0) else "UTF-16BE"
    place, count = _find_broken(data)
    near = data[max(0, place - 1000) : place + LOOKED_AT]
    if count * 4 < len(near.decode("utf-8", "ignore").encode()) - sum(byte < 128 for byte in near):
        return None
    lines = near.split(b"\n")
    sample = b"\n".join(lines[1:-1] if len(lines) > 2 else lines)  # a letter may be cut at both ends
    sample = sample if any(byte > 127 for byte in sample) else near
    return max(LETTERS, key=lambda name: _fit(sample, name))


def _find_broken(data: bytes) -> tuple[int, int]:
    """Where the first byte is that is not UTF-8, and how many such places follow in what is looked at."""
    try:
        data.decode("utf-8")
        return 0, 0
    except UnicodeDecodeError as error:
        place = error.start
    return place, data[place : place + LOOKED_AT].decode("utf-8", "replace").count("\ufffd")


def _fit(sample: bytes, name: str) -> float:
    """How far the letters that are not ASCII are those of texts in this encoding: 0 to 1, below if it cannot be."""
    try:
        text = sample.decode(_PYTHON_NAMES.get(name, name))
    except (UnicodeDecodeError, LookupError):
        return -1.0
    worth = dict.fromkeys(LETTERS[name][1], 0.5) | dict.fromkeys(LETTERS[name][0], 1.0)
    is_latin = LETTERS[name][0].startswith(_WESTERN)
    found, count = 0.0, 0
    for run in re.findall(r"[^\x00-\x7f]+", text):  # accents stand alone among ASCII, letters of other scripts do not
        usual = 1.0 if is_latin == (len(run) <= 2) or name in _WEIGHTS else 0.5
        found += usual * sum(worth.get(letter, 0.0) for letter in run)
        count += len(run)
    return min(1.0, _WEIGHTS.get(name, 1) * found / max(count, 1))
