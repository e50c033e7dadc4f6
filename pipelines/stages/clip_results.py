"""Videos to results by a network of clips, which finds and associates at once: SeqFormer, IFC."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import torch

import idol.clips
from idol.analysis import score_files
from idol.analysis.score_files import Analyses, FileMetrics
from idol.clips.network import ClipNetwork
from idol.config import AnalysisConfig, Config, to_dict
from idol.images.transforms import normalise
from idol.network.layers import Network
from idol.spool import Mapped
from idol.weights import checkpoint
from idol.ytvis import results, submission
from idol.ytvis.results import Entry
from idol.ytvis.truth import Truth
from idol.ytvis.videos import Reject
from pipelines import actors as actors_of
from pipelines import cluster, gauges, preflight
from pipelines.errors import ResourcesError, VideoError, carried, raise_carried
from pipelines.sources import frames as frame_files
from pipelines.sources.annotations import Dataset
from pipelines.stages import detect
from pipelines.stages.reject_limit import check_rejects
from pipelines.storage import claims, layout, paths, schemas, tables
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.schemas import ResultTrack

_NETWORK = "_network.safetensors"
_SCORED = AnalysisConfig(resamples=0)  # no intervals in report.json


def results_of_video(
    model: ClipNetwork,
    video_id: int,
    size: tuple[int, int],
    frames: tuple[str, ...],
    config: Config,
) -> list[ResultTrack]:
    """RESULTS of one video, whose frames are in memory only as long as a clip needs them.

    Raises: VideoError: a frame cannot be read.
    """
    read = frame_files.read_many(frames, video_id=video_id, size=size)
    images = (normalise(image, config.transforms) for image in read)
    found = idol.clips.segment(model, images, size, config.clips)
    return [
        ResultTrack(
            video_id=video_id,
            track_id=n,
            label=label,
            score=score,
            segmentations=tuple(found.masks[n].get(t) for t in range(len(frames))),
        )
        for n, label, score in found.classes(config.clips)
    ]


def run(
    dataset: Dataset,
    model: Network,
    out: AnyPath,
    config: Config,
    *,
    actors: cluster.Pool | int | None = None,
    gpu: bool | None = None,
    overwrite: bool = False,
    reject_limit: float | None = None,
) -> Manifest:
    """Write RESULTS, results.json and results.zip of all videos to out; continued when killed.

    A video is the unit of work. model: in eval mode. Other arguments and errors as of detect.run.
    """
    content = detect.input_hash(dataset, model)
    output = claims.prepare_output(
        out, layout.TRACK, claim(config), content, frames=dataset.frames, overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    if todo := output.missing(len(dataset.videos)):
        _segment(dataset, model, todo, actors, gpu, (config, out.resolve(), bool(gpu)))
    rejects = [*dataset.rejects, *output.rejects(len(dataset.videos))]
    check_rejects(dataset, rejects, reject_limit)
    with paths.whole_file(out / layout.RESULTS) as written:
        results.write(written, _entries(dataset, out, config))
    with (
        paths.local_file(out / layout.RESULTS) as written,
        paths.whole_file(out / layout.SUBMISSION) as archive,
    ):
        submission.zip_results(written, archive)
    return output.finish(total_shards=len(dataset.videos), rejects=dataset.rejects)


def claim(config: Config) -> dict[str, Any]:
    """What of the configuration the results depend on."""
    whole = to_dict(config)
    parts = ("name", "model", "transforms", "clips", "categories", "category_ids")
    return {part: whole[part] for part in parts}


def measure(truth: Truth, out: AnyPath) -> FileMetrics:
    """Metrics of results.json of a finished directory, with frame oracle and upper bound."""
    with paths.local_file(out / layout.RESULTS) as file:
        analyses = Analyses(oracle=(1,), config=_SCORED)
        return score_files.run(truth, {"results": file}, analyses).files[0]


def _entries(dataset: Dataset, out: AnyPath, config: Config) -> Iterator[Entry]:
    for position, video in enumerate(dataset.videos):
        table = tables.read(layout.shard_path(out, position), schemas.RESULTS)
        for row in map(schemas.result_from_row, schemas.rows(table)):
            category_id = config.category_ids[row.label]
            yield results.entry(row.video_id, category_id, row.score, row.segmentations, video.size)


class ClipActor:
    """One copy of the network, in an actor: videos in, finished parquet files out.

    out:         the directory to write, which also holds the network
    must_be_gpu: an actor without CUDA is an error
    """

    def __init__(self, config: Config, out: AnyPath, must_be_gpu: bool) -> None:
        import ray

        gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        if must_be_gpu and not gpu:
            raise ResourcesError(
                f"Ray gave this actor GPU {ray.get_gpu_ids()}, but torch {torch.__version__} sees "
                "no CUDA on its node. Install a CUDA build of torch there, or ask for CPUs."
            )
        if not gpu:
            torch.set_num_threads(1)
        self.config, self.out = config, out
        with paths.local_file(out / _NETWORK) as network:
            self.model = idol.clips.load(network, device="cuda" if gpu else "cpu")

    @carried
    def work(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Segment one row: {position, video: pickled id, size and frames} -> {frames, rejects}."""
        video_id, size, frames = pickle.loads(row["video"])  # nosec B301
        found: list[ResultTrack] = []
        rejects: list[Reject] = []
        try:
            found = results_of_video(self.model, video_id, size, frames, self.config)
        except VideoError as fault:
            rejects = [Reject(video_id, fault.path, fault.reason)]
        table = schemas.table([schemas.result_to_row(one) for one in found], schemas.RESULTS)
        tables.commit(table, layout.shard_path(self.out, row["position"]), rejects=rejects)
        return {"frames": len(frames), "rejects": len(rejects)}


def _segment(
    dataset: Dataset,
    model: Network,
    todo: list[int],
    actors: cluster.Pool | int | None,
    gpu: bool | None,
    arguments: tuple[Config, AnyPath, bool],
) -> None:
    """Hand the missing videos to a pool of actors. arguments: of ClipActor."""
    network, videos = arguments[1] / _NETWORK, dataset.videos
    with cluster.session():
        pool, share = detect.granted(actors, gpu, len(todo))
        first = frame_files.split(videos[todo[0]].frames[0])[0]
        preflight.check(arguments[1], [first], gpus=share, network=True)
        with paths.whole_file(network) as written:
            checkpoint.save(model, written)

        def row(position: int) -> dict[str, Any]:
            video = videos[position]
            told = (video.video_id, video.size, tuple(video.frames))
            return {"position": position, "video": pickle.dumps(told)}

        longest_first = sorted(todo, key=lambda n: (-len(videos[n]), n))
        total = sum(len(videos[n]) for n in todo)
        made = actors_of.work(ClipActor, arguments, Mapped(row, longest_first), pool, share)
        with contextlib.closing(made), cluster.progress(total, "segment", "frames") as bar:
            for done in made:
                raise_carried(done)
                bar.update(int(done["frames"]))
                gauges.count("detect", "rejects", done["rejects"])
    network.unlink()
