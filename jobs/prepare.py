"""Annotated videos → what key/reference pairs are drawn from in training.

python -m jobs.prepare --annotations train/instances.json --out pairs --preset tiny
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from idol import presets
from idol.config import override
from jobs.options import command, places


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Store the frames of annotated videos, shuffled, for training to draw pairs from.

    Reads annotations and the frames beside them. Videos with a fault are listed in
    OUT/rejects.parquet with the reason. Interrupted, the same command goes on where it stopped.
    The last line of stdout is the manifest as one JSON object.
    """

    annotations: command.AnnotationFiles
    """YouTube-VIS, OVIS or COCO JSON, local or at an address, or other labels that jobs.convert
    reads. Several are united; their categories must be numbered alike, clashing video ids are
    raised."""
    out: Annotated[str, places.FOLDER]
    """Directory to write: new, empty, or left unfinished by the same command. Also an address, such
    as s3://bucket/folder."""
    frames: command.Frames = None
    preset: str = "ytvis19_r50"
    """Configuration by name; its section `pairs` says how pairs are drawn: from stored frames at
    each visit, as released, or once, now (pairs.sampling=stored)."""
    set: command.Repeated = ()
    """Replace a field of the preset, SECTION.FIELD=VALUE; repeat for more. For example
    pairs.max_gap=5, or pairs.max_side=640 to store smaller frames."""
    videos: tuple[int, ...] = ()
    """Use only these video ids. Default: all. Needs a single annotation file."""
    stride: int = 1
    """Use every n-th frame only, so that objects move faster."""
    reject_limit: command.RejectLimit = None
    overwrite: bool = False
    """Delete an earlier output in OUT first. Never deletes anything else."""
    num_cpus: command.NumCpus = None
    dry_run: command.DryRun = False


def _prepare(job: Prepare) -> dict[str, Any]:
    config = override(presets.by_name(job.preset), job.set)
    if job.videos and len(job.annotations) > 1:
        raise ValueError("--videos needs a single annotation file: ids of several may clash")
    from pipelines import cluster, formats
    from pipelines.sources import annotations
    from pipelines.stages import pairs
    from pipelines.storage import manifest, paths

    read = functools.partial(
        formats.dataset, frames=job.frames, video_ids=job.videos or None, stride=job.stride
    )
    dataset = annotations.combine([read(path) for path in job.annotations])
    if job.dry_run:
        from pipelines import plan

        return command.planned(plan.prepare(dataset, config), job.out)
    with cluster.kept(job.num_cpus):
        made = pairs.run(
            dataset,
            paths.at(job.out),
            config.pairs,
            overwrite=job.overwrite,
            reject_limit=job.reject_limit,
        )
    return {**asdict(made), "whole": str(paths.at(job.out) / manifest.MANIFEST)}


main = functools.partial(command.run, "prepare", Prepare, _prepare)

if __name__ == "__main__":
    main()
