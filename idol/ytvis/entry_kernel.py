"""Entries of results files read by compiled code: from JSON text to masks, without an object each.

It reads what nearly every results file looks like, strictly, and leaves anything else to Python's
reader: an escaped name, a mask of another size, a score that is no number.

Import this only where numba is known to be wanted: that alone takes half a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from idol.masks.kernels import compiled
from idol.masks.packed import PackedMasks

PADDING = b'"' * 16
"""What must follow the text: strings end there, and no word that is looked for reads beyond."""

_QUOTE, _COMMA, _COLON, _MINUS, _DOT, _ESCAPE = (ord(c) for c in '",:-.\\')
_OPEN_LIST, _CLOSE_LIST, _OPEN, _CLOSE = (ord(c) for c in "[]{}")
_ZERO, _NINE, _PLUS, _EXPONENT, _CAPITAL = (ord(c) for c in "09+eE")
_DEEPEST = 60  # lists and objects within one another that are looked through


def _letters(word: str) -> NDArray[np.uint8]:
    return np.frombuffer(word.encode("ascii"), np.uint8)


_NULL, _TRUE, _FALSE = (_letters(word) for word in ("null", "true", "false"))
_VIDEO, _CATEGORY, _SCORE = (_letters(f'{name}"') for name in ("video_id", "category_id", "score"))
_MASKS, _CLIP = (_letters(f'{name}"') for name in ("segmentations", "first_frame"))
_SIZE, _COUNTS = (_letters(f'{name}"') for name in ("size", "counts"))


@compiled
def _space(text: Any, place: int) -> int:
    """The next place that is no white space."""
    while text[place] == 32 or text[place] == 10 or text[place] == 13 or text[place] == 9:
        place += 1
    return place


@compiled
def _is(text: Any, place: int, word: Any) -> bool:
    if place + len(word) > len(text):
        return False
    for k in range(len(word)):  # noqa: SIM110 (numba knows no all())
        if text[place + k] != word[k]:
            return False
    return True


@compiled
def _number(text: Any, place: int) -> Any:
    """End of a JSON number, -1 if it is none; its value and True if it is a whole one."""
    negative = text[place] == _MINUS
    if negative:
        place += 1
    first, value = place, np.int64(0)
    while _ZERO <= text[place] <= _NINE:
        if place - first < 18:
            value = 10 * value + np.int64(text[place]) - _ZERO
        place += 1
    digits = place - first
    if digits == 0 or (digits > 1 and text[first] == _ZERO):
        return -1, 0, False
    whole = digits <= 18
    if text[place] == _DOT:
        whole = False
        place += 1
        first = place
        while _ZERO <= text[place] <= _NINE:
            place += 1
        if place == first:
            return -1, 0, False
    if text[place] == _EXPONENT or text[place] == _CAPITAL:
        whole = False
        place += 1
        if text[place] == _PLUS or text[place] == _MINUS:
            place += 1
        first = place
        while _ZERO <= text[place] <= _NINE:
            place += 1
        if place == first:
            return -1, 0, False
    return place, -value if negative else value, whole


@compiled
def _string(text: Any, place: int) -> int:
    """The place after a string of plain characters, -1 for any other."""
    if text[place] != _QUOTE:
        return -1
    place += 1
    while text[place] != _QUOTE:
        if text[place] < 32 or text[place] > 126 or text[place] == _ESCAPE:
            return -1
        place += 1
    return place + 1


@compiled
def _colon(text: Any, place: int) -> int:
    """From after a name to its value, -1 where no colon is."""
    place = _space(text, place)
    return _space(text, place + 1) if text[place] == _COLON else -1


@compiled
def _value(text: Any, place: int) -> int:
    """The place after any JSON value of plain characters, -1 for what is none or too deep."""
    depth, objects = 0, np.int64(0)  # one bit for each that is open: whether it is an object
    while True:
        letter = text[place]
        ended = True
        if letter == _QUOTE:
            place = _string(text, place)
        elif letter == _MINUS or _ZERO <= letter <= _NINE:
            place, _, _ = _number(text, place)
        elif letter in (_OPEN_LIST, _OPEN):
            if depth == _DEEPEST:
                return -1
            inside = letter == _OPEN
            place = _space(text, place + 1)
            if text[place] == (_CLOSE if inside else _CLOSE_LIST):
                place += 1
            else:
                depth += 1
                objects = objects << 1 | np.int64(inside)
                ended = False
        elif _is(text, place, _NULL) or _is(text, place, _TRUE):
            place += 4
        elif _is(text, place, _FALSE):
            place += 5
        else:
            return -1
        if place < 0:
            return -1
        while ended:
            if depth == 0:
                return place
            place = _space(text, place)
            if text[place] == _COMMA:
                place = _space(text, place + 1)
                ended = False
            elif text[place] == (_CLOSE if objects & 1 else _CLOSE_LIST):
                place += 1
                depth -= 1
                objects >>= 1
            else:
                return -1
        if objects & 1:  # a name goes before the value
            place = _string(text, place)
            if place < 0:
                return -1
            place = _colon(text, place)
            if place < 0:
                return -1


@compiled
def _mask(text: Any, place: Any, height: int, width: int, characters: Any, used: Any) -> Any:
    """Copy the counts of {"size": [height, width], "counts": "..."}, in either order.

    returns: place after the object, -1 if it is another; characters used
    """
    sizes, strings = 0, 0
    place = _space(text, place + 1)
    while True:
        if text[place] != _QUOTE:
            return -1, used
        if _is(text, place + 1, _SIZE):
            sizes += 1
            place = _colon(text, place + 1 + len(_SIZE))
            if place < 0 or text[place] != _OPEN_LIST:
                return -1, used
            for k in range(2):
                place, side, whole = _number(text, _space(text, place + 1))
                if place < 0 or not whole or side != (width if k else height):
                    return -1, used
                place = _space(text, place)
                if text[place] != (_CLOSE_LIST if k else _COMMA):
                    return -1, used
            place += 1
        elif _is(text, place + 1, _COUNTS):
            strings += 1
            place = _colon(text, place + 1 + len(_COUNTS))
            if place < 0 or text[place] != _QUOTE:
                return -1, used
            # The text ends with quotes, so this does too. Which characters count, reading them
            # finds out; here they must only be a string. Unsigned: see `rle_kernel`.
            at, to, one = np.uintp(place + 1), np.uintp(used), np.uintp(1)
            low = np.uint8(255)
            while True:
                letter = text[at]
                at += one
                if letter == _QUOTE:
                    break
                if letter == _ESCAPE:
                    if text[at] != _ESCAPE:
                        return -1, used
                    at += one
                characters[to] = letter
                low = min(low, letter)
                to += one
            if low < 32:
                return -1, used
            place, used = np.int64(at), np.int64(to)
        else:
            return -1, used
        place = _space(text, place)
        if text[place] == _CLOSE:
            return (place + 1 if sizes == strings == 1 else -1), used
        if text[place] != _COMMA:
            return -1, used
        place = _space(text, place + 1)


@compiled
def _track(
    text: Any,
    place: int,
    height: int,
    width: int,
    characters: Any,
    used: int,
    starts: Any,
    lengths: Any,
) -> tuple[int, int]:
    """Copy the masks of one entry, a mask or null for every frame; as `_mask`."""
    if text[place] != _OPEN_LIST:
        return -1, used
    for t in range(len(starts)):
        place = _space(text, place + 1)
        starts[t], lengths[t] = used, -1
        if text[place] == _OPEN:
            place, used = _mask(text, place, height, width, characters, used)
            if place < 0:
                return -1, used
            lengths[t] = used - starts[t]
        elif _is(text, place, _NULL):
            place += 4
        else:
            return -1, used
        place = _space(text, place)
        if text[place] != (_CLOSE_LIST if t == len(starts) - 1 else _COMMA):
            return -1, used
    return place + 1, used


@compiled
def _scan(
    text: Any,
    begins: Any,
    stops: Any,
    height: int,
    width: int,
    characters: Any,
    ids: Any,
    scores: Any,
    starts: Any,
    lengths: Any,
) -> int:
    used = 0
    for n in range(len(begins)):
        if text[begins[n]] != _OPEN:
            return -1
        place = _space(text, begins[n] + 1)
        seen = 0
        while True:
            if text[place] != _QUOTE:
                return -1
            name = place + 1
            place = _string(text, place)
            if place < 0:
                return -1
            place = _colon(text, place)
            if place < 0:
                return -1
            which = 0
            if _is(text, name, _VIDEO) or _is(text, name, _CATEGORY):
                which = 1 if _is(text, name, _VIDEO) else 2
                place, ids[n, which - 1], whole = _number(text, place)
                if not whole:
                    return -1
            elif _is(text, name, _SCORE):
                which = 4
                scores[n, 0] = place
                place, _, _ = _number(text, place)
                scores[n, 1] = place
            elif _is(text, name, _MASKS):
                which = 8
                place, used = _track(
                    text, place, height, width, characters, used, starts[n], lengths[n]
                )
            elif _is(text, name, _CLIP):
                return -1
            else:
                place = _value(text, place)
            if place < 0 or seen & which:
                return -1
            seen |= which
            place = _space(text, place)
            if text[place] == _CLOSE:
                break
            if text[place] != _COMMA:
                return -1
            place = _space(text, place + 1)
        if seen != 15 or place + 1 != stops[n]:
            return -1
    return used


def scan(
    text: bytes,
    begins: NDArray[np.int64],
    stops: NDArray[np.int64],
    size: tuple[int, int],
    length: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64], PackedMasks] | None:
    """Read N entries of a video of this size and length.

    text:    JSON text and PADDING
    begins:  (N,) first character of every entry; stops: (N,) the one after its last
    returns: ids (N, 2) of video and category; scores (N,); masks of N tracks. None where an entry
             is not as usual
    """
    number = len(begins)
    ids = np.zeros((number, 2), np.int64)
    places = np.zeros((number, 2), np.int64)
    starts = np.zeros((number, length), np.int64)
    lengths = np.zeros((number, length), np.int64)
    characters = np.empty(len(text), np.uint8)
    used = _scan(
        np.frombuffer(text, np.uint8),
        begins,
        stops,
        *size,
        characters,
        ids,
        places,
        starts,
        lengths,
    )
    if used < 0:
        return None
    scores = np.array([float(text[a:b]) for a, b in places.tolist()], np.float64)
    return ids, scores, PackedMasks(characters[:used], starts, lengths)


def prepare() -> None:
    """Compile everything, or load it, before threads or forked processes want it."""
    text = b'{"video_id":1,"category_id":1,"score":0,"segmentations":[null]}'
    scan(text + PADDING, np.zeros(1, np.int64), np.full(1, len(text)), (1, 1), 1)
