"""A whole video by a network of clips: clip by clip, joined, and as masks of the original size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from idol.clips.matching import ClipDetections, ClipMatcher, JoinedFrame
from idol.clips.network import ClipNetwork, ClipOutputs, Frames
from idol.config import ClipConfig
from idol.images.transforms import collate_images
from idol.masks import resize, rle
from idol.ytvis.results import Entry

Method = Literal["idol", "seqformer", "ifc"]


@dataclass(slots=True, eq=False)
class VideoInstances:
    """What a network of clips found in a video of `length` frames of `size` (height, width).

    class_scores: (n, K) of each instance
    masks:        instance → frame → compressed RLE counts; frames where it has no pixel are absent
    """

    size: tuple[int, int]
    length: int = 0
    class_scores: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    masks: list[dict[int, bytes]] = field(default_factory=list)

    def classes(self, config: ClipConfig) -> list[tuple[int, int, float]]:
        """(instance, label, score) of every result, in order of instance, then label."""
        if config.several_classes:
            rows = (self.class_scores > config.score_threshold).nonzero().tolist()
        else:
            rows = [[n, int(row.argmax())] for n, row in enumerate(self.class_scores)]
        return [(n, label, float(self.class_scores[n, label])) for n, label in rows]

    def entries(
        self, video_id: int, category_ids: Sequence[int], config: ClipConfig
    ) -> list[Entry]:
        """Its part of a results file; category_ids: of the labels."""
        made: list[Entry] = []
        for n, label, score in self.classes(config):
            masks = [self.masks[n].get(t) for t in range(self.length)]
            made.append(
                {
                    "video_id": video_id,
                    "category_id": category_ids[label],
                    "score": score,
                    "segmentations": [
                        None if m is None else {"size": [*self.size], "counts": m.decode()}
                        for m in masks
                    ],
                }
            )
        return made


def select(outputs: ClipOutputs, method: Method, config: ClipConfig) -> tuple[Tensor, Tensor]:
    """The detections of a clip: object queries (N,), and their class vectors.

    SeqFormer: the config.candidates of highest score, descending; σ of the logits (N, K). IFC:
    those whose best class is not "no object", in order; softmax of the logits (N, K + 1).
    """
    logits = outputs.logits.float()
    if method == "ifc":
        scores = logits.softmax(1)
        rows = (scores.argmax(1) != scores.shape[1] - 1).nonzero()[:, 0]
        return rows, scores[rows]
    scores = logits.sigmoid()
    rows = scores.amax(1).topk(min(config.candidates, len(scores))).indices
    return rows, scores[rows]


@torch.inference_mode()
def predict(
    model: ClipNetwork, images: Iterable[Tensor], config: ClipConfig | None = None
) -> Iterator[ClipDetections]:
    """The detections of clip after clip of a video, each as soon as its frames are there.

    Clips start at 0, stride, 2 stride, ...; the first that reaches the end of the video is moved
    back to end there, and is the last. Frames of overlapping clips go through the backbone once.

    images: (3, h, w) normalised, all of one size, in order of time
    config: None: the network's own
    Raises: ValueError: images differ in size.
    """
    config = config or model.config.clips
    for start, frames in _windows(_frames(model, images, config), config):
        outputs = model.layers(frames, len(frames)).clip(0)
        rows, scores = select(outputs, model.config.model.method, config)
        span = range(start, start + len(frames))
        yield ClipDetections(span, scores, outputs.masks(rows))


def segment(
    model: ClipNetwork,
    images: Iterable[Tensor],
    size: tuple[int, int],
    config: ClipConfig | None = None,
) -> VideoInstances:
    """The instances of a video: predict, join clips, resize masks. No video is too long for it,
    unless config.length is 0: then all frames are one clip.

    images: (3, h, w) normalised, all of one size (idol.images.transforms.normalise)
    size:   (height, width) of the results' masks, that of the original frames
    config: None: the network's own
    Raises: ValueError: as predict.
    """
    config = config or model.config.clips
    rest = iter(images)
    if (first := next(rest, None)) is None:
        return VideoInstances(size)
    clips = predict(model, chain([first], rest), config)
    height, width = first.shape[1:]
    return join(clips, model.config.model.method, (height, width), size, config)


def join(
    clips: Iterable[ClipDetections],
    method: Method,
    input_size: tuple[int, int],
    size: tuple[int, int],
    config: ClipConfig,
) -> VideoInstances:
    """The instances of one video from the detections of its clips, in order of their first frames.

    input_size: (height, width) of the un-padded input; size: of the results' masks
    """
    found = VideoInstances(size)
    matcher = ClipMatcher(config.match_threshold)

    def keep(frames: Iterable[JoinedFrame]) -> None:
        for frame in frames:
            encoded = finish(frame.masks, method, input_size, size)
            found.masks += [{} for _ in range(matcher.association.instances - len(found.masks))]
            for identity, counts in zip(frame.identities.tolist(), encoded, strict=True):
                if counts is not None:
                    found.masks[identity][frame.index] = counts

    for clip in clips:
        matcher.update(clip)
        keep(matcher.finished(clip.frames[0]))
        found.length = max(found.length, clip.frames[-1] + 1)
    keep(matcher.finished())
    scores = matcher.class_scores()
    found.class_scores = scores[:, :-1] if method == "ifc" else scores
    found.masks += [{} for _ in range(len(scores) - len(found.masks))]
    return found


def clip_entries(
    clip: ClipDetections,
    method: Method,
    input_size: tuple[int, int],
    size: tuple[int, int],
    video_id: int,
    category_ids: Sequence[int],
    config: ClipConfig,
) -> list[Entry]:
    """One clip's part of a file of clip predictions, joined with no other (idol.analysis.clips).

    Every entry has the clip's first_frame, and one mask for each of its frames; arguments as of
    join and VideoInstances.entries.
    """
    alone = replace(clip, frames=range(len(clip.frames)))
    entries = join([alone], method, input_size, size, config).entries(
        video_id, category_ids, config
    )
    return [{**entry, "first_frame": clip.frames[0]} for entry in entries]


def finish(
    logits: Tensor, method: Method, input_size: tuple[int, int], size: tuple[int, int]
) -> list[bytes | None]:
    """Mask logits as compressed RLE counts of the original size; None: no pixel.

    SeqFormer: as IDOL, bilinear to the input, threshold, nearest. IFC: the whole map, bilinear to
    the original size, threshold (specification 5.4).

    logits:     (n, h, w) at the network's resolution
    input_size: (height, width) of the un-padded input; size: of the original frame
    """
    if len(logits) == 0:
        return []
    if method == "ifc":
        maps = logits.float()[None]
        masks = (F.interpolate(maps, size, mode="bilinear", align_corners=False)[0] > 0).cpu()
        encoded = rle.encode_masks(masks.numpy())
    else:
        encoded = resize.resize_and_encode(logits, input_size, size, "released")
    empty = rle.encode_masks(torch.zeros(1, *size, dtype=torch.bool).numpy())[0]
    return [None if counts == empty else counts for counts in encoded]


def _frames(model: ClipNetwork, images: Iterable[Tensor], config: ClipConfig) -> Iterator[Frames]:
    """What the network computes of every frame by itself, some frames at a time."""
    device = next(model.parameters()).device
    first: tuple[int, ...] = ()
    rest = iter(images)
    while some := list(islice(rest, config.batch_frames)):
        shapes = {tuple(image.shape) for image in some} | ({first} if first else set())
        if len(shapes) > 1:
            raise ValueError(f"the frames of a video must have one size, got {sorted(shapes)}")
        first = tuple(some[0].shape)
        pixels, padding = collate_images(some, model.divisor)
        pixels, padding = pixels.to(device), padding.to(device)
        yield model.frames(pixels, model.checked(pixels, padding), len(some))


def _windows(parts: Iterator[Frames], config: ClipConfig) -> Iterator[tuple[int, Frames]]:
    """(first frame, frames) of every clip, from consecutive frames in parts of any size."""
    have, first, start, ended = next(parts, None), 0, 0, False
    if have is None:
        return
    while True:
        # Whether the video goes on behind the clip decides whether it is the last.
        while not ended and (not config.length or first + len(have) <= start + config.length):
            part = next(parts, None)
            ended = part is None
            have = have if part is None else have.followed_by(part)
        end = first + len(have)
        if ended and (not config.length or start + config.length >= end):
            if start < end:
                start = max(0, end - config.length) if config.length else 0
                yield start, have[start - first :]
            return
        yield start, have[start - first : start - first + config.length]
        # The last clip may start one frame after this one.
        drop = min(start + 1 - first, len(have))
        have, first, start = have[drop:], first + drop, start + config.stride
