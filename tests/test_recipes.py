"""The recipes can be run: their commands parse, their presets exist, each starts from the last."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tyro

from idol import presets

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.sh"))


def commands(recipe: Path, tmp_path: Path) -> list[list[str]]:
    """What the recipe would run, as its shell splits it."""
    listed = tmp_path / "python"
    listed.write_text('#!/bin/sh\nprintf "%s\\t" "$@" >> "$LISTED"\necho >> "$LISTED"\n')
    listed.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LISTED": str(tmp_path / "listed"),
        "DATA": "/data",
        "OUT": "/out",
    }
    subprocess.run(["bash", str(recipe)], env=environment, check=True, timeout=60)
    lines = (tmp_path / "listed").read_text().splitlines()
    return [line.rstrip("\t").split("\t") for line in lines]


def parsed(words: list[str]) -> Any:
    """The options of a command of a recipe."""
    assert words[0] == "-m"
    job = importlib.import_module(words[1])
    (options,) = [word for word in job.main.args if isinstance(word, type)]
    with contextlib.redirect_stderr(None):
        return tyro.cli(options, args=words[2:])


def test_every_row_of_the_papers_tables_has_a_recipe() -> None:
    names = {path.stem for path in RECIPES}
    table3 = {f"ytvis19_{b}{d}" for b in ("r50", "r101", "swin_l") for d in ("", "_dagger")}
    others = {f"{data}_{b}" for data in ("ytvis21", "ovis") for b in ("r50", "swin_l")}
    rivals = {"seqformer_ytvis19_r50", "ifc_ytvis19_r50"}
    assert names == table3 | others | rivals


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_chain_of_known_commands(recipe: Path, tmp_path: Path) -> None:
    assert recipe.stat().st_mode & stat.S_IXUSR
    run = commands(recipe, tmp_path)
    written: set[str] = set()
    trained: list[str] = []
    for words in run:
        job = parsed(words)
        inputs = [*getattr(job, "checkpoint", ()), getattr(job, "weights", None)]
        inputs += getattr(job, "pairs", ())
        for source in filter(None, inputs):
            assert source.removesuffix("/checkpoint.safetensors") in written, source
        assert job.out not in written
        written.add(job.out)
        if words[1] == "jobs.train":
            trained.append(job.preset)
            # What was prepared under one preset is read under another: it must fit.
            assert job.weights is None if len(trained) == 1 else job.weights is not None
            assert job.reset_classes == (len(trained) > 1 and "coco" not in job.preset)
        if getattr(job, "preset", None):
            presets.by_name(job.preset)
    backbone = re.sub(r"^[a-z]+\d*_|_dagger$", "", recipe.stem)
    dagger = [f"coco_pairs_{backbone}"] if recipe.stem.endswith("_dagger") else []
    last = recipe.stem.removesuffix("_dagger")
    first = {"ifc": ["ifc_coco_r50"], "seqformer": []}.get(
        recipe.stem.partition("_")[0], [f"coco_instance_{backbone}"]
    )
    assert trained == [*first, *dagger, last]
    assert [words[1] for words in run][-1] == "jobs.evaluate"


def test_the_images_of_step_1_are_those_of_step_2() -> None:
    for backbone in ("r50", "r101", "swin_l"):
        first, second = (
            presets.by_name(f"coco_{step}_{backbone}") for step in ("instance", "pairs")
        )
        assert first.pairs == second.pairs
        assert first.model.num_classes == second.model.num_classes
