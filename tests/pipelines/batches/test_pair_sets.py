"""The directories of a training: which are refused, and what is recorded of them."""

import json
import pickle
from pathlib import Path

import pytest

from idol.config import PairConfig, to_dict
from pipelines.batches import pair_sets
from pipelines.errors import ManifestError
from pipelines.storage import claims, layout, manifest

PSEUDO = PairConfig(pseudo=True)


def finished(path: Path, names, config=None, ids=None) -> str:
    output = claims.prepare_output(path, layout.PREPARE, to_dict(config or PairConfig()), path.name)
    output.finish(extra={"categories": names, "category_ids": ids or list(range(len(names)))})
    return str(path)


def test_one_directory_is_recorded_as_before(tmp_path):
    alone = pair_sets.of(finished(tmp_path / "a", ["car"]))
    assert alone.weights == (1.0,)
    assert alone.input_hash() == manifest.read(tmp_path / "a").hash
    assert alone.recorded() == {}
    assert str(alone) == str(tmp_path / "a")
    assert pair_sets.of(alone) is alone


def test_several_are_recorded_with_what_each_was_made_with(tmp_path):
    words = [finished(tmp_path / "a", ["car"]), finished(tmp_path / "b", ["car"], PSEUDO)]
    sets = pair_sets.given(words, [2, 1])
    first, second = sets.recorded()["pair_sets"]
    assert (first["weight"], second["weight"]) == (2, 1)
    assert first["pairs"] == to_dict(PairConfig())
    assert second["pairs"] == to_dict(PSEUDO)
    assert [first["hash"], second["hash"]] == [manifest.read(word).hash for word in words]
    json.dumps(sets.recorded())  # plain types
    assert pickle.loads(pickle.dumps(sets)) == sets  # workers get it
    assert str(sets) == f"{words[0]} (weight 2), {words[1]} (weight 1)"
    # In another order the places of a batch have other pairs.
    assert sets.input_hash() != pair_sets.given(words[::-1], [1, 2]).input_hash()
    assert pair_sets.given(words).weights == (1, 1)


def test_categories_are_the_same_by_name_and_the_first_has_the_ids(tmp_path):
    words = [
        finished(tmp_path / "a", ["giant_panda", "car"], ids=[3, 9]),
        finished(tmp_path / "b", ["Giant panda", "Car"], ids=[1, 2]),
    ]
    assert pair_sets.given(words).categories() == (["giant_panda", "car"], [3, 9])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["car", "person"], r"label 0 is 'car' there and 'person' here; 2 of 2 differ\."),
        (["person"], "there are 1, here 2"),
    ],
)
def test_other_categories_are_refused_and_both_directories_named(tmp_path, names, told):
    words = [finished(tmp_path / "a", ["person", "car"]), finished(tmp_path / "b", names)]
    with pytest.raises(ValueError, match=rf"in .*b and .*a: {told}.*jobs\.convert unites"):
        pair_sets.given(words).categories()


def test_an_unfinished_directory_and_one_of_another_stage_are_refused(tmp_path):
    good = finished(tmp_path / "a", ["car"])
    claims.prepare_output(tmp_path / "b", layout.PREPARE, {}, "h")
    with pytest.raises(ManifestError, match=r"b holds an unfinished 'prepare' output"):
        pair_sets.given([good, str(tmp_path / "b")]).configs()
    claims.prepare_output(tmp_path / "c", layout.TRAIN, {}, "h").finish()
    with pytest.raises(ManifestError, match=r"c holds 'train' output, not 'prepare'"):
        pair_sets.given([good, str(tmp_path / "c")]).configs()


def test_a_directory_of_another_schema_version_is_refused(tmp_path):
    words = [finished(tmp_path / "a", ["car"]), finished(tmp_path / "b", ["car"])]
    path = tmp_path / "b" / manifest.MANIFEST
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "schema_version": values["schema_version"] - 1}))
    with pytest.raises(ManifestError, match=r"b holds tables of schema version .* --overwrite"):
        pair_sets.given(words).categories()


@pytest.mark.parametrize(
    ("count", "weights", "told"),
    [
        (0, [], "got none"),
        (2, [1], "2 directories of pairs must have 2 weights"),
        (2, [1, 0], "each above 0, got 1 0"),
        (2, [1, float("nan")], "each above 0"),
        (1, [float("inf")], "each above 0"),
    ],
)
def test_weights_that_say_nothing_are_refused(count, weights, told):
    with pytest.raises(ValueError, match=told):
        pair_sets.given([f"pairs{i}" for i in range(count)], weights)


def test_a_directory_twice_is_refused_however_it_is_spelt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        pair_sets.given(["a", str(tmp_path / "a")])
