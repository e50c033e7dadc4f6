"""One HTML page about a training run, evaluations and a sweep.

python -m jobs.report --train run/train --evaluate run/val --sweep run/sweep --out report.html
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jobs import command, places


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained page: metrics side by side, loss curves, sweep, videos, pictures.

    Every argument is a finished output directory; the frames they were made from must still be
    where they were, for the pictures.
    """

    evaluate: tuple[Path, ...]
    """Outputs of jobs.evaluate, one set of metrics each, named after the folder."""
    out: Annotated[Path, places.PAGE]
    """The page to write."""
    train: Path | None = None
    """Output of jobs.train."""
    sweep: Path | None = None
    """Output of jobs.sweep."""
    title: str = "IDOL: training, evaluation and sweep"
    """Heading of the page."""


def _report(job: Report) -> dict[str, str]:
    from pipelines.report import run_page

    page = run_page.write(
        job.out,
        title=job.title,
        training=job.train,
        evaluations={folder.resolve().name: folder for folder in job.evaluate},
        swept=job.sweep,
    )
    return {"page": str(page)}


main = functools.partial(command.run, "report", Report, _report)

if __name__ == "__main__":
    main()
