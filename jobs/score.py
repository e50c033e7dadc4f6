"""Score a results file against the truth, without Ray and without a network.

python -m jobs.score --truth val/instances.json --results results.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from idol import evaluation, truth


@dataclass(frozen=True, kw_only=True)
class Score:
    """Average precision and recall of tracks, equal to the official YouTube-VIS and OVIS code.

    The last line of stdout is one JSON object: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100,
    ARs, ARm, ARl, in [0, 1], -1 where there is no such truth; with OVIS truth also AP_so, AP_mo,
    AP_ho (slightly, moderately, heavily occluded) and AR_so, AR_mo, AR_ho; and per_class,
    missing_videos (scored as empty), num_videos.
    """

    truth: Path
    """Annotations: YouTube-VIS or OVIS JSON."""
    results: Path
    """A JSON list of {video_id, category_id, score, segmentations}."""
    compat: bool = False
    """Score malformed input as the official evaluator does, instead of refusing it."""
    out: Path | None = None
    """Also write the JSON object to this file."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, score, print the metrics as the last line."""
    job = tyro.cli(Score, args=argv, prog="python -m jobs.score")
    try:
        known = truth.read(job.truth, compat=job.compat)
        metrics = evaluation.evaluate(known, job.results, compat=job.compat)
    except (ValueError, OSError, IndexError) as error:
        # The message says what to do; a traceback would bury it.
        sys.exit(f"{type(error).__name__}: {error}")
    values = metrics.to_dict()
    for category_id, row in sorted(metrics.per_class.items()):
        print(
            f"{known.categories[category_id]:>20}  AP {row['AP']:.4f}  AP50 {row['AP50']:.4f}",
            file=sys.stderr,
        )
    line = json.dumps({**values.pop("stats"), **values}, sort_keys=True)
    if job.out is not None:
        job.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
