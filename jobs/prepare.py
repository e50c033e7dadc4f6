"""Annotated videos → key/reference training pairs in parquet.

python -m jobs.prepare --annotations train/instances.json --out pairs --preset tiny
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from idol import config as settings
from idol import presets
from pipelines import cluster
from pipelines.errors import PipelineError
from pipelines.sources import annotations as annotation_files
from pipelines.stages import pairs


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Draw key/reference frame pairs from annotated videos and store them, shuffled, in parquet.

    Reads YouTube-VIS or OVIS JSON and the frames beside it. Videos with a fault are listed in
    OUT/rejects.parquet with the reason. Interrupted, the same command goes on where it stopped.
    The last line of stdout is the manifest as one JSON object.
    """

    annotations: Annotated[tuple[str, ...], tyro.conf.arg(metavar="JSON [JSON ...]")]
    """Annotation files, local paths or URLs. Several are united; their categories must be
    numbered alike, clashing video ids are raised."""
    out: Path
    """Directory to write: new, empty, or left unfinished by the same command."""
    frames: str | None = None
    """Folder (or URL) that the frame paths are relative to. Default: JPEGImages beside each
    annotation file where that exists, else the file's own folder."""
    preset: str = "ytvis19_r50"
    """Configuration by name; its section `pairs` says how pairs are drawn and stored."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """Replace a field of the preset, SECTION.FIELD=VALUE; repeat for more. For example
    pairs.max_gap=5, or pairs.max_side=640 to store smaller frames."""
    videos: tuple[int, ...] = ()
    """Use only these video ids. Default: all. Needs a single annotation file."""
    stride: int = 1
    """Use every n-th frame only, so that objects move faster."""
    overwrite: bool = False
    """Delete an earlier output in OUT first. Never deletes anything else."""
    num_cpus: int | None = None
    """Logical CPUs of the Ray started here. Default: those of the machine, at least 4. Without
    effect on a cluster that is joined (RAY_ADDRESS, ray job submit)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run one stage, print its manifest as the last line."""
    job = tyro.cli(Prepare, args=argv, prog="python -m jobs.prepare")
    try:
        config = settings.override(presets.by_name(job.preset), job.set)
        if job.videos and len(job.annotations) > 1:
            raise ValueError("--videos needs a single annotation file: ids of several may clash")
        dataset = annotation_files.combine(
            [
                annotation_files.read(
                    path, job.frames, video_ids=job.videos or None, stride=job.stride
                )
                for path in job.annotations
            ]
        )
        with cluster.session(job.num_cpus):
            manifest = pairs.run(
                dataset,
                job.out,
                config.pairs,
                overwrite=job.overwrite,
                progress=partial(cluster.progress, what="prepare", unit="shards"),
            )
    except (PipelineError, ValueError) as error:
        # The message says what to do; a traceback would bury it.
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(dataclasses.asdict(manifest), sort_keys=True))


if __name__ == "__main__":
    main()
