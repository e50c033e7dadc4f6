"""A results file as evaluation servers take it: checked entry by entry, then zipped."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idol.files import whole_file
from idol.ytvis import annotations as annotation_files
from idol.ytvis import lazy_rows
from idol.ytvis import results as results_file
from idol.ytvis.truth import without_instances

MEMBER = "results.json"
"""The one file in the archive, at its root."""


@dataclass(frozen=True, slots=True)
class VideoList:
    """What a benchmark says about its videos; for public test splits that is all there is.

    videos:     video_id -> ((height, width), frames)
    categories: category_ids
    """

    videos: dict[int, tuple[tuple[int, int], int]]
    categories: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Submission:
    """What was written.

    entries:        lines of results
    videos:         videos with any
    missing_videos: ids of listed videos without any: they will score as empty
    crowded:        (video_id, category_id) with more than 100 entries, of which the best 100 count
    """

    entries: int
    videos: int
    missing_videos: tuple[int, ...]
    crowded: tuple[tuple[int, int], ...]


class InvalidResults(ValueError):
    """Results that a server would refuse, or score as something else. problems: one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        plural = "" if count == 1 else "s"
        return f"{count} problem{plural}, nothing was written:\n" + "\n".join(self.problems)


def read_videos(path: str | Path) -> VideoList:
    """The videos of a YouTube-VIS or OVIS JSON, with truth or without.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lists no readable videos or categories.
    """
    data = lazy_rows.load_json(Path(path), "truth")
    if isinstance(data, Mapping):
        data = {**data, "annotations": []}  # whose faults are of no concern here
    known = annotation_files.parse(data, str(path))
    if known.rejects:
        first = known.rejects[0]
        raise ValueError(f"{path}: video {first.video_id}: {first.reason}")
    return VideoList(
        {video_id: (v.size, v.length) for video_id, v in known.videos.items()},
        tuple(known.categories),
    )


def problems(entries: Sequence[Any], videos: VideoList | None = None) -> list[str]:
    """Everything that is wrong with a results file, each with the entry's index.

    entries: the parsed file
    videos:  to check ids, sizes and lengths against. None: those of a video's first entry count
    """
    if not entries:
        return ["results is an empty list, which the official evaluator refuses"]
    found: list[str] = []
    shapes: dict[int, tuple[tuple[int, int] | None, int]] = {}
    for index, entry in enumerate(entries):
        where = f"results[{index}]"
        if isinstance(entry, Mapping) and "first_frame" in entry:
            found.append(
                f"{where} has 'first_frame': a prediction of a clip. Join clips first: "
                "python -m jobs.score --truth ... --results ... --join joined.json"
            )
            continue
        known_ids = _ids(entry)
        try:
            results_file.check_ids(
                entry,
                index,
                known_ids[0] if videos is None else videos.videos,
                known_ids[1] if videos is None else videos.categories,
                compat=False,
            )
        except ValueError as error:
            found.append(str(error))
        masks = entry.get("segmentations") if isinstance(entry, Mapping) else None
        if not isinstance(masks, list) or not known_ids[0]:
            continue
        video_id = known_ids[0][0]
        if videos is not None and video_id not in videos.videos:
            continue
        size, length = (
            shapes.setdefault(video_id, (_size(masks), len(masks)))
            if videos is None
            else videos.videos[video_id]
        )
        if size is None and _size(masks) is not None:
            size = _size(masks)
            shapes[video_id] = (size, length)
        found += _mask_problems(masks, index, video_id, size or (1, 1), length)
    return found


def _ids(entry: Any) -> tuple[list[Any], list[Any]]:
    """The entry's own video_id and category_id, where they can be ids at all."""
    values = [entry.get(k) if isinstance(entry, Mapping) else None for k in _ID_FIELDS]
    usable = [[v] if isinstance(v, int) and not isinstance(v, bool) else [] for v in values]
    return usable[0], usable[1]


_ID_FIELDS = ("video_id", "category_id")


def _size(masks: Sequence[Any]) -> tuple[int, int] | None:
    """(height, width) that the first mask states."""
    for mask in masks:
        size = mask.get("size") if isinstance(mask, Mapping) else None
        if (
            isinstance(size, list)
            and len(size) == 2
            and all(isinstance(s, int) and 0 < s < 2**16 for s in size)
        ):
            return size[0], size[1]
    return None


def _mask_problems(
    masks: Sequence[Any], index: int, video_id: int, size: tuple[int, int], length: int
) -> list[str]:
    entry = {"segmentations": masks}
    try:
        results_file.check_video([entry], [index], without_instances(video_id, size, length))
    except ValueError as error:
        if len(masks) != length:
            return [str(error)]
    else:
        return []
    # Something is wrong with at least one mask: look at each alone, to name them all.
    found = []
    for frame, mask in enumerate(masks):
        try:
            results_file.check_video(
                [{"segmentations": [mask]}],
                [index],
                without_instances(video_id, size, 1),
            )
        except ValueError as error:
            found.append(str(error).replace("segmentations[0]", f"segmentations[{frame}]", 1))
    return found


def zip_results(results: Path, out: Path) -> None:
    """Write the archive that servers take: equal files give equal bytes, whole or not at all."""
    with whole_file(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # The time of day would make equal files differ.
        member = zipfile.ZipInfo(MEMBER, (1980, 1, 1, 0, 0, 0))
        member.compress_type = zipfile.ZIP_DEFLATED
        member.file_size = results.stat().st_size
        with results.open("rb") as reader, archive.open(member, "w") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)


def write(results: str | Path, out: str | Path, videos: VideoList | None = None) -> Submission:
    """Check a results file and zip it; the file's bytes are kept, and equal files give equal zips.

    results: path of the results file
    out:     path of the zip; written whole or not at all
    videos:  see problems
    Raises:
        InvalidResults: with every problem.
        FileNotFoundError: there is no results file.
        ValueError: it is no JSON list.
    """
    source, target = Path(results), Path(out)
    entries = results_file.read(source)
    found = problems(entries, videos)
    if found:
        raise InvalidResults(found)
    zip_results(source, target)
    counts = Counter((entry["video_id"], entry["category_id"]) for entry in entries)
    having = {video_id for video_id, _ in counts}
    return Submission(
        entries=len(entries),
        videos=len(having),
        missing_videos=tuple(sorted(set(videos.videos) - having)) if videos is not None else (),
        crowded=tuple(sorted(key for key, n in counts.items() if n > results_file.MAX_TRACKS)),
    )
