"""Small damages to bytes and to JSON, the same for the same random generator."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf"),
    "", "0", "7", "\ud800", "a\0b", "../x", "x" * 5000, [], [[]], {}, [None], {"size": [1, 1]},
)  # fmt: skip
"""Values that files hold where another is expected."""
_NESTED = 3000  # brackets


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three damages: bits flipped, bytes lost, put in, doubled or zeroed."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(found) + 1)
        some = rng.choice((1, 2, 8, 64, 512))
        kind = rng.randrange(7)
        if kind == 0:
            del found[at:]
        elif kind == 1:
            del found[at : at + some]
        elif kind == 2:
            found[at:at] = rng.randbytes(some)
        elif kind == 3:
            found[at : at + some] = bytes(len(found[at : at + some]))
        elif kind == 4:
            found[at:at] = found[at : at + some]
        elif found:
            found[at % len(found)] ^= 1 << rng.randrange(8)
    return bytes(found)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one bit changed."""
    found = bytearray(data)
    found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def text(value: Any, rng: random.Random) -> bytes:
    """JSON of the value with one to three of its parts changed, or with damaged bytes."""
    if rng.random() < 0.25:
        return damaged(json.dumps(value).encode(), rng)
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        changed = _changed(changed, rng)
    data = json.dumps(changed, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.02:
        data = data.replace("1", "[" * _NESTED + "]" * _NESTED, 1)
    return data.encode(errors="surrogatepass")


def _changed(value: Any, rng: random.Random) -> Any:
    """The value with one part of it, at any depth, replaced, removed, doubled or exchanged."""
    place = value
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            kind = rng.randrange(8)
            if kind == 0:
                del place[key]
            elif kind == 1 and isinstance(place, list):
                place.insert(key, copy.deepcopy(place[key]))
            elif kind == 2:
                place[key] = copy.deepcopy(place[rng.choice(keys)])
            elif kind == 3 and isinstance(place[key], str) and place[key]:
                place[key] = damaged(place[key].encode(), rng).decode("latin-1")
            elif kind == 4 and isinstance(place[key], int | float):
                place[key] += rng.choice((-1, 1, 1000))
            else:
                place[key] = copy.deepcopy(rng.choice(STRANGE))
            return value
        place = place[key]
    return copy.deepcopy(rng.choice(STRANGE))
