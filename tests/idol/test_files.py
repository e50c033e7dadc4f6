from pathlib import Path

import pytest

from idol.files import load_json, whole_file, write_whole


def test_a_file_replaces_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "results.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o044 == 0o044


def test_after_an_error_the_old_file_stays_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_whole(path, b"old")

    def fail_half_way() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"videos": [', "is not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"id": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b'"\xff"', "is not valid JSON"),
    ],
)
def test_what_is_no_json_is_told_with_the_name_of_the_file(
    tmp_path: Path, text: bytes, reason: str
) -> None:
    path = tmp_path / "truth.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=reason) as caught:
        load_json(path, "truth")
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the truth file"):
        load_json(tmp_path / "none.json", "truth")
    with pytest.raises(IsADirectoryError, match="name the truth file in it"):
        load_json(tmp_path, "truth")
