"""The compiled reader of entries takes nothing that Python's would not, and says the same."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

entry_kernel = pytest.importorskip("idol.ytvis.entry_kernel")

SIZE, LENGTH = (4, 5), 2
NUMBERS = st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text("ab {}[],:0", max_size=6),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text("abc"), inside),
    max_leaves=6,
)
MASK = st.none() | st.permutations(
    [("size", list(SIZE)), ("counts", "01P\\o")],
).map(dict)
ENTRY = st.fixed_dictionaries(
    {
        "video_id": st.integers(-3, 10**9),
        "category_id": st.integers(1, 40),
        "score": NUMBERS,
        "segmentations": st.lists(MASK, min_size=LENGTH, max_size=LENGTH),
    },
    optional={"bboxes": PLAIN, "id": PLAIN, "video": PLAIN},
).flatmap(lambda entry: st.permutations(list(entry.items())).map(dict))


def scan(pieces: list[bytes]):
    stops = np.cumsum([len(p) for p in pieces], dtype=np.int64)
    begins = stops - np.array([len(p) for p in pieces], np.int64)
    text = b"".join(pieces) + entry_kernel.PADDING
    return entry_kernel.scan(text, begins, stops, SIZE, LENGTH)


def same(found, entries) -> None:
    ids, scores, masks = found
    assert ids.tolist() == [[e["video_id"], e["category_id"]] for e in entries]
    assert scores.tolist() == [float(e["score"]) for e in entries]
    for n, entry in enumerate(entries):
        assert len(entry["segmentations"]) == LENGTH
        for t, mask in enumerate(entry["segmentations"]):
            start, length = masks.starts[n, t], masks.lengths[n, t]
            if mask is None:
                assert length == -1
            else:
                assert mask.keys() == {"size", "counts"}
                assert mask["size"] == list(SIZE)
                characters = masks.characters[start : start + length]
                assert characters.tobytes() == mask["counts"].encode("utf8")


@settings(deadline=None, max_examples=300)
@given(
    st.lists(ENTRY, max_size=4),
    st.sampled_from([None, 0, 2, "\t"]),
    st.sampled_from([None, (",", ":"), (" , ", " : ")]),
)
def test_what_is_plain_is_read_however_it_is_written(entries, indent, separators):
    pieces = [json.dumps(e, indent=indent, separators=separators).encode() for e in entries]
    found = scan(pieces)
    assert found is not None
    same(found, entries)


@settings(deadline=None, max_examples=1000)
@given(
    ENTRY,
    st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.integers(0, 2),
            st.sampled_from([*b'"\\{}[],:0123456789.eE+- \nNnultrefasI\x00\x1f\x7f\xc3']),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_what_is_taken_of_a_damaged_text_is_what_json_says(entry, damages):
    text = bytearray(json.dumps(entry).encode())
    for place, kind, letter in damages:
        at = int(place * len(text))
        if kind == 0:
            text[at] = letter
        elif kind == 1:
            text.insert(at, letter)
        else:
            del text[at]
    found = scan([bytes(text)])
    if found is not None:
        same(found, [json.loads(text)])


@pytest.mark.parametrize(
    "change",
    [
        {"score": float("nan")},
        {"score": "0.5"},
        {"score": None},
        {"video_id": 1.0},
        {"video_id": 10**18},
        {"category_id": True},
        {"first_frame": 3},
        {"segmentations": [None]},
        {"segmentations": [None] * 3},
        {"segmentations": None},
        {"segmentations": [None, [[1, 1, 2, 2, 3, 3]]]},
        {"segmentations": [None, {"size": [5, 4], "counts": "0"}]},
        {"segmentations": [None, {"size": [4, 5], "counts": [20]}]},
        {"segmentations": [None, {"size": [4, 5], "counts": "0", "id": 1}]},
        {"segmentations": [None, {"size": [4, 5]}]},
        {"segmentations": [None, {"size": [4, 5], "counts": "\n"}]},
        {"name": "ü"},
        {"deep": json.loads("[" * 70 + "]" * 70)},
    ],
)
def test_what_is_unusual_is_left_to_pythons_reader(change):
    entry = {"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [None, None]}
    assert scan([json.dumps(entry).encode()]) is not None
    assert scan([json.dumps({**entry, **change}, ensure_ascii=False).encode()]) is None


def test_a_name_without_its_quote_is_left_to_pythons_reader():
    text = (
        b'{"score": 1, "video_id": 1, "category_id": 1, "segmentations": [null, {\\size": [4, 5], '
    )
    assert scan([text + b'"counts": "0"}]}']) is None
    assert scan([text.replace(b"\\", b'"') + b'"counts": "0"}]}']) is not None


def test_a_name_twice_is_left_to_pythons_reader():
    text = (
        b'{"score": 1, "video_id": 1, "category_id": 1, "segmentations": [null, null], "score": 2}'
    )
    assert scan([text]) is None
