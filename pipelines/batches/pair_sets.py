"""What a training reads: the directory of one prepare, or those of several with weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from idol.config import PairConfig, from_dict, to_dict
from idol.config.categories import differing
from pipelines.errors import intact
from pipelines.storage import layout, manifest, paths
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath


def stored_config(directory: str | AnyPath) -> PairConfig:
    """What a finished directory was made with. Raises: ManifestError: it is none of prepare."""
    found = manifest.read(directory, layout.PREPARE).config
    with intact(f"{directory}/{manifest.MANIFEST}"):
        return from_dict(PairConfig, found, "pairs.")


@dataclass(frozen=True, slots=True)
class PairSets:
    """Directories that prepare wrote, with the same categories.

    weights: how often each is drawn from, in relation to the others
    Raises: ValueError: no directory, one twice, or weights that are not one positive number each.
    """

    directories: tuple[AnyPath, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        count, given = len(self.directories), len(self.weights)
        if not count:
            raise ValueError("there must be a directory of pairs, got none. Run jobs.prepare first")
        places = [directory.resolve() for directory in self.directories]
        twice = [str(place) for i, place in enumerate(places) if place in places[:i]]
        if twice:
            raise ValueError(f"{twice[0]} is given twice. Give it once, with twice the weight.")
        if given != count or not all(0 < w < math.inf for w in self.weights):
            raise ValueError(
                f"{count} directories of pairs must have {count} weights, each above 0, got "
                f"{' '.join(f'{w:g}' for w in self.weights)}."
            )

    def __str__(self) -> str:
        if len(self.directories) == 1:
            return str(self.directories[0])
        every = zip(self.directories, self.weights, strict=True)
        return ", ".join(f"{directory} (weight {weight:g})" for directory, weight in every)

    def resolve(self) -> PairSets:
        """The same with absolute paths."""
        return PairSets(tuple(d.resolve() for d in self.directories), self.weights)

    @property
    def manifest_files(self) -> list[AnyPath]:
        """The manifest of each."""
        return [directory / manifest.MANIFEST for directory in self.directories]

    def configs(self) -> list[PairConfig]:
        """What each was made with. Raises: ManifestError: one is none of prepare, or unfinished."""
        return [stored_config(directory) for directory in self.directories]

    def categories(self) -> tuple[list[str], list[int]]:
        """Names and category ids by label; the ids are those of the first directory.

        Raises:
            ManifestError: as of configs.
            ValueError: the directories have other names.
        """
        found: tuple[list[str], list[int]] | None = None
        for directory, made in zip(self.directories, self._manifests(), strict=True):
            with intact(directory / manifest.MANIFEST):
                here = list(made.extra["categories"]), list(made.extra["category_ids"])
            found = found or here
            other = differing(here[0], found[0])
            if other:
                raise ValueError(
                    f"directories that are trained on together must have the same categories, but "
                    f"in {directory} and {self.directories[0]}: {other}. Prepare both from files "
                    "of the same categories (jobs.convert unites them by name)."
                )
        assert found is not None, "there is a directory"
        return found

    def input_hash(self) -> str:
        """Names the content of all of them; of one directory its manifest's hash."""
        hashes = [made.hash for made in self._manifests()]
        return hashes[0] if len(hashes) == 1 else manifest.hash_value(hashes)

    def recorded(self) -> dict[str, Any]:
        """Of several directories, what a run's settings say of each; of one, nothing."""
        if len(self.directories) == 1:
            return {}
        every = zip(self.configs(), self.weights, self._manifests(), strict=True)
        return {
            "pair_sets": [
                {"pairs": to_dict(made), "weight": weight, "hash": found.hash}
                for made, weight, found in every
            ]
        }

    def _manifests(self) -> list[Manifest]:
        return [manifest.read(directory, layout.PREPARE) for directory in self.directories]


Pairs: TypeAlias = str | AnyPath | PairSets
"""One directory, or several with weights."""


def of(pairs: Pairs) -> PairSets:
    """Of a single directory, the set of it alone."""
    return pairs if isinstance(pairs, PairSets) else PairSets((paths.at(pairs),), (1.0,))


def given(directories: Sequence[str], weights: Sequence[float] = ()) -> PairSets:
    """As a command line has them; without weights all directories are alike.

    Raises: ValueError: as of PairSets.
    """
    every = tuple(map(paths.at, directories))
    return PairSets(every, tuple(weights) or (1.0,) * len(every))
