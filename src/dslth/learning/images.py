"""Images, as bytes of the shape that a network takes; Pillow reads them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dslth.errors import DataError, DslthError
from dslth.learning.dataset import Images

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_images", "stacked"]


def read_images(paths: Sequence[Path], shape: tuple[int, ...] | None) -> Images:
    """Read image files, see ``stacked``; raises DataError, or DslthError without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise DslthError("to read image files takes Pillow: pip install 'dslth[images]'") from None
    read = []
    for path in paths:
        try:
            with Image.open(path) as image:
                read.append(_converted(image, shape, path))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or "not an image in a format that Pillow knows"
            raise DataError(f"{path}: {reason}") from None
    return stacked(read, shape, paths[0].parent)


def stacked(images: "Iterable[Image]", shape: tuple[int, ...] | None, where: Path) -> Images:
    """Return images, grey or in colours, as one array, scaled to ``shape`` (channels, height, width).

    Without a shape all must have the same size, and come in colours unless all are grey. Raises DataError, which
    begins with ``where``.
    """
    read = [_converted(image, shape, where) for image in images]
    if len(sizes := {image.size for image in read}) > 1:
        raise DataError(f"{where}: images of {len(sizes)} sizes; give one with data.shape, as in [3, 32, 32]")
    if len({image.mode for image in read}) > 1:
        read = [image.convert("RGB") for image in read]
    arrays = [np.asarray(image, np.uint8).reshape(image.height, image.width, -1).transpose(2, 0, 1) for image in read]
    return np.stack(arrays)


def _converted(image: "Image", shape: tuple[int, ...] | None, where: Path) -> "Image":
    """Return an image as grey or in colours, of a shape if one is given, read and in memory."""
    if shape is None:
        converted = image if image.mode == "L" else image.convert("RGB")
        converted.load()
        return converted
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{where}: images have the shape (1 or 3 channels, height, width), not {shape}")
    return image.convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1]))
