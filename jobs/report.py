"""One HTML page about a training run, evaluations and a sweep.

python -m jobs.report --train run/train --evaluate run/val --sweep run/sweep --out report.html
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated

from jobs import command, places


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained page: metrics side by side, loss curves, sweep, videos, pictures.

    Every argument is a finished output directory; the frames they were made from must still be
    where they were, for the pictures.
    """

    evaluate: tuple[str, ...]
    """Outputs of jobs.evaluate, one set of metrics each, named after the folder."""
    out: Annotated[str, places.PAGE]
    """The page to write. This and the outputs may be addresses, such as s3://bucket/folder."""
    train: str | None = None
    """Output of jobs.train."""
    sweep: str | None = None
    """Output of jobs.sweep."""
    title: str = "IDOL: training, evaluation and sweep"
    """Heading of the page."""


def _report(job: Report) -> dict[str, str]:
    from pipelines.report import run_page
    from pipelines.storage import paths

    page = run_page.write(
        paths.as_written(job.out),
        title=job.title,
        training=None if job.train is None else paths.at(job.train),
        evaluations={(place := paths.at(folder)).name: place for folder in job.evaluate},
        swept=None if job.sweep is None else paths.at(job.sweep),
    )
    return {"page": str(page)}


main = functools.partial(command.run, "report", Report, _report)

if __name__ == "__main__":
    main()
