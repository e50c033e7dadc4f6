"""What a training worker asks of its process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

FAULTS = """
import resource, sys, torch
from pipelines.training.loop import keep_freed_memory
torch.set_num_threads(1)
if "keep" in sys.argv:
    keep_freed_memory()

def step():
    for _ in range(20):
        torch.ones(10_000_000)  # 40 MB

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments):
    command = [sys.executable, "-c", FAULTS, *arguments]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="an option of glibc")
def test_freed_memory_is_used_again_without_new_pages():
    assert faults() > 1000  # 20 times 40 MB in pages of 4 KB, or less in larger ones
    assert faults("keep") < 100
