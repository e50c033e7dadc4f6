"""What pages of the site have that is made from the code, so that it cannot differ from it."""

from __future__ import annotations

import inspect
import re
from typing import Any

from idol import clip_presets, presets
from idol.config import Config, describe
from idol.weights import zoo

MARK = re.compile(r"<!-- made: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables in the place of `<!-- made: NAME -->`."""
    makers = {"settings": settings, "presets": preset_table, "models": model_table}
    return MARK.sub(lambda found: makers[found[1]](), markdown)


def settings() -> str:
    """Every field of the configuration, by section: name, kind, limits, default, meaning."""
    lines: list[str] = []
    for name, section in describe.sections(Config()).items():
        about = " ".join((inspect.getdoc(type(section)) or "").split())
        lines += [f"\n## {name}\n", about, ""]
        lines += ["| field | kind | default | meaning |", "|---|---|---|---|"]
        for field in describe.described(name, section):
            kind = ", ".join(filter(None, (field.kind.replace("|", " or "), field.limits)))
            needed = [f" Only with `{other}` {values}." for other, values in field.beside.items()]
            default = f"`{field.default}`" if field.default else "–"
            cells = (f"`{field.name.rpartition('.')[2]}`", kind, default)
            lines.append(_row(*cells, field.meaning + "".join(needed)))
    return "\n".join(lines)


def model_table() -> str:
    """Trained weights that have a name."""
    lines = [
        "| name | preset | trained on | published AP | MB | note |",
        "|---|---|---|---|---|---|",
    ]
    for model in zoo.models():
        score = "–" if model.ap is None else model.ap
        names = f"`{model.name}`", f"`{model.preset}`"
        lines.append(_row(*names, model.trained_on, score, model.megabytes, model.note))
    return "\n".join(lines)


def preset_table() -> str:
    """Every preset with what tells it apart."""
    lines = [
        "| preset | backbone | classes | queries | steps | pairs a step | side in training "
        "| side in use | tracker |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (*presets.PRESETS, *clip_presets.PRESETS):
        config = presets.by_name(name)
        joined = f"clips of {config.clips.length or 'all'}"
        sides = config.transforms.train_short_sides
        cells = (
            f"`{name}`",
            config.model.backbone.name,
            config.model.num_classes,
            config.model.num_queries,
            config.train.steps,
            config.train.pairs_per_batch,
            f"{min(sides)}–{max(sides)}" if sides else "–",
            config.transforms.test_short_side,
            config.tracker.weighting if config.model.method == "idol" else joined,
        )
        lines.append(_row(*cells))
    return "\n".join(lines)


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
