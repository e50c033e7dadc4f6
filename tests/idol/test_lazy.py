"""Packages whose public names are imported on first use."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import idol

ROOMS = sorted(
    path.parent.name
    for path in Path(idol.__file__).parent.glob("*/__init__.py")
    if "attach(" in path.read_text()
)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_gives_every_name_that_it_lists(room):
    package = importlib.import_module(f"idol.{room}")
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'idol' has no attribute 'nothing'"):
        idol.nothing  # noqa: B018


def test_a_room_imports_nothing_before_a_name_is_used():
    code = "import sys, idol.learning; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
