"""MOTS of KITTI and MOTSChallenge: PNG of 16 bits, or text with a line for each mask.

A pixel is class * 1000 + number of the object, 10000 a region to ignore. A line is
`frame id class height width rle`. Frames have the numbers of their image files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from idol.masks import rle
from pipelines.formats import id_maps, media
from pipelines.formats.labels import Builder, Labels, Track

PER_CLASS = 1000
IGNORE = 10
"""The class of regions to ignore."""
NAMES = {1: "car", 2: "pedestrian"}
"""The classes of KITTI MOTS and MOTSChallenge."""
NAMES_FILE = "labels.txt"
"""Names of other classes: line n is the name of class n."""

_IMAGES = ("", "images", "image_02", "training/image_02", "train", "JPEGImages")
_TRUTH = "gt.txt"
_LINE = 1 << 20  # bytes of a line are looked at
_IGNORED = "ignore regions, left out (what is found there will count as wrong)"


def read(path: Path, frames: Path | None = None) -> Labels:
    """Read a text file, or all sequences below a folder: instances/SEQ/*.png, instances_txt/SEQ.txt
    or SEQ/gt/gt.txt.

    frames: folder that holds the sequences' images; default: looked for at the usual places
    Raises: ValueError, FileNotFoundError: there are no masks, or no frames to any of them.
    """
    top = path if path.is_dir() else path.parent
    names = _names(top)
    made = Builder(str(path), frames)
    bases = [frames] if frames is not None else [top, *list(top.resolve().parents)[:2]]
    for name, source in _sequences(path):
        with made.video(name):
            places = [b / i / name / s for b in bases for i in _IMAGES for s in ("", "img1")]
            found = media.find(place for place in places if place.resolve() != source.resolve())
            if found is None:
                raise ValueError(
                    f"there is no folder of images or film {name} in {' or '.join(map(str, bases))}"
                    ". Masks are called like the folder or film of their frames: rename "
                    f"{source.name} so, or name the folder that holds {name}: --frames"
                )
            read_one = _read_text if source.is_file() else _read_pictures
            read_one(made, name, source, found, names)
    return made.labels()


def is_text(file: Path) -> bool:
    """Whether a text file begins with a line of MOTS."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        words = lines.readline(_LINE).split()
    return len(words) > 5 and all(word.isdecimal() for word in words[:5])


def _sequences(path: Path) -> Iterator[tuple[str, Path]]:
    """(name, text file or folder of pictures); pictures go before texts, as both say the same."""
    if path.is_file():
        files, root = [path], path.parent
    else:
        inside = (path / name for name in ("instances", "instances_txt"))
        root = next((folder for folder in inside if folder.is_dir()), path)
        texts = sorted(file for file in root.rglob("*.txt") if file.name != NAMES_FILE)
        truth = [file for file in texts if file.name == _TRUTH]
        files = truth or texts or media.folders_of_png(root)
    for file in files:
        if file.name == _TRUTH:  # SEQ/gt/gt.txt
            yield file.absolute().parent.parent.name, file
        else:
            yield file.relative_to(root).as_posix().removesuffix(".txt"), file


def _names(top: Path) -> dict[int, str]:
    for folder in (top, top.parent):
        if (folder / NAMES_FILE).is_file():
            lines = (folder / NAMES_FILE).read_text(encoding="utf-8").splitlines()
            return {n: line.strip() for n, line in enumerate(lines, 1) if line.strip()}
    return NAMES


def _category(names: dict[int, str], number: int, where: str) -> str:
    if number not in names:
        known = ", ".join(f"{n} {name}" for n, name in sorted(names.items()))
        raise ValueError(
            f"{where} is of class {number}, which is unknown (known: {known}). Write the names "
            f"into {NAMES_FILE} beside the masks, that of class n on line n"
        )
    return names[number]


def _read_pictures(
    made: Builder, name: str, folder: Path, found: media.Frames, names: dict[int, str]
) -> None:
    maps = id_maps.read(folder, found)
    if maps.white is not None:
        raise ValueError(f"the pictures in {folder} do not have the 16 bits of MOTS")
    tracks = []
    for value, masks in sorted(maps.objects.items()):
        number = value // PER_CLASS
        if number == IGNORE:
            made.notes.add(_IGNORED, name, len(masks))
        else:
            category = _category(names, number, f"the value {value} in {folder}")
            tracks.append(Track(category, masks))
    if missing := len(found) - len(maps.positions):
        made.notes.add("frames without a mask file, left out of their video", name, missing)
    made.add(name, maps.size, [found.references[p] for p in maps.positions], tracks)


def _read_text(
    made: Builder, name: str, file: Path, found: media.Frames, names: dict[int, str]
) -> None:
    size = found.size(range(len(found)))
    tracks: dict[int, Track] = {}
    for n, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{file}, line {n}"
        words = line.split()
        if not words:
            continue
        if len(words) != 6 or not all(word.isdecimal() for word in words[:5]):
            raise ValueError(f"{where} is not `frame id class height width rle`: {line[:60]!r}")
        _, number, label, height, width = map(int, words[:5])
        position = found.find(words[0])
        if (height, width) != size:
            raise ValueError(
                f"{where} has a mask of {height} x {width} (height x width), its frame is "
                f"{size[0]} x {size[1]}"
            )
        if label == IGNORE:
            made.notes.add(_IGNORED, name)
            continue
        track = tracks.setdefault(number, Track(_category(names, label, where), {}))
        if track.category != names.get(label):
            raise ValueError(f"{where}: object {number} was {track.category!r} before")
        if position in track.masks:
            raise ValueError(f"{where}: object {number} has a second mask on frame {words[0]}")
        runs = rle.runs(words[5].encode())
        if runs is None or runs.sum() != height * width:
            raise ValueError(f"{where}: the RLE does not fill its {height} x {width} pixels")
        track.masks[position] = {"size": list(size), "counts": words[5]}
    made.add(name, size, found.references, [tracks[number] for number in sorted(tracks)])
