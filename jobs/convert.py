"""Anybody's labels → YouTube-VIS JSON, and back; several sets joined, or one divided.

python -m jobs.convert DAVIS KITTI_MOTS mine.xml --out instances.json --split 0.8
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jobs.options import command, places

if TYPE_CHECKING:
    from pipelines.formats import Joined
    from pipelines.storage.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Read labels in any known format and write them in another. Frames stay where they are.

    Sources: YouTube-VIS, OVIS, CocoVID and COCO JSON; mask folders of DAVIS and YouTube-VOS; MOTS
    as PNG or text; CVAT for video 1.1; SA-V; films and folders of images without labels. Several
    are joined, their categories by name.

    What was repaired, dropped or merged, and every video that was left out, is told on stderr. The
    last line of stdout is one JSON object: out, frames (the --frames of later jobs), videos,
    annotations, categories, and the counts of what was told.
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE [SOURCE ...]")
    ]
    """Files or folders; of JSON also addresses, such as s3://bucket/a.json."""
    out: Annotated[str, places.ANNOTATIONS]
    """JSON to write; for mots and png a new folder. Also an address."""
    frames: tuple[str, ...] = ()
    """Where the frames are: one place for all sources, or one for each. Default: where the format
    of a source has them."""
    format: Literal["auto", "json", "masks", "mots", "cvat", "sav", "videos"] = "auto"
    """Of the sources. auto: what each looks like. videos: without labels."""
    to: Literal["ytvis", "cocovid", "mots", "png"] = "ytvis"
    """Form to write: JSON; MOTS (16-bit PNG and text); PNG with a palette for each frame. The last
    two hold one object at a pixel: where masks overlap the higher score wins, and it is told how
    many pixels that cost."""
    results: str | None = None
    """Write this results.json of jobs.evaluate in place of the truth. Needs a single source, the
    JSON that was evaluated."""
    min_score: float = -math.inf
    """With --results: leave out entries of a lower score."""
    split: float | None = None
    """Share of the videos that OUT gets; the others go to a second output, named as in
    OUT_held_out.json. Every category is in both where that is possible."""
    seed: int = 0
    """Of the draw of --split."""


def _convert(job: Convert) -> dict[str, Any]:
    if not job.sources:
        raise ValueError("name one source or more")
    if len(job.frames) not in (0, 1, len(job.sources)):
        raise ValueError(
            f"--frames takes one place, or one for each of the {len(job.sources)} sources, "
            f"got {len(job.frames)}"
        )
    if job.results is None and job.min_score != -math.inf:
        raise ValueError("--min-score is of --results")
    if job.results is not None and len(job.sources) > 1:
        raise ValueError("--results needs a single source: ids of several are numbered anew")
    from pipelines.storage import paths

    outs = [paths.as_written(job.out)]
    if job.split is not None:
        outs.append(outs[0].parent / f"{outs[0].stem}_held_out{outs[0].suffix}")
        places.check(dataclasses.replace(job, out=str(outs[1])))
    from pipelines import formats
    from pipelines.formats import joining

    roots = job.frames if len(job.frames) > 1 else (*job.frames, None)[:1] * len(job.sources)
    given = [None if root is None else paths.as_written(root) for root in roots]
    pairs = zip(map(paths.as_written, job.sources), given, strict=True)
    joined = formats.join([formats.read(path, root, job.format) for path, root in pairs])
    if job.results is not None:
        with paths.local_file(paths.at(job.results)) as file:
            joined = joining.with_results(joined, file, job.min_score)
    parts = [joined]
    if job.split is not None:
        parts = list(formats.split(joined, job.split, job.seed))
    line, *others = [_write(*each, job.to) for each in zip(parts, outs, strict=True)]
    return {**line, "held_out": others[0]} if others else line


def _write(joined: Joined, out: AnyPath, to: str) -> dict[str, Any]:
    """Write one output, tell what it lacks, and return its part of the last line."""
    from pipelines import formats

    lost = formats.write(joined, out, to)
    for video, reason in joined.left_out.items():
        print(f"left out {video}: {reason}", file=sys.stderr)
    for kind, (times, first) in [*joined.notes.items(), *lost.items()]:
        print(f"{times} {kind} (first: {first})", file=sys.stderr)
    if not joined.labelled:
        print("the sources have no labels, so there are no annotations", file=sys.stderr)
    told = {
        kind: n for notes in (joined.notes, joined.repairs, lost) for kind, (n, _) in notes.items()
    }
    count = sum(len(video.instances) for video in joined.videos)
    return {
        "out": str(out),
        "frames": str(joined.frames),
        "videos": len(joined.videos),
        "annotations": count if joined.labelled else None,
        "categories": list(joined.categories.values()),
        "left_out": len(joined.left_out),
        "told": told,
    }


main = functools.partial(command.run, "convert", Convert, _convert, table=False)

if __name__ == "__main__":
    main()
