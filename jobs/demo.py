"""See the whole walk in a few minutes, on two CPU cores and synthetic videos: `make demo`."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from idol import presets
from idol.config import override
from jobs.options import command, places

GRID: dict[str, Sequence[float | str]] = {
    "weighting": ["paper"],
    "tau": [0.0, 0.5, 2.0],
    "memory_length": [1, 3, 5],
    "match_threshold": [0.3, 0.5, 0.7],
}
"""τ and T of Eq. 5, and the match threshold of Eq. 7; compared with the preset's moving average."""
# Seeds far from those of the shipped weights' videos: nothing here was seen in training.
TRAIN_SEED, VALIDATION_SEED = 71_000, 72_000


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Draw synthetic videos, prepare pairs, train on from the shipped tiny weights for a moment,
    detect, track, score, sweep the tracker, and write one page about it.

    Two dials: easy (like YouTube-VIS) and crowded (like OVIS: look-alikes, full occlusion, objects
    that leave and return). Run again, finished parts are kept. The last line of stdout is one JSON
    object with the scores and the page.
    """

    out: Annotated[Path, places.WALK] = Path("runs/demo")
    """Where everything goes; about 20 MB."""
    train_videos: int = 40
    """Videos to train on, for each dial."""
    validation_videos: int = 12
    """Videos to evaluate on, for each dial; other seeds."""
    set: command.Repeated = (
        "train.steps=120",
        "train.learning_rate=0.0005",
        "train.report_every=5",
    )
    """Change a number of the tiny preset: section.field=value. Repeatable. The rate is that of
    fine-tuning; the preset's own would first undo what the shipped weights know."""
    weights: str = "shipped"
    """What to start from: shipped, a checkpoint, or none for random weights."""
    workers: int = 2
    """Data-parallel training processes."""


def walk(job: Demo) -> dict[str, Any]:
    """Take the walk, and print a table of the scores; returns the last line."""
    started = time.monotonic()
    config = override(presets.by_name("tiny"), job.set)
    from pipelines import cluster, demo
    from pipelines.stages import train

    files = draw(job)
    with cluster.kept():
        result = demo.run(
            demo.Walk(
                train_files=list(files["train"].values()),
                validation_files=files["validation"],
                config=config,
                weights=None if job.weights == "none" else job.weights,
                workers=job.workers,
                grid=GRID,
                sweep_set="crowded",
            ),
            job.out,
            commands={
                "this demo": f"python -m jobs.demo --out {job.out}",
                "curves, parameters, metrics in the browser": f"make mlflow RUN={job.out}",
                "these weights on your own videos": "python -m jobs.evaluate --annotations "
                f"YOUR/instances.json --checkpoint {job.out}/train/{train.WEIGHTS} --out MINE",
            },
        )
    result["minutes"] = round((time.monotonic() - started) / 60, 2)
    print(table(result["sets"]))
    print(f"\nLook at {result['page']}\n")
    return result


def draw(job: Demo) -> dict[str, dict[str, str]]:
    """Write the synthetic videos: train/validation -> dial -> annotation file."""
    from idol.images import SyntheticConfig, write_dataset

    dials = {"easy": SyntheticConfig.easy(), "crowded": SyntheticConfig.crowded()}
    sets = {
        "train": (TRAIN_SEED, job.train_videos),
        "validation": (VALIDATION_SEED, job.validation_videos),
    }
    files: dict[str, dict[str, str]] = {kind: {} for kind in sets}
    for kind, (seed, count) in sets.items():
        for offset, (dial, config) in enumerate(dials.items()):
            folder = job.out / "videos" / kind / dial
            path = write_dataset(folder, config, count, seed + offset, progress=True)
            files[kind][dial] = str(path)
    return files


def table(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores of every set in percent, as text."""
    titles = {name: name for name in ("AP", "AP50", "AP75", "AR1", "AR10")}
    titles |= {"AP_frame_oracle": "frame oracle", "AP_upper_bound": "upper bound"}
    lines = ["videos    " + "  ".join(f"{title:>6}" for title in titles.values())]
    for name, stats in sets.items():
        cells = (f"{100 * stats[c]:{max(6, len(title))}.1f}" for c, title in titles.items())
        lines.append(f"{name:<10}" + "  ".join(cells))
    return "\n".join(lines)


main = functools.partial(command.run, "demo", Demo, walk, table=False)

if __name__ == "__main__":
    main()
