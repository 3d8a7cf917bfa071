"""Which picture is this? The one reader of images: training, prediction, evaluation, audit and masks decode by it.

It opens regular files alone, refuses what has too many pixels before it is decoded, never starts another program, and
turns a picture upright. Must not know columns or tables, and leaves the values of pixels as they are stored: `pixels`
makes colors of them, and `mask_numbers` classes.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hftl.errors import UserError

MAX_BYTES = 1 << 30  # of a file: 89 million pixels of 8 bytes, which is Pillow's limit uncompressed, are 0.7 GB
# Pillow reads EPS by starting Ghostscript, WMF by asking Windows; of the others it knows the name and no pixel.
NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class ImageFault(UserError):
    """An image that cannot be used.

    Attributes:
        kind: why, in words that are equal for equal reasons.
    """

    def __init__(self, kind: str, path: Any = None, detail: str = "") -> None:
        """Args:
        kind: as above.
        path: of the file, if it has one.
        detail: what else is known.
        """
        self.kind = kind
        super().__init__(kind + (f" ({detail})" if detail else "") + (f": {path}" if path else ""))


def is_image(path: Path) -> bool:
    """Whether the ending is one of an image that can be read; what is hidden is none."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in Image.OPEN and kind not in NOT_READ and not path.name.startswith(".")


def read_image(image: Any) -> Image.Image:
    """A picture, decoded and upright.

    Args:
        image: `{"bytes": ..., "path": ...}` as `datasets` has it, a path, or a PIL image.

    Raises:
        ImageFault: there is none, it cannot be read, or it has too many pixels.
    """
    opened = image if isinstance(image, Image.Image) else open_image(image)
    return _turn_upright(decode_image(opened, _name(image)))


def read_images(images: Sequence[Any], row_ids: Iterable[int]) -> list[Image.Image]:
    """The pictures of some rows.

    Raises:
        UserError: one cannot be used; the row is named.
    """
    with strict_pillow():
        return [read_row(image, row_id) for image, row_id in zip(images, row_ids, strict=True)]


def read_row(image: Any, row_id: int, read: Callable[[Any], Any] = read_image) -> Any:
    """What `read` makes of the image of a row.

    Raises:
        UserError: nothing; the row is named.
    """
    try:
        return read(image)
    except UserError as error:
        raise UserError(
            f"The image of row_id {row_id} cannot be used: {error}. Repair it, or leave it out."
        ) from error


def open_image(image: Any) -> Image.Image:
    """A picture whose header is read and whose pixels are not; `image` is as in `read_image`, but no PIL image."""
    data = load_bytes(image)
    with explained_decoding(_name(image)):
        Image.init()
        opened = Image.open(io.BytesIO(data), formats=[name for name in Image.ID if name not in NOT_READ])
    check_size(opened, _name(image))
    return opened


def decode_image(opened: Image.Image, path: Any = None) -> Image.Image:
    """All pixels of a picture, which `Image.verify` does not look at: it does not see that a JPEG is cut off."""
    check_size(opened, path)
    with explained_decoding(path):
        opened.load()
    return opened


def load_bytes(image: Any) -> bytes:
    """The file of an image, as it is stored."""
    fields = image if isinstance(image, dict) else {"path": image}
    data, path = fields.get("bytes"), fields.get("path")
    if data is None and isinstance(path, (str, Path)) and str(path):
        data = read_bytes(path)
    if not isinstance(data, bytes):
        raise ImageFault("no image")
    if not data:
        raise ImageFault("empty image file", path)
    return data


def read_bytes(path: str | Path) -> bytes:
    """A regular file; a pipe or a device has no end, so it is not opened."""
    try:
        file = Path(path)
        if not file.is_file():
            raise ImageFault("unreadable file" if file.exists() else "missing file", path)
        if file.stat().st_size > MAX_BYTES:
            raise ImageFault("too large a file for an image", path)
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        if isinstance(error, ImageFault):
            raise
        raise ImageFault("unreadable file", path) from error


def check_size(image: Image.Image, path: Any = None) -> None:
    """Pillow warns from its limit on and refuses twice as many; here its limit is the limit."""
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        detail = f"{image.width} x {image.height}, and at most {Image.MAX_IMAGE_PIXELS:,} are read"
        raise ImageFault("image with too many pixels", path, detail)


def find_turned_size(image: Any) -> tuple[int, int]:
    """Width and height of a picture when it is upright, from its header alone."""
    opened = open_image(image)
    return opened.size[::-1] if _read_orientation(opened) in _SIDEWAYS else opened.size


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Pillow's warning about an image inside of an image is an error; set once around threads, which share it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()  # threads would race to register Pillow's plugins
        yield


@contextlib.contextmanager
def explained_decoding(path: Any) -> Iterator[None]:
    """Whatever Pillow raises becomes an `ImageFault`."""
    try:
        yield
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFault("image with too many pixels", path) from error
    # Each format of Pillow fails in its own way: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise ImageFault("corrupt image", path) from error


def _turn_upright(image: Image.Image) -> Image.Image:
    """`ImageOps.exif_transpose` writes the other metadata anew, which fails where they are broken."""
    turn = _TURNS.get(_read_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # which say that it lies
        turned.info.pop(name, None)
    return turned


def _read_orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # metadata of a sound picture may be broken in any way: huggingface/datasets#7668
        return 1


def _name(image: Any) -> Any:
    return image.get("path") if isinstance(image, dict) else image if isinstance(image, (str, Path)) else None
