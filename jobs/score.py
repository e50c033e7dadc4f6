"""Score results files against the truth, analyse their errors, check them for submission. No Ray.

python -m jobs.score --truth val/instances.json --results results.json
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from idol.addresses import without_secrets
from idol.config import AnalysisConfig
from jobs.options import command, places

if TYPE_CHECKING:
    from idol.analysis.score_files import Analyses

Local = Callable[[str], Path]
"""A local file with the content of what lies at a place."""

_DEFAULTS = AnalysisConfig()
_ANY_LENGTHS: tuple[int, ...] = (-1,)  # --oracle was not given


@dataclass(frozen=True, kw_only=True)
class Score:
    """Average precision and recall of tracks, equal to the official YouTube-VIS and OVIS code.

    Several results files are scored side by side, each after the first also with its difference to
    the first. Results of clips (entries with a first_frame) are joined first.

    The last line of stdout is one JSON object: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100,
    ARs, ARm, ARl, in [0, 1], -1 where there is no such truth; with OVIS truth also AP_so, AP_mo,
    AP_ho (slightly, moderately, heavily occluded) and AR_so, AR_mo, AR_ho; and per_class,
    missing_videos (scored as empty), num_videos, intervals (metric -> [low, high] over draws of the
    videos), and oracle, errors and tracking where asked for. With several results files these are
    the first one's, and "results" has such an object for each by its name.

    With --submission nothing is scored: the file is checked entry by entry, and zipped to --out.
    """

    truth: str | None = None
    """Annotations: YouTube-VIS or OVIS JSON. For --submission a list of videos is enough. Files may
    also be addresses, such as s3://bucket/results.json."""
    results: Annotated[tuple[str, ...], tyro.conf.arg(metavar="JSON [JSON ...]")] = ()
    """JSON lists of {video_id, category_id, score, segmentations}."""
    oracle: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[FRAMES ...]")] = _ANY_LENGTHS
    """Oracle experiments of the paper (Sec. 4.3) with clips of these lengths; without a length,
    1 3 5 10 20 30."""
    errors: command.Switch = False
    """What every kind of error costs, and the worst videos and instances."""
    tracking: command.Switch = False
    """HOTA, DetA, AssA, LocA, IDF1, MOTSA, sMOTSA, identity switches, equal to TrackEval: every
    entry is a track of its class, averages are over the classes that have truth."""
    min_score: float | None = None
    """With --tracking: leave out entries of a lower score. These metrics do not rank by score, so
    results made for AP, with many low scores, need it."""
    one_class: command.Switch = False
    """With --tracking: of entries with the same masks only the best-scored is a track."""
    html: Annotated[str | None, places.PAGE] = None
    """Write a page with precision-recall curves, and the analyses that were asked for."""
    frames: Path | None = None
    """Folder of the frames, for pictures of the worst instances in the page (with --errors).
    Default: JPEGImages beside the truth, or the truth's own folder."""
    bootstrap: int = _DEFAULTS.resamples
    """Draws of the videos, with replacement, behind the intervals; 0: no intervals."""
    seed: int = _DEFAULTS.seed
    """Of the draws."""
    compat: bool = False
    """Score malformed input as the official evaluator does, instead of refusing it."""
    join: Annotated[str | None, places.RESULTS] = None
    """Join the clips of a results file by their overlap, write whole tracks to this file, and score
    nothing."""
    submission: str | None = None
    """Check this results file and zip it to --out, as evaluation servers take it. With --truth, its
    ids, sizes and lengths are checked against that list of videos."""
    out: Annotated[str | None, places.SCORES] = None
    """Also write the whole JSON object to this file; a last line of more than 4 kB lacks the depths
    of its analyses, and names the file that has them. With --submission: the zip."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, score, print the metrics as the last line."""
    words = sys.argv[1:] if argv is None else argv
    work = functools.partial(_work, words=words)
    command.run("score", Score, work, argv, also=(IndexError,), table=False)


def _work(job: Score, words: Sequence[str]) -> dict[str, Any]:
    from pipelines.storage import paths

    with contextlib.ExitStack() as stack:

        def local(place: str) -> Path:
            return stack.enter_context(paths.local_file(paths.as_written(place)))

        if job.submission is not None:
            return _submit(job, local)
        line = _score(job, words, local) if job.join is None else _join(job, local)
        if job.out is not None:
            data = (json.dumps(line, sort_keys=True) + "\n").encode()
            paths.write_whole(paths.as_written(job.out), data)
            line = {**line, "whole": job.out}
        return line


def _score(job: Score, words: Sequence[str], local: Local) -> dict[str, Any]:
    if job.truth is None or not job.results:
        raise ValueError(
            "scoring needs --truth GT.json and --results results.json. To check and zip a file for "
            "an evaluation server: --submission results.json --out results.zip"
        )
    if job.frames is not None and not (job.html and job.errors):
        raise ValueError("--frames is for pictures in the page; add --html page.html and --errors")
    if job.frames is not None and not job.frames.is_dir():
        raise FileNotFoundError(f"the folder of frames {job.frames} does not exist")
    from tqdm import tqdm

    from idol.analysis import results_file, score_files
    from idol.ytvis import truth
    from pipelines.report import score_page, score_table
    from pipelines.storage import paths

    analyses = _analyses(job)
    truth_file = local(job.truth)
    known = truth.read(truth_file, compat=job.compat)
    names = results_file.names_of([Path(file) for file in job.results])
    files = dict(zip(names, map(local, job.results), strict=True))
    bars: dict[str, Any] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = tqdm(total=total, desc=name, unit="videos", disable=None, leave=False)
        bars[name].update(done - bars[name].n)
        if done == total:
            bars[name].close()

    found = score_files.run(known, files, analyses, progress=progress)
    print(score_table.table(found), file=sys.stderr)
    if job.html is not None:
        score_page.write(
            paths.as_written(job.html),
            found,
            files,
            truth_file,
            analyses.config,
            frames=job.frames,
            command=without_secrets(shlex.join(["python", "-m", "jobs.score", *words])),
            created=time.strftime("%Y-%m-%d %H:%M"),
        )
    return found.to_dict()


def _analyses(job: Score) -> Analyses:
    from idol.analysis.oracles import CLIP_LENGTHS
    from idol.analysis.score_files import Analyses
    from idol.evaluation.tracking_metrics import TrackingOptions

    if not job.tracking and (job.min_score is not None or job.one_class):
        raise ValueError("--min-score and --one-class are of the tracking metrics; add --tracking")
    lowest = -math.inf if job.min_score is None else job.min_score
    options = TrackingOptions(min_score=lowest, one_class=job.one_class)
    return Analyses(
        oracle=() if job.oracle == _ANY_LENGTHS else job.oracle or CLIP_LENGTHS,
        errors=job.errors,
        tracking=options if job.tracking else None,
        compat=job.compat,
        config=AnalysisConfig(resamples=job.bootstrap, seed=job.seed),
    )


def _join(job: Score, local: Local) -> dict[str, Any]:
    if job.truth is None or len(job.results) != 1 or job.join is None:
        raise ValueError("--join needs --truth GT.json and one file of clips in --results")
    from idol.analysis import results_file
    from idol.ytvis import truth
    from pipelines.storage import paths

    with paths.whole_file(paths.as_written(job.join)) as file:
        known = truth.read(local(job.truth))
        count = results_file.join(known, local(job.results[0]), file, _DEFAULTS)
    return {"entries": count, "out": job.join}


def _submit(job: Score, local: Local) -> dict[str, Any]:
    if job.submission is None or job.out is None:
        raise ValueError("--submission results.json needs --out results.zip")
    if job.results or job.html or job.join:
        raise ValueError(
            "--submission checks and zips one file and scores nothing; leave --results, --html and "
            "--join away"
        )
    from idol.ytvis import submission
    from pipelines.storage import paths

    videos = None if job.truth is None else submission.read_videos(local(job.truth))
    with paths.whole_file(paths.as_written(job.out)) as file:
        done = submission.write(local(job.submission), file, videos)
        size = file.stat().st_size
    for rows, meaning in (
        (done.missing_videos, "videos have no results and will score as empty"),
        (done.crowded, "(video, category) have more than 100 entries, of which the best 100 count"),
    ):
        if rows:
            shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            print(f"{len(rows)} {meaning}: {shown}", file=sys.stderr)
    return {**asdict(done), "out": job.out, "bytes": size}


if __name__ == "__main__":
    main()
