"""The same videos by every route that labels and frames can take: the same pairs, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import pyarrow.fs
import pytest

from idol.config import PairConfig
from pipelines import formats
from pipelines.stages import pairs
from pipelines.storage import layout, manifest, schemas, tables
from tests import object_storage

pytestmark = pytest.mark.usefixtures("ray_local")

SOME = ("davis_breakdance", "davis_camel", "davis_car-roundabout", "davis_bear")
Rows = list[tuple[Any, ...]]


def rows_of(labels: str | Path, frames: str | Path | None, out: Path) -> Rows:
    """Every pair in its place: its frames' bytes, and its objects by category, with both masks."""
    dataset = formats.dataset(labels, frames)
    assert not dataset.rejects
    names = {video.video_id: video.name for video in dataset.videos}
    pairs.run(dataset, out, PairConfig(sampling="stored", rows_per_shard=100), num_cpus=0.5)
    found: Rows = []
    for path in manifest.shard_paths(out, layout.PREPARE):
        for row in tables.read(path, schemas.PAIRS).to_pylist():
            objects = [
                (dataset.category_names[one["label"]], one["key_rle"], one["reference_rle"])
                for one in row["instances"]
            ]
            shown = (row["key_index"], row["reference_index"], row["height"], row["width"])
            images = (row["key_jpeg"], row["reference_jpeg"])
            found.append((names[row["video_id"]], *shown, *images, sorted(objects, key=str)))
    return found


@pytest.fixture(scope="module", params=[pytest.param("all", marks=pytest.mark.slow), "some"])
def clips(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: Any) -> Path:
    """The real clips that annotate every frame, or four of them; ids from 1 in order of name."""
    source = shared / "data" / "real" / "instances.json"
    if not source.is_file():
        pytest.skip("needs the real clips in shared/data/real")
    content = json.loads(source.read_text())
    chosen = [v for v in content["videos"] if request.param == "all" or v["name"] in SOME]
    chosen.sort(key=lambda video: video["name"])
    numbers = {video["id"]: number for number, video in enumerate(chosen, 1)}
    content["annotations"] = [
        {**row, "video_id": numbers[row["video_id"]]}
        for row in content["annotations"]
        if row["video_id"] in numbers
    ]
    content["videos"] = [{**video, "id": numbers[video["id"]]} for video in chosen]
    folder: Path = tmp_path_factory.mktemp("clips")
    (folder / "JPEGImages").symlink_to(source.parent / "JPEGImages")
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def expected(clips: Path, tmp_path_factory: Any) -> Rows:
    found = rows_of(clips / "instances.json", None, tmp_path_factory.mktemp("straight") / "pairs")
    assert found
    return found


def coco_of_tracks(content: Mapping[str, Any]) -> dict[str, Any]:
    """COCO 1.0 as CVAT exports tracks: images without videos, attributes.track_id."""
    images = [
        {"id": image["id"], "width": image["width"], "height": image["height"]}
        | {"file_name": image["file_name"]}
        for image in content["images"]
    ]
    rows = [
        {key: row[key] for key in ("id", "image_id", "category_id", "segmentation", "bbox", "area")}
        | {"iscrowd": 0, "attributes": {"track_id": row["instance_id"], "occluded": False}}
        for row in content["annotations"]
    ]
    return {"images": images, "categories": content["categories"], "annotations": rows}


@pytest.mark.parametrize("route", ["cocovid", "coco of tracks", "png", "mots"])
def test_labels_in_other_forms_give_the_same_pairs(
    clips: Path, expected: Rows, tmp_path: Path, route: str
) -> None:
    joined = formats.join([formats.read(clips / "instances.json")])
    form = "cocovid" if route == "coco of tracks" else route
    lost = formats.write(joined, tmp_path / "labels.json", form)
    assert not lost
    if route == "coco of tracks":
        content = coco_of_tracks(json.loads((tmp_path / "labels.json").read_text()))
        (tmp_path / "labels.json").write_text(json.dumps(content))
    frames = clips / "JPEGImages"
    assert rows_of(tmp_path / "labels.json", frames, tmp_path / "pairs") == expected
    back = formats.join([formats.read(tmp_path / "labels.json", frames)])
    formats.write(back, tmp_path / "back.json", "ytvis")
    assert rows_of(tmp_path / "back.json", back.frames, tmp_path / "converted") == expected


def test_object_storage_gives_the_same_pairs(
    clips: Path, expected: Rows, tmp_path: Path, s3: object_storage.S3Server
) -> None:
    place = f"{object_storage.BUCKET}/{tmp_path.name}"
    remote = pyarrow.fs.S3FileSystem(
        endpoint_override=s3.address, access_key="key", secret_key="secret", region="us-east-1"
    )
    videos = json.loads((clips / "instances.json").read_text())["videos"]
    for name in ["instances.json", *(f"JPEGImages/{f}" for v in videos for f in v["file_names"])]:
        with remote.open_output_stream(f"{place}/{name}") as file:
            file.write((clips / name).read_bytes())
    assert rows_of(f"s3://{place}/instances.json", None, tmp_path / "pairs") == expected


def frames_of(video: Mapping[str, Any], folder: Path) -> Iterator[Any]:
    for name in video["file_names"]:
        yield cv2.imread(str(folder / name))


def test_a_film_without_loss_gives_the_pairs_of_its_pictures(
    clips: Path, expected: Rows, tmp_path: Path
) -> None:
    content = json.loads((clips / "instances.json").read_text())
    for video in content["videos"]:
        path = tmp_path / "films" / f"{video['name']}.mp4"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as film:
            stream = film.add_stream("libx264rgb", rate=Fraction(24))
            stream.width, stream.height, stream.pix_fmt = video["width"], video["height"], "bgr24"
            stream.options = {"crf": "0", "preset": "ultrafast"}
            for image in frames_of(video, clips / "JPEGImages"):
                film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            film.mux(stream.encode())

    def named(kind: Callable[[str, int], str]) -> Path:
        changed = [
            {**v, "file_names": [kind(v["name"], t) for t in range(v["length"])]}
            for v in content["videos"]
        ]
        out = tmp_path / f"{kind('all', 0)[:3]}_{len(kind('all', 0))}.json"
        out.write_text(json.dumps({**content, "videos": changed}))
        return out

    for video in content["videos"]:
        (tmp_path / "films" / video["name"]).mkdir()
        for t, image in enumerate(frames_of(video, clips / "JPEGImages")):
            cv2.imwrite(str(tmp_path / "films" / video["name"] / f"{t:05d}.png"), image)
    films = named(lambda name, t: f"{name}.mp4#{t}")
    pictures = named(lambda name, t: f"{name}/{t:05d}.png")
    by_film = rows_of(films, tmp_path / "films", tmp_path / "pairs_of_films")
    by_picture = rows_of(pictures, tmp_path / "films", tmp_path / "pairs_of_pictures")
    assert by_film == by_picture
    # The JPEG folder keeps the files' bytes; all else of its pairs is the same.
    assert [(*row[:5], row[7]) for row in by_film] == [(*row[:5], row[7]) for row in expected]
