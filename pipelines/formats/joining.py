"""Several sources as one set, its categories united by name, and sets divided in two by video."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from idol.spool import Mapped, Spool
from idol.ytvis import annotations as annotation_files
from idol.ytvis import results as results_file
from idol.ytvis import truth
from idol.ytvis.repairs import Repairs
from idol.ytvis.videos import Annotations, Instance, Video
from pipelines.formats.labels import Labels
from pipelines.sources.annotations import inside_root
from pipelines.storage import paths
from pipelines.storage.paths import AnyPath


@dataclass(frozen=True, slots=True)
class Joined:
    """Videos of one set.

    categories: category_id -> name
    frames:     absolute folder, or address, that the videos' file_names are relative to
    labelled:   whether there are annotations, be it none
    scores:     instance_id -> score, of results
    notes:      what was dropped or merged; repairs: what reading mended, which it logs
    left_out:   source and video -> why it cannot be used
    """

    categories: Mapping[int, str]
    videos: Sequence[Video]
    frames: AnyPath
    labelled: bool
    notes: Repairs = field(default_factory=Repairs)
    repairs: Repairs = field(default_factory=Repairs)
    left_out: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)


def join(sources: Sequence[Labels]) -> Joined:
    """Read the sources by the rules of `idol.ytvis.annotations`, and unite them.

    A single source keeps its ids. The ids of several are renumbered from 1, in their order.

    Raises: ValueError: a source is no annotation file, none of its videos can be used, some have
            annotations and others none, or no place holds the frames of all.
    """
    root = _common([source.frames for source in sources])
    notes, repairs, left_out = Repairs(), Repairs(), dict[str, str]()
    parts: list[tuple[Annotations, Sequence[Video]]] = []
    for source in sources:
        found = annotation_files.parse(source.content, source.origin)
        for told, counts in ((notes, source.notes), (repairs, found.repairs)):
            for kind, (times, first) in counts.items():
                told.add(kind, f"{source.origin}: {first}", times)
        faults = {**source.left_out, **{f"video {r.video_id}": r.reason for r in found.rejects}}
        videos = Spool[Video]()
        for video in found.videos.values():
            try:
                videos.append(_placed(video, source.frames, root))
            except ValueError as error:
                faults[f"video {video.video_id}"] = str(error)
        left_out |= {f"{source.origin}: {name}": reason for name, reason in faults.items()}
        if not videos:
            why = next((f": {name}: {reason}" for name, reason in faults.items()), "")
            raise ValueError(f"{source.origin} has no video that can be used{why}")
        parts.append((found, videos))
    labelled = {found.listed is not None for found, _ in parts}
    if len(labelled) > 1:
        raise ValueError("some sources have annotations and others none; convert them apart")
    united: Sequence[Video]
    if len(parts) == 1:
        ((found, united),) = parts
        categories = found.categories
    else:
        categories, united = _united(parts, notes)
    taken: set[bytes] = set()
    for video in united:
        # Of all names the digests: the names themselves would take too much memory.
        frames = hashlib.sha256("\0".join(video.file_names or ()).encode()).digest()
        if frames in taken:  # a split may put one into each part
            notes.add("videos of the same frames as another, kept", f"video {video.video_id}")
        taken.add(frames)
    return Joined(categories, united, root, labelled.pop(), notes, repairs, left_out)


def _common(roots: Sequence[AnyPath]) -> AnyPath:
    """The place that holds all of these; ValueError: there is none."""
    storages = {_storage(root)[0] for root in roots}
    if len(storages) > 1:
        raise ValueError(
            f"the frames lie in {' and '.join(sorted(map(str, roots)))}: no place holds them all. "
            "Convert each source alone."
        )
    common = os.path.commonpath([_storage(root)[1] for root in roots])
    return paths.as_written(storages.pop() + common)


def _storage(root: AnyPath) -> tuple[str, str]:
    """ "s3://bucket" and "/folder", or "" and the path on the disk."""
    if isinstance(root, Path):
        return "", str(root)
    scheme, _, inner = root.address.partition("://")
    bucket, _, folder = inner.partition("/")
    return f"{scheme}://{bucket}", f"/{folder}"


def _placed(video: Video, old: AnyPath, new: AnyPath) -> Video:
    """The video with its frame paths relative to another root, above the old one."""
    if video.file_names is None:
        raise ValueError("it names no frames")
    below = Path(os.path.relpath(_storage(old)[1], _storage(new)[1]))
    names = []
    for name in video.file_names:
        inside = inside_root(name)
        if inside is None:
            raise ValueError(f"the frame path {name} leaves the frames root {old}")
        names.append((below / inside).as_posix())
    return dataclasses.replace(video, file_names=tuple(names))


def _united(
    parts: Sequence[tuple[Annotations, Sequence[Video]]], notes: Repairs
) -> tuple[dict[int, str], Spool[Video]]:
    numbers: dict[str, int] = {}
    videos = Spool[Video]()
    instance_ids = itertools.count(1)
    for found, own in parts:
        for name in found.categories.values():
            if name in numbers:
                notes.add("categories of one name, merged", f"{found.origin}: {name}")
            numbers.setdefault(name, len(numbers) + 1)
        for video in own:
            instances = tuple(
                dataclasses.replace(
                    one,
                    instance_id=next(instance_ids),
                    category_id=numbers[found.categories[one.category_id]],
                )
                for one in video.instances
            )
            replaced = dataclasses.replace(video, video_id=len(videos) + 1, instances=instances)
            videos.append(replaced)
    return {number: name for name, number in numbers.items()}, videos


def with_results(joined: Joined, path: Path, min_score: float = -np.inf) -> Joined:
    """The same videos with the entries of a results file instead of the truth.

    min_score: leave out entries below
    Raises: ValueError, OSError: the file cannot be read, or is of other videos or categories.
    """
    entries = results_file.read(path)
    categories = joined.categories
    if not joined.labelled and not categories:  # the names are in the checkpoint alone
        ids = {e.get("category_id") for e in entries if isinstance(e, dict)}
        categories = {i: str(i) for i in sorted(i for i in ids if isinstance(i, int))}
    known = {video.video_id for video in joined.videos}
    rows: dict[int, list[int]] = {video_id: [] for video_id in known}
    notes = Repairs(joined.notes)
    scores: dict[int, float] = {}
    for index, entry in enumerate(entries):
        results_file.check_ids(entry, index, known, categories, compat=False)
        scores[index + 1] = float(entry["score"])
        if entry["score"] < min_score:
            notes.add(f"entries with a score below {min_score}, left out", f"results[{index}]")
        else:
            rows[entry["video_id"]].append(index)
    videos = Spool[Video]()
    for video in joined.videos:
        indices = rows[video.video_id]
        own = [entries[i] for i in indices]
        empty = truth.without_instances(video.video_id, video.size, video.length)
        masks, areas = results_file.check_video(own, indices, empty)
        instances = tuple(
            Instance(index + 1, entry["category_id"], False, tuple(track))
            for index, entry, track in zip(indices, own, masks, strict=True)
        )
        videos.append(dataclasses.replace(video, instances=instances, areas=areas))
    return dataclasses.replace(
        joined, categories=categories, videos=videos, labelled=True, notes=notes, scores=scores
    )


def split(joined: Joined, share: float, seed: int) -> tuple[Joined, Joined]:
    """Divide by video, drawn with this seed; every category in both parts where possible.

    share:   of the videos that the first part gets, rounded, at least one in each part
    returns: both; the notes of the first say which categories are in one part alone
    Raises: ValueError: the share is not between 0 and 1, or there is a single video.
    """
    count = len(joined.videos)
    if not 0 < share < 1 or count < 2:
        raise ValueError(
            f"--split needs a share between 0 and 1 and two videos or more, got {share} and {count}"
        )
    free = [min(max(round(share * count), 1), count - 1)]
    free.append(count - free[0])
    order = np.random.default_rng(seed).permutation(count).tolist()
    inside = [{one.category_id for one in video.instances} for video in joined.videos]
    having = {c: [i for i in order if c in inside[i]] for c in joined.categories}
    parts: dict[int, int] = {}
    # The rarest first: it has the fewest videos to choose from.
    for videos in sorted(having.values(), key=len):
        for part in (1, 0) if len(videos) > 1 else ():
            rest = [i for i in videos if i not in parts]
            if rest and free[part] and part not in {parts.get(i) for i in videos}:
                parts[rest[0]] = part
                free[part] -= 1
    for i in order:
        if i not in parts:
            parts[i] = 0 if free[0] else 1
            free[parts[i]] -= 1
    notes = Repairs(joined.notes)
    for category_id, videos in having.items():
        if len({parts[i] for i in videos}) == 1:
            notes.add("categories in one part alone", joined.categories[category_id])
    first, second = (
        Mapped(lambda video: video, joined.videos, [i for i in range(count) if parts[i] == p])
        for p in (0, 1)
    )
    held_out = dataclasses.replace(
        joined, videos=second, notes=Repairs(), repairs=Repairs(), left_out={}
    )
    return dataclasses.replace(joined, videos=first, notes=notes), held_out
