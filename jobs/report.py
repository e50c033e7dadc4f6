"""One HTML page about a training run, evaluations and a sweep.

python -m jobs.report --train run/train --evaluate run/val --sweep run/sweep --out report.html
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated

from jobs.options import command, places


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained page: metrics side by side, loss curves, sweep, and every video with
    its timeline and a clip to play, prediction beside truth.

    Every argument is a finished output directory; the frames they were made from must still be
    where they were, for the clips. The page opens offline, in any browser of the last years.
    """

    evaluate: tuple[str, ...]
    """Outputs of jobs.evaluate, one set of metrics each, named after the folder, and where that is
    not enough after those above. Those of the same videos stand side by side in one clip, with
    their difference."""
    out: Annotated[str, places.PAGE]
    """The page to write. This and the outputs may be addresses, such as s3://bucket/folder."""
    train: str | None = None
    """Output of jobs.train."""
    sweep: str | None = None
    """Output of jobs.sweep."""
    title: str = "IDOL: training, evaluation and sweep"
    """Heading of the page."""
    clip_megabytes: float = 26.0
    """Size of all clips together. Where they are many, each has a smaller picture or fewer frames,
    and in the end only some videos have one, which the page says."""


def _report(job: Report) -> dict[str, str]:
    from pipelines.report import compare, run_page
    from pipelines.report.viewer import Budget
    from pipelines.storage import paths

    if not 0.0 <= job.clip_megabytes <= 500.0:
        raise ValueError(
            f"--clip-megabytes must lie between 0 and 500, got {job.clip_megabytes}: browsers do "
            "not open larger pages"
        )

    # Two folders of one name, as of two checkpoints on one set, are told apart by those above.
    named = compare.names([str(paths.at(folder)) for folder in job.evaluate])
    page = run_page.write(
        paths.as_written(job.out),
        title=job.title,
        training=None if job.train is None else paths.at(job.train),
        evaluations={name: paths.at(folder) for name, folder in named.items()},
        swept=None if job.sweep is None else paths.at(job.sweep),
        budget=Budget(total=round(1e6 * job.clip_megabytes)),
    )
    return {"page": str(page)}


main = functools.partial(command.run, "report", Report, _report)

if __name__ == "__main__":
    main()
