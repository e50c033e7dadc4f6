"""Categories of the benchmarks, and when two lists are the same."""

import pytest

from idol import presets
from idol.config.categories import BENCHMARKS, differing, same


def test_the_benchmarks_have_their_numbers_of_categories_and_none_twice():
    assert {name: len(names) for name, names in BENCHMARKS.items()} == {
        "ytvis19": 40,
        "ytvis21": 40,
        "ovis": 25,
    }
    assert all(len({n.lower() for n in names}) == len(names) for names in BENCHMARKS.values())


@pytest.mark.parametrize("name", [n for n in presets.PRESETS if n.startswith(("ytvis", "ovis"))])
def test_presets_of_benchmarks_know_their_categories(name):
    config = presets.by_name(name)
    assert config.categories == BENCHMARKS[name.partition("_")[0]]
    assert config.category_ids[:2] == (1, 2)


def test_case_and_separators_make_no_other_category():
    assert same("Giant_panda", "giant panda")
    assert not same("car", None)
    assert not same("+", "-")
    assert differing(["Person", "giant_panda"], ["person", "Giant-Panda"]) == ""
    assert differing(["a", "b"], ["a"]) == "there are 2, here 1"
    found = differing(BENCHMARKS["ytvis19"], BENCHMARKS["ytvis21"])
    assert found == "label 0 is 'person' there and 'airplane' here; 40 of 40 differ"
