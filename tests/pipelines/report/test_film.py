"""Films: H.264 that browsers play, of the length, rate and pictures that were given."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.report import film
from pipelines.report.film import Film


def write(path: Path, images: list[np.ndarray], rate: float = 24.0) -> Path:
    with Film(path, rate) as made:
        for image in images:
            made.add(image)
        made.finish()
    return path


def test_a_film_is_h264_with_the_index_in_front(tmp_path: Path) -> None:
    images = [np.full((48, 64, 3), 20 * n, np.uint8) for n in range(10)]
    path = write(tmp_path / "a.mp4", images, rate=30000 / 1001)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == pytest.approx(30000 / 1001)
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == 10
    for image, expected in zip(shown, images, strict=True):
        assert np.abs(image.astype(int) - expected).max() <= 3


def test_an_odd_side_is_filled_up(tmp_path: Path) -> None:
    with av.open(str(write(tmp_path / "a.mp4", [np.zeros((33, 49, 3), np.uint8)]))) as container:
        context = container.streams.video[0].codec_context
        assert (context.height, context.width) == (34, 50)


def test_a_film_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with Film(tmp_path / "a.mp4", 10) as made:
        made.add(np.zeros((32, 32, 3), np.uint8))  # as where an error follows
    with Film(tmp_path / "a.mp4", 10) as made:
        made.finish()  # without frames
    assert list(tmp_path.iterdir()) == []


def test_without_an_encoder_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "_ENCODERS", (("no-such-encoder", {}),))
    with pytest.raises(PipelineError, match=r"neither H\.264 nor VP9\. --no-video"):
        write(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)])
    assert list(tmp_path.iterdir()) == []


def test_the_next_encoder_is_taken_where_the_first_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "_ENCODERS", film._ENCODERS[2:])
    path = write(tmp_path / "a.mp4", [np.full((32, 32, 3), 90, np.uint8)] * 3)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "vp9"
        assert len(list(container.decode(video=0))) == 3
