"""Detect, track and score a checkpoint on a dataset; write results, metrics and a report.

python -m jobs.evaluate --annotations val/instances.json --checkpoint weights.safetensors --out run
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from idol.config import Speed
from jobs.options import command, places

if TYPE_CHECKING:  # pipelines is imported when the job runs: --help needs none of it
    from pipelines.cluster import Pool
    from pipelines.stages.evaluate import Request
    from pipelines.storage.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate checkpoints: network over all frames (detect), association (track), scores.

    OUT gets results.json (and the results.zip that evaluation servers take), report.json,
    report.html, and the stored detections that jobs.sweep starts from. Videos that cannot be read
    are listed with the reason in OUT/rejects.parquet and count as missed. Interrupted, the same
    command goes on where it stopped. Without truth in the annotations there are results, but no
    scores.

    The last line of stdout is one JSON object: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ...
    in [0, 1], and the paths of what was written. With several annotation files it is
    {"sets": {name: such an object}}; with several checkpoints {"checkpoints": {name: one of these}}
    and the paths of OUT/comparison.json and .html, which show them side by side. Of several
    evaluations OUT/summary.json has the whole object, which may be too long for a line.
    """

    annotations: command.AnnotationFiles
    """YouTube-VIS or OVIS JSON, any other labels that jobs.convert reads, or videos without any: a
    film, or a folder of films or of folders of images. Several are evaluated one after the other,
    each in a folder of OUT named after the folder of its file."""
    checkpoint: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WEIGHTS [WEIGHTS ...]")]
    """Weights: a .safetensors of jobs.train, `shipped` for the tiny weights in this package, or a
    released .pth (then name its --preset). Several are evaluated one after the other, each in a
    folder of OUT, and compared; all are checked before the first begins."""
    out: Annotated[str, places.EVALUATIONS]
    """Directory to write: new, empty, or left unfinished by the same command. Also an address, such
    as s3://bucket/folder."""
    preset: str | None = None
    """Configuration of a released .pth, which carries none."""
    set: command.Repeated = ()
    """Replace a field of the checkpoint's configuration, SECTION.FIELD=VALUE; repeat for more. For
    example tracker.match_threshold=0.6 or transforms.test_short_side=360."""
    tracker: command.Tracker = None
    frames: command.Frames = None
    videos: tuple[int, ...] = ()
    """Evaluate only these video ids. Default: all. Needs a single annotation file."""
    stride: int = 1
    """Use every n-th frame only, so that objects move faster."""
    actors: Annotated[str | None, tyro.conf.arg(metavar="N | MIN..MAX")] = None
    """Copies of the network: 4, or 1..8 for a pool that grows with the work while the cluster has
    room, or its autoscaler brings it. Default: one per GPU, else half the logical CPUs."""
    device: command.Device = "auto"
    """Where they run. gpu (or cuda): a GPU each, waited for where nodes come on demand. auto: on
    GPUs where the cluster has any when the job starts."""
    batch_frames: int | None = None
    """Frames in one forward pass; short for --set detect.batch_frames=N."""
    speed: Speed | None = None
    """exact, or fast: 16 bits where the machine has units for them, on a GPU compiled as well;
    docs/internals/performance.md has what it costs. Short for --set detect.speed=..."""
    reject_limit: command.RejectLimit = None
    overwrite: bool = False
    """Delete an earlier output in OUT first. Never deletes anything else."""
    log_to: Annotated[Path | None, places.LOG] = None
    """Folder of the MLflow file. Default: OUT; without effect where MLFLOW_TRACKING_URI is set."""
    num_cpus: command.NumCpus = None
    dry_run: command.DryRun = False


def _evaluate(job: Evaluate) -> dict[str, Any]:
    if job.videos and len(job.annotations) > 1:
        raise ValueError("--videos needs a single annotation file: ids of several may clash")
    from pipelines import cluster
    from pipelines.report import compare
    from pipelines.stages import evaluate
    from pipelines.storage import paths

    gpu, number = command.device(job.device)
    if number is not None:
        raise ValueError(
            f"Ray deals the GPUs to the copies of the network, so --device {job.device} cannot "
            "choose one: use --device gpu, and CUDA_VISIBLE_DEVICES to choose."
        )
    pool = None if job.actors is None else cluster.Pool.of(job.actors)
    named = compare.names(job.checkpoint)
    top = paths.at(job.out)
    outputs = {name: _outputs(job, top / name if len(named) > 1 else top) for name in named}
    if job.dry_run:
        return _plan(job, pool, gpu)
    if len(named) > 1:
        # The tenth must not fail for a typing error after nine have run for hours.
        for checkpoint, path in itertools.product(job.checkpoint, job.annotations):
            _request(job, path, checkpoint).read()

    def one(path: str, checkpoint: str, out: AnyPath) -> dict[str, Any]:
        manifest = evaluate.run(
            _request(job, path, checkpoint),
            out,
            actors=pool,
            gpu=gpu,
            overwrite=job.overwrite,
            reject_limit=job.reject_limit,
            log_to=job.log_to or top,
        )
        files = {n: str(out / f) for n, f in evaluate.FILES.items() if (out / f).exists()}
        counts = {"rows": manifest.rows, "rejects": manifest.rejects, "seconds": manifest.seconds}
        return {**manifest.extra["metrics"], **counts, "out": str(out), **files}

    with cluster.kept(job.num_cpus):
        line = {
            name: _one_or_sets(
                {title: one(path, named[name], out) for title, (path, out) in sets.items()}
            )
            for name, sets in outputs.items()
        }
    if len(named) == 1:
        return _told(next(iter(line.values())), top, several=len(job.annotations) > 1)
    compare.write(
        top,
        {name: {title: out for title, (_, out) in sets.items()} for name, sets in outputs.items()},
    )
    files = {name: str(top / file) for name, file in compare.FILES.items()}
    return _told({"checkpoints": line, **files}, top, several=True)


def _plan(job: Evaluate, pool: Pool | None, gpu: bool | None) -> dict[str, Any]:
    """What would be done for each checkpoint and annotation file."""
    from pipelines import plan

    stages: list[plan.Stage] = []
    for checkpoint, path in itertools.product(job.checkpoint, job.annotations):
        dataset, _, config, _ = _request(job, path, checkpoint).read()
        stages += plan.evaluate(dataset, config, pool, gpu)
    return command.planned(stages, job.out)


def _told(line: dict[str, Any], top: AnyPath, *, several: bool) -> dict[str, Any]:
    """The last line; of several evaluations also as OUT/summary.json, as it may be too long."""
    if not several:
        return line
    from pipelines.storage import paths

    path = top / "summary.json"
    paths.write_whole(path, (json.dumps(line, sort_keys=True, indent=1) + "\n").encode())
    return {**line, "whole": str(path)}


def _request(job: Evaluate, annotations: str, checkpoint: str) -> Request:
    from pipelines.stages.evaluate import Request

    short = {"batch_frames": job.batch_frames, "speed": job.speed}
    given = [f"detect.{name}={value}" for name, value in short.items() if value is not None]
    return Request(
        annotations=annotations,
        checkpoint=checkpoint,
        preset=job.preset,
        overrides=[*job.set, *given],
        tracker=job.tracker,
        frames=job.frames,
        video_ids=job.videos or None,
        stride=job.stride,
    )


def _one_or_sets(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The line of one set by itself, or all of them by name."""
    return next(iter(values.values())) if len(values) == 1 else {"sets": values}


def _outputs(job: Evaluate, out: AnyPath) -> dict[str, tuple[str, AnyPath]]:
    """Name of the set -> (annotation file, directory): out, or a folder in it for each file, called
    after the file's folder, as in val/instances.json, or after the file where they share one."""
    if len(job.annotations) == 1:
        return {out.name: (job.annotations[0], out)}
    named: dict[str, tuple[str, AnyPath]] = {}
    folders = [Path(path).resolve().parent for path in job.annotations]
    for path, folder in zip(job.annotations, folders, strict=True):
        base = (folder.name if folders.count(folder) == 1 else "") or Path(path).stem
        numbered = (f"{base}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([base], numbered) if name not in named)
        named[name] = (path, out / name)
    return named


main = functools.partial(command.run, "evaluate", Evaluate, _evaluate)

if __name__ == "__main__":
    main()
