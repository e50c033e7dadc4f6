"""The categories of the benchmarks, and whether two lists of categories are the same."""

from __future__ import annotations

from collections.abc import Sequence


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BENCHMARKS: dict[str, tuple[str, ...]] = {
    "ytvis19": _names(
        "person giant_panda lizard parrot skateboard sedan ape dog snake monkey hand rabbit duck "
        "cat cow fish train horse turtle bear motorbike giraffe leopard fox deer owl surfboard "
        "airplane truck zebra tiger elephant snowboard boat shark mouse frog eagle earless_seal "
        "tennis_racket"
    ),
    "ytvis21": _names(
        "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc "
        "fox frog giant_panda giraffe horse leopard lizard monkey motorbike mouse parrot person "
        "rabbit shark skateboard snake snowboard squirrel surfboard tennis_racket tiger train "
        "truck turtle whale zebra"
    ),
    "ovis": _names(
        "Person Bird Cat Dog Horse Sheep Cow Elephant Bear Zebra Giraffe Poultry Giant_panda "
        "Lizard Parrot Monkey Rabbit Tiger Fish Turtle Bicycle Motorcycle Airplane Boat Vehical"
    ),
}
"""Benchmark -> names by category_id, which count from 1; spelt as in its annotation files."""


def same(first: str | None, second: str | None) -> bool:
    """Whether two names are one category's: case and separators are no difference."""
    if first is None or second is None:
        return first is second
    return _letters(first) == _letters(second)


def differing(known: Sequence[str], wanted: Sequence[str]) -> str:
    """How categories by label differ, in words; "" where they are the same."""
    if len(known) != len(wanted):
        return f"there are {len(known)}, here {len(wanted)}"
    wrong = [i for i, pair in enumerate(zip(known, wanted, strict=True)) if not same(*pair)]
    if not wrong:
        return ""
    first = f"label {wrong[0]} is {known[wrong[0]]!r} there and {wanted[wrong[0]]!r} here"
    return f"{first}; {len(wrong)} of {len(known)} differ"


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum()) or name
