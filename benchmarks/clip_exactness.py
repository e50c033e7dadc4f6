"""How far SeqFormer and IFC here are from the stored outputs of the released code.

python -m benchmarks.clip_exactness --reference ../shared/reference

Largest differences of every stored case, as the table of docs/offline.md: outputs, losses
(relative), matchings and identities that differ.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import idol
from benchmarks import machine
from idol.clips import video, weights
from idol.clips.criterion import ClipCriterion
from idol.clips.matching import ClipMatcher
from idol.clips.network import ClipNetwork
from tests.idol.clips import recipe, test_matching, test_network, test_training_oracle, test_video


def network(reference: Path, preset: str) -> ClipNetwork:
    """The network with the weights of the stored cases."""
    model = idol.clips.build(preset)
    state = recipe.released_state(reference / f"state_dict_{preset}.txt")
    model.load_state_dict(weights.released(state))
    return model


def outputs(model: ClipNetwork, arguments: Any, stored: Any, *, bgr: bool) -> dict[str, float]:
    """Largest absolute differences of one clip."""
    images, padding, _ = recipe.clip(*arguments, bgr=bgr)
    with torch.inference_mode():
        found = model(images, padding)
        masks = found.masks(stored["mask_query_idx"].astype(np.int64))
    got = {"logits": found.logits, "masks": masks}
    if found.boxes is not None:
        got["boxes"] = found.boxes
    names = {"logits": "pred_logits", "masks": "pred_masks_sub", "boxes": "pred_boxes"}
    return {
        name: float(np.abs(value.numpy() - stored[names[name]].reshape(value.shape)).max())
        for name, value in got.items()
    }


def training(model: ClipNetwork, case: str, stored: Any) -> dict[str, float]:
    """Largest relative difference of a loss, and how many matchings differ."""
    _, size, clips = test_training_oracle.CASES[case]
    batch = test_training_oracle.batch_of(size, clips)
    criterion, length = ClipCriterion(model.config), batch.images.shape[1]
    with torch.no_grad():
        frames = model.frames(batch.images.flatten(0, 1), batch.padding.flatten(0, 1), length)
        layers = model.layers(frames, length)
        named = criterion(layers, batch)
    wrong = 0
    for layer, matches in criterion.match(layers, criterion.truths(batch)):
        for b, match in enumerate(matches):
            at = f"match/l{layer}/b{b}"
            same = np.array_equal(match.queries, stored[f"{at}/query"])
            wrong += not (same and np.array_equal(match.truths, stored[f"{at}/gt"]))
    expected = {name: float(stored[f"raw/{name}"]) for name in named}
    off = max(abs(float(named[n]) - e) / max(abs(e), 1e-12) for n, e in expected.items())
    return {"losses, relative": off, "matchings that differ": wrong}


def traces(method: str, stored: Any) -> dict[str, float]:
    """Identities that differ, of all detections of all sequences without a network."""
    config = test_matching.IFC if method == "ifc" else test_matching.SEQFORMER
    wrong = total = 0
    for name in map(str, stored["names"]):
        matcher = ClipMatcher(config.match_threshold)
        for c in range(int(stored[f"{name}/n_clips"])):
            clip, _ = test_matching.clip_of(stored, f"{name}/in/{c}", method, config)
            ids = matcher.update(clip).numpy()
            wrong += int(np.count_nonzero(ids != stored[f"{name}/out/{c}/ids"]))
            total += len(ids)
    return {"identities that differ": wrong, "of": total}


def videos(model: ClipNetwork, stored: Any) -> dict[str, float]:
    """IFC's identities of a video, over its four clip lengths and strides."""
    wrong = total = 0
    runs = {"t5s1": (5, 1), "t5s3": (5, 3), "t36": (36, 1), "t3s2": (3, 2)}
    for run, (length, stride) in runs.items():
        config = test_video.replace(model.config.clips, length=length, stride=stride)
        matcher = ClipMatcher(config.match_threshold)
        images = test_video.frames(range(13))
        for c, clip in enumerate(video.predict(model, images, config)):
            ids = matcher.update(clip).numpy()
            wrong += int(np.count_nonzero(ids != stored[f"{run}/{c}/ids"]))
            total += len(ids)
    return {"identities that differ": wrong, "of": total}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, default=Path("../shared/reference"))
    options = parser.parse_args(argv)
    reference: Path = options.reference
    made = functools.lru_cache(1)(functools.partial(network, reference))
    load = functools.partial(_stored, reference)
    print(machine.header(machine.command("benchmarks.clip_exactness")))
    print("| stored case | largest difference |\n|---|---|")
    for case, (preset, arguments) in test_network.CASES.items():
        found = outputs(made(preset), arguments, load(case), bgr=preset == "ifc_r101")
        _row(case, found)
    for case, (preset, *_) in test_training_oracle.CASES.items():
        # Eval mode: the stored cases were made without dropout; sizes within a clip are equal.
        _row(case, training(made(preset), case, load(case)))
    _row("ifc_video", videos(made("ifc_r50"), load("ifc_video")))
    _row("ifc_clip_traces", traces("ifc", load("ifc_clip_traces")))
    _row("ifc_seqformer_clip_traces", traces("seqformer", load("ifc_seqformer_clip_traces")))


def _stored(reference: Path, case: str) -> Any:
    return np.load(reference / f"oracle/{case}.npz")


def _row(case: str, found: dict[str, float]) -> None:
    told = [
        f"{name} {value:.1e}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.items()
    ]
    print(f"| `{case}` | {', '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
