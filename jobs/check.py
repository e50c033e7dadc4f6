"""What later jobs will reject, repair or refuse in a data set, said before any of them. No Ray.

python -m jobs.check train/instances.json --out check
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from idol import presets
from idol.config import override
from jobs.options import command, places


@dataclass(frozen=True, kw_only=True)
class Check:
    """Read annotations and frames once by the rules of all later jobs, and tell what they hold.

    Tells of counts, sizes, categories; missing, damaged and wrongly sized frames; tracks and videos
    that are there twice, stated boxes and areas that are not those of the masks; what will be left
    out, repaired or not scored. A table goes to stderr, one JSON object is the last line of stdout.

    The exit status is 1 where a later job would end with an error, 0 otherwise.
    """

    annotations: Annotated[str, tyro.conf.Positional]
    """Labels in any format that jobs.convert reads, or the address of JSON, as s3://bucket/a.json.
    """
    frames: command.Frames = None
    frames_read: Literal["sample", "all", "none"] = "sample"
    """Frames to decode: 500 drawn with a fixed seed, all, or none. That all files of frames exist
    is always looked up."""
    for_: Annotated[Literal["train", "evaluate", "both"], tyro.conf.arg(name="for")] = "both"
    """Which jobs come later: jobs.prepare, or jobs.evaluate and jobs.score."""
    out: Annotated[str | None, places.CHECK] = None
    """Folder or address to write to: check.json with all that was found, and check.html with charts
    and pictures."""
    preset: str = "ytvis19_r50"
    """Configuration by name; its sections `pairs` and `detect` say what later jobs do."""
    set: command.Repeated = ()
    """Replace a field of the preset, SECTION.FIELD=VALUE; repeat for more."""
    format: Literal["auto", "json", "masks", "mots", "cvat", "sav", "videos"] = "auto"
    """Of the labels. auto: what they look like. videos: without labels."""
    reject_limit: command.RejectLimit = None


def _check(job: Check) -> dict[str, Any]:
    config = override(presets.by_name(job.preset), job.set)
    from pipelines import check
    from pipelines.report import check_page
    from pipelines.storage import paths

    request = check.Request(
        annotations=job.annotations,
        frames=job.frames,
        format=job.format,
        frames_read=job.frames_read,
        purpose=job.for_,
        config=config,
        reject_limit=job.reject_limit,
    )
    with _repairs_untold():
        report, strips = check.run(request)
    files = {}
    if job.out is not None:
        out = paths.at(job.out)
        check_page.write(out, report, strips)
        files = {name: str(out / file) for name, file in check_page.FILES.items()}
    print(check_page.table(report), file=sys.stderr)
    counts = {key: report.counts[key] for key in ("videos", "usable_videos", "frames", "tracks")}
    found = {finding.kind: finding.times for finding in report.findings}
    line = {**counts, "refused": report.refused, "effects": report.times(), "found": found, **files}
    if report.refused:
        print(json.dumps(line, sort_keys=True))
        sys.exit(1)
    return line


@contextlib.contextmanager
def _repairs_untold() -> Iterator[None]:
    """The reader logs its repairs in one line, which the table tells one by one."""
    logger = logging.getLogger("idol.ytvis.annotations")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


main = functools.partial(command.run, "check", Check, _check, table=False)

if __name__ == "__main__":
    main()
