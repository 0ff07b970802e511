"""Output files of generated images."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from darl_jax.generation.image_grid import image_grid, near_square
from darl_jax.generation.request import Request

GRID_FILE, ARRAYS_FILE, SETTINGS_FILE = "grid.png", "samples.npz", "settings.json"


class SampleFolder:
    """Folder of generated images, written one by one, with a picture of all of them at the end.

    Args:
      path: a new folder.
      settings: content of settings.json.
    """

    def __init__(self, path: Path, request: Request, settings: str):
        self._path = path
        (self._path / SETTINGS_FILE).write_text(settings + "\n")
        self._request = request
        self._images: list[UInt8[np.ndarray, "height width channel"]] = []
        for name, original in zip(request.names, request.originals, strict=False):
            self._save(f"{name}_original.png", original)

    def add(self, images: UInt8[np.ndarray, "image height width channel"]) -> None:
        """Writes the next images as PNGs."""
        request = self._request
        for image in images:
            original, number = divmod(len(self._images), request.each)
            prefix = f"{request.names[original]}_" if request.names else ""
            self._save(f"{prefix}{number:04d}.png", image)
            self._images.append(image)

    @property
    def count(self) -> int:
        """Number of images so far."""
        return len(self._images)

    def finish(self) -> Path:
        """Writes all images as one picture and as arrays. Returns the folder."""
        request, images = self._request, np.stack(self._images)
        arrays: dict[str, Any] = {"images": images}
        if request.names:
            rows = images.reshape(len(request.names), request.each, *images.shape[1:])
            arrays = {"images": rows, "originals": request.originals, "names": request.names}
            rows = np.concatenate([request.originals[:, None], rows], axis=1)
            grid = image_grid(rows, frame_first=True)
        else:
            grid = image_grid(near_square(images))
        Image.fromarray(grid).save(self._path / GRID_FILE)
        np.savez_compressed(self._path / ARRAYS_FILE, **arrays)
        return self._path

    def _save(self, name: str, image: UInt8[np.ndarray, "height width channel"]) -> None:
        gray = image.shape[-1] == 1
        Image.fromarray(image[..., 0] if gray else image).save(self._path / name)
