"""What the CUDA compiler's report says of each kernel."""

import re
from dataclasses import dataclass

_REPORT = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Resources:
    """What a kernel takes of a multiprocessor."""

    registers: int
    stack: int
    """Bytes of local memory a thread."""
    spilled: int
    """Bytes written and read because the registers did not suffice."""


def resources(report: str) -> dict[str, Resources]:
    """By kernel, from the report of nvrtc.compile_source."""
    return {
        name: Resources(int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in _REPORT.findall(report)
    }
