"""Find the best tracker settings on what jobs.evaluate stored: no network, no GPU.

python -m jobs.sweep --evaluation run --out sweep --grid tracker.tau=0.2,0.5,1
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pipelines import cluster, sweep
from pipelines.errors import PipelineError


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Try every combination of tracker settings on the stored detections of an evaluation.

    Any field of the tracker can be swept: τ (tau), T (memory_length), the match threshold, the
    thresholds for new instances, mask NMS, lifetime of the memory, ... A configuration costs about
    a millisecond per frame. OUT gets best.json (for --tracker of jobs.evaluate), report.json with
    every configuration and its metrics, report.html. Interrupted, the same command goes on;
    finished configurations are not repeated.

    The last line of stdout is one JSON object: the best configuration, and the one it started from.
    """

    evaluation: Path
    """A finished OUT of jobs.evaluate, on annotations with truth."""
    out: Path
    """Directory to write: new, empty, or left unfinished by the same command."""
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """tracker.FIELD=VALUE,VALUE,...; repeat for more fields: all combinations are tried. For
    example --grid tracker.tau=0.2,0.5,1 --grid tracker.memory_length=1,3,5
    --grid tracker.match_threshold=0.3,0.5,0.7"""
    tracker: str | None = None
    """What the grid starts from: released, ovis, paper, robust, or a JSON file such as another
    sweep's best.json. Default: the tracker of the evaluation."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """Replace a field of what the grid starts from, tracker.FIELD=VALUE; repeat for more."""
    objective: str = "AP"
    """The metric to be maximised: AP, AP50, AP75, AR10, AP_ho, ..."""
    annotations: str | None = None
    """Where the annotation file is now, if it has moved since the evaluation."""
    processes: int | None = None
    """Trials at the same time. Default: half the logical CPUs."""
    overwrite: bool = False
    """Delete an earlier sweep in OUT first. Never deletes anything else."""
    log_to: Path | None = None
    """Folder of the MLflow file. Default: OUT; without effect where MLFLOW_TRACKING_URI is set."""
    num_cpus: int | None = None
    """Logical CPUs of the Ray started here. Default: those of the machine, at least 4. Without
    effect on a cluster that is joined (RAY_ADDRESS, ray job submit)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, sweep, print the best as the last line."""
    job = tyro.cli(Sweep, args=argv, prog="python -m jobs.sweep")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        grid = sweep.parse_grid(job.grid)
        base = sweep.base_config(job.evaluation, job.tracker, job.set)
        with cluster.session(job.num_cpus):
            manifest = sweep.run(
                job.evaluation,
                job.out,
                grid,
                base=base,
                annotation_file=job.annotations,
                objective=job.objective,
                processes=job.processes,
                overwrite=job.overwrite,
                log_to=job.log_to,
            )
    except (PipelineError, ValueError, FileNotFoundError) as error:
        # The message says what to do; a traceback would bury it.
        sys.exit(f"{type(error).__name__}: {error}")
    paths = {name: str(job.out / file) for name, file in sweep.FILES.items()}
    best = manifest.extra["best"]
    line = {
        "objective": job.objective,
        "best": {**best["values"], **best["metrics"]},
        "base": {**manifest.extra["base"]["values"], **manifest.extra["base"]["metrics"]},
        "configurations": manifest.extra["configurations"],
        "seconds": manifest.seconds,
        "paths": paths,
    }
    print(json.dumps(line, sort_keys=True))


if __name__ == "__main__":
    main()
