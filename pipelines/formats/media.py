"""The frames of one video, wherever it lies: a folder of images, or a film."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from idol.images import live
from pipelines.errors import VideoError
from pipelines.sources import frames as frame_files

PNG = "[!.]*.[pP][nN][gG]"
"""What folders are searched for; macOS leaves files that begin with a dot."""

_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)  # EXIF: by a quarter, so that the sides are exchanged


class Frames:
    """The frames of a folder in natural order, or of a film.

    references: as of pipelines.sources.frames, absolute
    Raises: PipelineError, OSError: there is none that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))
        self.is_film = not self.path.is_dir()
        self.stated = 0
        if self.is_film:
            with frame_files.VideoReader(str(self.path), video_id=0) as film:
                self._size: tuple[int, int] | None = film.read(0).shape[:2]
                self.stated = film.stated
                length = _length(film)
            self.references = [f"{self.path}#{number}" for number in range(length)]
            self._names = [str(number) for number in range(length)]
        else:
            images = live.images_of(self.path)
            self.references = [str(image) for image in images]
            self._names = [image.stem for image in images]
        self._by_name = {name: index for index, name in enumerate(self._names)}
        numbers = [number_of(name) for name in self._names]
        distinct = None not in numbers and len(set(numbers)) == len(numbers)
        self._by_number = {n: i for i, n in enumerate(numbers)} if distinct else {}

    def __len__(self) -> int:
        return len(self.references)

    def find(self, name: str) -> int:
        """Position of the frame of this file stem, else of the same number: 7 is 000007.jpg.

        Raises: ValueError: there is none.
        """
        index = self._by_name.get(name, self._by_number.get(number_of(name)))
        if index is None:
            raise ValueError(
                f"there is no frame {name} in {self.path}, which has {len(self)} frames, "
                f"{self._names[0]} to {self._names[-1]}"
            )
        return index

    def size(self, indices: Iterable[int]) -> tuple[int, int]:
        """(height, width) of these frames. Raises: ValueError, OSError: they differ, or one is no
        image."""
        if self.is_film and self._size:
            return self._size
        sizes = {_size(Path(self.references[index])): self.references[index] for index in indices}
        if len(sizes) > 1:
            told = ", ".join(f"{path} is {h} x {w}" for (h, w), path in sorted(sizes.items())[:2])
            raise ValueError(f"frames of one video have different sizes (height x width): {told}")
        return next(iter(sizes))


def find(places: Iterable[Path]) -> Frames | None:
    """The first of these that is a folder of images, or a film once a suffix is added."""
    for place in places:
        if any(file.suffix.lower() in frame_files.IMAGE_SUFFIXES for file in _files(place)):
            return Frames(place)
        films = sorted(place.parent.glob(f"{glob.escape(place.name)}.*"))
        for film in films:
            if film.suffix.lower() in frame_files.VIDEO_SUFFIXES:
                return Frames(film)
    return None


def folders_of_png(root: Path) -> list[Path]:
    """The folders from root on that hold PNG files, in order of name."""
    return sorted({file.parent for file in root.rglob(PNG)}, key=lambda p: live.natural(str(p)))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image, its pixels not read yet. Raises: ValueError: it cannot be read."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def _files(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def number_of(name: str) -> int | None:
    """The last whole number in a name: 12 of frame_000012; None: it has none."""
    digits = re.findall(r"[0-9]+", name)
    return int(digits[-1]) if digits else None


def _size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as it is shown, from its first bytes."""
    with opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)


def _length(film: frame_files.VideoReader) -> int:
    """Frames that can be decoded: some containers state too many, others none."""
    length = len(film)
    if length:
        try:
            film.read(length - 1)
            if film.stated or film.read_or_end(length) is None:
                return length
        except VideoError:
            pass
    return sum(1 for _ in film)
