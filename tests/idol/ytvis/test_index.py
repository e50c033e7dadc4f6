"""A results file read video by video gives what reading it as a whole gives."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.ytvis import lazy_rows
from idol.ytvis.index import ResultsIndex
from idol.ytvis.lazy_rows import UnusualLayout

MASKS = st.lists(
    st.none()
    | st.fixed_dictionaries(
        {"size": st.just([4, 5]), "counts": st.text("0123\\[]^oPQ`", max_size=8)}
    ),
    max_size=3,
)
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "video_id": st.integers(-2, 5),
            "category_id": st.integers(1, 3),
            "score": st.floats(0, 1) | st.just(float("nan")),
            "segmentations": MASKS,
        },
        optional={
            "note": st.text('"\\{},[]:video_id 12', max_size=20),
            "video": st.just({"video_id": 7}),
        },
    ).flatmap(lambda entry: st.permutations(list(entry.items())).map(dict)),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(ENTRIES, st.sampled_from([None, 0, 2]), st.sampled_from([None, (",", ":")]))
def test_every_video_has_its_entries_however_they_are_written(
    tmp_path_factory, entries, indent, separators
):
    path = tmp_path_factory.mktemp("results") / "results.json"
    path.write_text(json.dumps(entries, indent=indent, separators=separators))
    try:
        index = ResultsIndex(path)
        found = {video: index.of(video) for video in range(-2, 8)}
    except UnusualLayout:
        # Only what no results file has: text that looks like a border, or a score that is none.
        assert any("note" in entry or entry["score"] != entry["score"] for entry in entries)
        return
    assert len(index) == len(entries)
    for video, (read, rows) in found.items():
        assert rows == [n for n, entry in enumerate(entries) if entry["video_id"] == video]
        assert json.dumps(read) == json.dumps([entries[n] for n in rows])


PLAIN = json.dumps(
    [
        {
            "video_id": video,
            "category_id": 1,
            "score": 0.5,
            "segmentations": [{"size": [4, 5], "counts": "d0"}, None],
        }
        for video in (1, 2, 1)
    ]
).encode()


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.integers(0, len(PLAIN) - 1), st.binary(max_size=2)), min_size=1, max_size=3
    )
)
def test_changed_bytes_are_read_as_json_reads_them_or_refused(tmp_path_factory, changes):
    changed = bytearray(PLAIN)
    for place, put in changes:
        changed[place : place + len(put)] = put
    path = tmp_path_factory.mktemp("changed") / "results.json"
    path.write_bytes(changed)
    try:
        index = ResultsIndex(path)
        found = [index.of(video) for video in sorted(set(index.video_ids.tolist()))]
    except UnusualLayout:
        return
    whole = json.loads(bytes(changed))  # what is no JSON must have been refused above
    rows = {
        row: entry for entries, places in found for row, entry in zip(places, entries, strict=True)
    }
    assert json.dumps([rows[row] for row in sorted(rows)]) == json.dumps(whole)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[",
        '[{"video_id": 1}',
        "[1, 2]",
        '[{"score": 1}]',
        '[{"video_id": 1.5}]',
        "[null]",
    ],
)
def test_anything_else_is_left_to_the_reader_of_whole_files(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UnusualLayout):
        ResultsIndex(path)


@pytest.mark.parametrize(
    "text",
    [
        '[{"video_id": 1, "x": [}]',
        '[{"video_id": 1},, {"video_id": 1}]',
        '[{"video_id": 1},]',
        '[{"video_id": 1}] []',
        '[{"video_id": 1, "note": 1e}, {"video_id": 1}]',
    ],
)
def test_what_is_no_list_of_entries_is_noticed(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UnusualLayout):
        ResultsIndex(path)


@pytest.mark.parametrize("window", [1, 40, 1 << 18])
def test_entries_that_look_like_masks_or_hold_objects_are_entries(tmp_path, monkeypatch, window):
    monkeypatch.setattr(lazy_rows, "_WINDOW", window)
    entries = [
        {"video_id": 1, "x": [{"video_id": 2}, {"video_id": 3}]},
        {"size": 2, "video_id": 1},
        {"a": {"video_id": 1}, "video_id": 2, "ü": "}, {"},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries, ensure_ascii=False))
    index = ResultsIndex(path)
    assert index.of(1) == (entries[:2], [0, 1])
    assert index.of(2) == (entries[2:], [2])


def test_rows_with_lists_of_objects_are_left_to_reading_as_a_whole(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"video_id": 1, "parts": [{"id": 1}, {"id": 2}] * 9000}] * 30))
    with pytest.raises(UnusualLayout, match="do not look like annotations or results"):
        ResultsIndex(path)


def test_an_unknown_video_is_named_by_its_entry(tmp_path):
    path = tmp_path / "results.json"
    entry = {"video_id": 9, "category_id": 1, "score": 0.5, "segmentations": []}
    path.write_text(json.dumps([{**entry, "video_id": 1}, entry]))
    with pytest.raises(ValueError, match=r"results\[1\] has video_id 9"):
        ResultsIndex(path).check_videos([1, 2], {1: "a"})


def test_a_clip_is_no_whole_track(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('[{"video_id": 1, "first_frame": 3}]')
    with pytest.raises(UnusualLayout, match="entry 0 is of a clip"):
        ResultsIndex(path).of(1)


def test_a_file_of_many_megabytes_takes_the_memory_of_one_video(tmp_path):
    path = tmp_path / "results.json"
    mask = {"size": [400, 500], "counts": "0" * 2000}
    with path.open("w") as file:
        for n in range(6000):
            entry = {"video_id": n % 300, "category_id": 1, "score": 0.5, "segmentations": [mask]}
            file.write(("[" if n == 0 else ",") + json.dumps(entry))
        file.write("]")
    assert path.stat().st_size > 12e6
    tracemalloc.start()
    index = ResultsIndex(path)
    count = sum(len(index.of(video)[0]) for video in range(300))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 6000
    assert peak < 3e6
