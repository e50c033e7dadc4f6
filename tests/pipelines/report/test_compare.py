"""Names that tell checkpoints apart."""

import pytest

from pipelines.report import compare


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        (["shipped"], ["shipped"]),
        (["a/x.pth", "b/y.safetensors"], ["x", "y"]),
        (["r/a/checkpoint.safetensors", "r/b/checkpoint.safetensors"], ["a", "b"]),
        (
            ["r/1/train/checkpoint.safetensors", "r/2/train/checkpoint.safetensors"],
            ["1-train", "2-train"],
        ),
        (["hf://me/repo/a.pth", "https://h/b.pth#sha256=ff"], ["a", "b"]),
        (["x.pth", "x.safetensors"], ["x-1", "x-2"]),
    ],
)
def test_names_are_short_and_differ(checkpoints: list[str], expected: list[str]) -> None:
    assert compare.names(checkpoints) == dict(zip(expected, checkpoints, strict=True))


def test_the_same_checkpoint_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="given twice"):
        compare.names(["a.pth", "a.pth"])
