"""Several checkpoints, on one set of videos or several, in one submission and on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idol.addresses import shown
from pipelines.report import run_page
from pipelines.storage import manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.reports import EvaluationReport

TABLE = "comparison.json"
PAGE = "comparison.html"
FILES = {"table": TABLE, "page": PAGE}
"""What the directory of a comparison holds beside a folder for each checkpoint."""


def names(checkpoints: Sequence[str]) -> dict[str, str]:
    """A short name for each checkpoint (or output) -> it: the parts of its path that tell it apart.

    Raises:
        ValueError: the same checkpoint is given twice.
    """
    if len(set(checkpoints)) < len(checkpoints):
        twice = next(c for c in checkpoints if checkpoints.count(c) > 1)
        raise ValueError(f"{twice} is given twice")
    parts = {c: _parts(c) for c in checkpoints}
    for depth in range(1, 1 + max(map(len, parts.values()))):
        short = {c: "-".join(p[-depth:]) for c, p in parts.items()}
        if len(set(short.values())) == len(checkpoints):
            return {name: c for c, name in short.items()}
    return {f"{'-'.join(parts[c])}-{number}": c for number, c in enumerate(checkpoints, start=1)}


def write(out: AnyPath, folders: Mapping[str, Mapping[str, AnyPath]]) -> None:
    """Compare finished evaluations in comparison.json and comparison.html.

    folders: checkpoint -> set of videos -> output of evaluate.run
    Raises:
        ManifestError: one of them is not finished.
    """
    table: dict[str, dict[str, Any]] = {}
    shown: dict[str, AnyPath] = {}
    for checkpoint, sets in folders.items():
        for name, folder in sets.items():
            report = EvaluationReport.read(folder)
            table.setdefault(checkpoint, {})[name] = {
                **report.headline(),
                "switches": sum(row.switches for row in report.per_video),
                "rejects": len(report.rejects),
            }
            shown[checkpoint if len(sets) == 1 else f"{checkpoint}, {name}"] = folder
    manifest.commit_json(table, out / TABLE)
    run_page.write(out / PAGE, title=f"{len(folders)} checkpoints side by side", evaluations=shown)


def _parts(checkpoint: str) -> list[str]:
    """The path's parts without a suffix, and without what says nothing."""
    path = shown(checkpoint).split("#")[0].partition("://")[2] or checkpoint
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    parts[-1] = parts[-1].removesuffix(".safetensors").removesuffix(".pth")
    # jobs.train names every one of its results checkpoint.safetensors, in a folder of its own.
    if parts[-1] == "checkpoint" and len(parts) > 1:
        parts.pop()
    return parts
