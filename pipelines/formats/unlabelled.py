"""Films and folders of images that nobody labelled."""

from __future__ import annotations

from pathlib import Path

from idol.images import live
from pipelines.formats import media
from pipelines.formats.labels import Builder, Labels
from pipelines.sources import frames as frame_files


def read(path: Path, frames: Path | None = None) -> Labels:
    """Read a film, or all films and folders of images below a folder.

    frames: folder that frame paths are relative to; default: the one that holds all
    Raises: ValueError: there is no video that can be used.
    """
    made = Builder(str(path), frames, labelled=False)
    for file in live.passed_over(path.rglob("*")):
        kind = "files passed over, as their suffixes are of no video that is known"
        made.notes.add(kind, str(file))
    for video in _videos(path):
        name = video.stem if video.is_file() else video.name
        with made.video(str(video)):
            found = media.Frames(video)
            size = found.size(range(len(found)))
            if found.stated not in (0, len(found)):
                kind = "films that state another number of frames than can be read, taken as read"
                made.notes.add(kind, f"{video} states {found.stated} and has {len(found)}")
            made.add(name, size, found.references)
    return made.labels()


def _videos(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    videos = set()
    for file in path.rglob("*"):
        if file.suffix.lower() in frame_files.VIDEO_SUFFIXES and file.is_file():
            videos.add(file)
        elif file.suffix.lower() in frame_files.IMAGE_SUFFIXES:
            videos.add(file.parent)
    return sorted(videos, key=lambda video: live.natural(str(video)))
