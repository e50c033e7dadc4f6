"""The numbers of a report for the experiment log, from the mapping that they once came in."""

from dataclasses import fields
from typing import Any

from pipelines.storage.reports import CategoryMetrics, EvaluationReport


def flat_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """EvaluationReport.flat of a summary with per_category rows of name and AP."""
    rows = enumerate(summary["per_category"])
    given = {
        **{name: summary[name] for name in ("metrics", "videos", "rejects")},
        "per_category": [
            CategoryMetrics(category_id=i, name=r["name"], stats={"AP": r["AP"]}) for i, r in rows
        ],
    }
    nothing: dict[str, Any] = {field.name: {} for field in fields(EvaluationReport)}
    return EvaluationReport(**{**nothing, **given}).flat()
