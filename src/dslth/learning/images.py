"""Image files, as bytes of the shape that a network takes; Pillow reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dslth.errors import DataError, DslthError
from dslth.learning.dataset import Images

__all__ = ["read_images"]


def read_images(paths: Sequence[Path], shape: tuple[int, ...] | None) -> Images:
    """Read image files, grey or in colours, and scale them to ``shape`` (channels, height, width).

    Without a shape all must have the same size, and come in colours unless all are grey.

    Raises DataError, or DslthError without Pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DslthError("to read image files takes Pillow: pip install 'dslth[images]'") from None
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise DataError(f"{paths[0]}: images have the shape (1 or 3 channels, height, width), not {shape}")
    read = []
    for path in paths:
        try:
            with Image.open(path) as image:
                if shape is not None:
                    scaled = image.convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1]))
                else:
                    scaled = image if image.mode == "L" else image.convert("RGB")
                    scaled.load()
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or "not an image in a format that Pillow knows"
            raise DataError(f"{path}: {reason}") from None
        read.append(scaled)
    if len(sizes := {image.size for image in read}) > 1:
        raise DataError(f"{paths[0].parent}: images of {len(sizes)} sizes; give one with data.shape, as in [3, 32, 32]")
    if len({image.mode for image in read}) > 1:
        read = [image.convert("RGB") for image in read]
    arrays = [np.asarray(image, np.uint8).reshape(image.height, image.width, -1).transpose(2, 0, 1) for image in read]
    return np.stack(arrays)
