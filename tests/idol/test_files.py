from pathlib import Path

import pytest

from idol.files import whole_file, write_whole


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
