"""Where do the paths lead that data name? To images in the folder of the table."""

from pathlib import Path

import datasets
from PIL import Image

from hftl.errors import UserError

IMAGE_PATH_NAMES = ("image", "img", "image_path", "image_file", "file_name", "filename", "file_path", "path", "file")
MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask")


def resolve_images(table: datasets.Dataset, path: str, image_column: str | None) -> datasets.Dataset:
    """Makes image paths, which are relative to the folder of their table, absolute."""
    folder = Path(path).expanduser().absolute().parent
    names = [image_column] if image_column else [name for name in table.column_names if name in IMAGE_PATH_NAMES]
    names += [name for name in MASK_NAMES if name in table.column_names and name not in names]
    for name in names:
        feature = table.features.get(name)
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
            values = table[name][:]
            if name == image_column or is_image(Path(next(filter(None, values), ""))):
                if outside := [value for value in values if value and ".." in Path(value).parts]:
                    raise UserError(
                        f"The image path {outside[0]!r} of {path} leads out of the folder of the table. Move the "
                        "table to a folder above all images, or write full paths."
                    )
                absolute = [value and str(folder / value) for value in values]
                table = table.remove_columns(name).add_column(name, absolute, feature=datasets.Value("string"))
    return table


def is_image(path: Path) -> bool:
    """Whether the ending is one that Pillow reads; what is hidden is not."""
    return path.suffix.lower() in Image.registered_extensions() and not path.name.startswith(".")
