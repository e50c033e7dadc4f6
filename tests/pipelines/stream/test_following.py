"""Frame by frame gives what the stages give of a whole data set, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

import idol
from idol.images import live, synthetic, synthetic_dataset
from idol.images.painter import Painter
from idol.segmenter import OnlineSegmenter
from idol.ytvis import results
from pipelines import configuration, stream
from pipelines.sources import annotations
from pipelines.stages import detect, track
from pipelines.storage import layout
from tests.pipelines.stream.drawn import CAR, KITE, LENGTH, SIZE, follow


@pytest.mark.ray
def test_a_stream_ends_with_the_bytes_of_the_whole_data_set(
    ray_local: None, tmp_path: Path
) -> None:
    drawn = synthetic.SyntheticConfig.crowded()
    dataset = annotations.read(synthetic_dataset.write_dataset(tmp_path / "videos", drawn, 2, 77))
    model = idol.load("shipped")
    one_by_one = configuration.changed(model.config, ["detect.batch_frames=1"], None)
    detect.run(dataset, model, tmp_path / "detections", one_by_one, actors=1)
    for tracker in ("released", "robust"):
        config = configuration.changed(one_by_one, [], tracker)
        at = tmp_path / tracker
        track.run(tmp_path / "detections", at / "tracks", config.tracker)
        entries: list[results.Entry] = []
        for video in dataset.videos:
            segmenter = OnlineSegmenter(model, config=config)
            out = at / str(video.video_id)
            stream.prepare(out)
            summary = stream.Summary()
            opened = live.open_source(str(Path(video.frames[0]).parent))
            wanted = stream.StreamConfig(film=False, exports=())
            stream.run(opened, segmenter, out, wanted, summary)
            assert summary.frames == len(video.frames)
            of_video = segmenter.finish_ytvis(video.video_id)
            results.write(at / "alone.json", [{**entry, "video_id": 1} for entry in of_video])
            assert (out / stream.RESULTS).read_bytes() == (at / "alone.json").read_bytes()
            entries += of_video
        results.write(at / "streamed.json", entries)
        assert len(entries) > 3
        expected = (at / "tracks" / layout.RESULTS).read_bytes()
        assert (at / "streamed.json").read_bytes() == expected


def test_every_frame_of_the_film_names_the_identities_of_its_rows(tmp_path: Path) -> None:
    follow(tmp_path, every=2)
    rows: dict[int, set[int]] = {}
    for line in (tmp_path / "out" / stream.ROWS).read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["frame"], set()).add(row["track_id"])
    painter = Painter()
    colors = {track_id: painter.color(track_id) for track_id in (CAR, KITE)}
    height = 10 * SIZE[0]  # enlarged to 480; the legend is below
    with av.open(str(tmp_path / "out" / stream.FILM)) as film:
        shown = [frame.to_ndarray(format="rgb24")[height:] for frame in film.decode(video=0)]
    assert len(shown) == LENGTH // 2
    for number, legend in zip(range(0, LENGTH, 2), shown, strict=True):
        near = {
            track_id
            for track_id, color in colors.items()
            if (np.abs(legend.astype(int) - color).max(axis=2) < 25).sum() > 30
        }
        assert near == rows[number]


def test_a_film_whose_size_changes_is_told_what_to_do(tmp_path: Path) -> None:
    parts = []
    for height, width in ((96, 144), (64, 80)):
        with av.open(str(tmp_path / "part.ts"), "w") as container:
            made = container.add_stream("mpeg2video", rate=10)
            made.height, made.width = height, width
            for _ in range(3):
                container.mux(made.encode(av.VideoFrame(width, height, "yuv420p")))
            container.mux(made.encode())
        parts.append((tmp_path / "part.ts").read_bytes())
    (tmp_path / "film.ts").write_bytes(b"".join(parts))
    source = live.open_source(str(tmp_path / "film.ts"))
    config = stream.StreamConfig(film=False)
    with pytest.raises(
        live.SourceError, match=r"frame \d is \(64, 80\).* -vf scale=144:96 NEW.mp4"
    ):
        stream.run(source, OnlineSegmenter.load("shipped"), tmp_path, config, stream.Summary())
