"""CUDA kernels from source at first use: NVRTC, a cache on disk, and launches on torch's stream.

No compiler and no CUDA toolkit is needed: `cuda.core` and NVRTC are wheels, which CUDA builds of
torch nearly bring along. Nothing here is imported or compiled before the first call.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import torch

from ops.kernel_cache import KernelCache, default_folder

_OLDEST = 60  # atomicAdd of doubles and fp16 arithmetic


class CannotCompile(RuntimeError):
    """These kernels cannot be had here; the message says why, in one line."""


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot be used in this environment, in one line; None when they can."""
    if torch.version.hip is not None:
        return "this is a build of torch for AMD"
    try:
        compiler_version()
    except ImportError as error:
        return f"cuda.core cannot be imported ({error}); pip install cuda-core"
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        return f"NVRTC cannot be loaded ({reason}); pip install nvidia-cuda-nvrtc"
    return None


@functools.cache
def compiler_version() -> tuple[int, int]:
    """Of NVRTC."""
    import cuda.core  # type: ignore[import-untyped]  # noqa: F401  (to know that it is there)
    from cuda.bindings import nvrtc  # type: ignore[import-untyped]

    status, major, minor = nvrtc.nvrtcVersion()
    if int(status) != 0:
        raise RuntimeError(f"nvrtcVersion returned {status}")
    return int(major), int(minor)


@functools.cache
def known_architectures() -> tuple[int, ...]:
    """Compute capabilities that NVRTC compiles for, 90 for 9.0."""
    from cuda.bindings import nvrtc

    status, architectures = nvrtc.nvrtcGetSupportedArchs()
    if int(status) != 0:
        raise CannotCompile(f"NVRTC does not name its architectures ({status})")
    return tuple(int(number) for number in architectures)


def compile_source(
    text: str, architecture: str, target: str = "cubin", name: str = "kernels"
) -> tuple[bytes, str]:
    """(machine code, the compiler's report) of that source; needs no GPU.

    architecture: sm_90 for a cubin, compute_90 for ptx
    Raises: CannotCompile: with the compiler's own words.
    """
    from cuda.core import Program, ProgramOptions

    log = io.StringIO()
    options = ProgramOptions(name=name, arch=architecture, std="c++17", ptxas_options=["-v"])
    try:
        code = Program(text, "c++", options).compile(target, logs=log).code
    except Exception as error:
        # cuda.core raises errors of its own and of NVRTC, whose classes move between versions.
        raise CannotCompile(
            f"NVRTC failed for {architecture}: {error}\n{log.getvalue()}"
        ) from error
    return bytes(code), log.getvalue().replace("\0", "")


def target_of(capability: tuple[int, int]) -> tuple[str, str]:
    """(architecture, cubin or ptx) for a device; ptx for one that is newer than the compiler."""
    device = 10 * capability[0] + capability[1]
    known = known_architectures()
    if device in known:
        return f"sm_{device}", "cubin"
    older = [number for number in known if _OLDEST <= number <= device]
    if not older:
        raise CannotCompile(
            f"the device has compute capability {capability[0]}.{capability[1]}, and this NVRTC "
            f"begins at {min(known) / 10}"
        )
    return f"compute_{max(older)}", "ptx"


@functools.cache
def _kernel_cache() -> KernelCache:
    return KernelCache(default_folder())


def machine_code(
    name: str, text: str, capability: tuple[int, int], cache: KernelCache | None = None
) -> tuple[bytes, str]:
    """(code, cubin or ptx) for a device of that compute capability, compiled or from the cache.

    name: what the files in the cache begin with
    """
    architecture, kind = target_of(capability)
    version = ".".join(map(str, compiler_version()))
    digest = hashlib.sha256(f"{version} {architecture} {kind}\n{text}".encode()).hexdigest()
    key = f"{name}-{architecture}-{digest[:32]}.{kind}"
    cache = cache or _kernel_cache()
    return cache.get(key, lambda: compile_source(text, architecture, kind, name)[0]), kind


def load(name: str, text: str, device: int, kernels: Sequence[str]) -> tuple[Any, ...]:
    """These kernels of that source, ready on that device. Raises: CannotCompile."""
    from cuda.core import Device, ObjectCode

    code, kind = machine_code(name, text, torch.cuda.get_device_capability(device))
    # The device's primary context, which is torch's own.
    Device(device).set_current()
    try:
        module = ObjectCode.from_cubin(code) if kind == "cubin" else ObjectCode.from_ptx(code)
        return tuple(module.get_kernel(kernel) for kernel in kernels)
    except Exception as error:
        # As above: the driver's errors have no class that all versions share.
        raise CannotCompile(f"the driver does not load the kernels: {error}") from error


@functools.lru_cache(maxsize=256)
def _stream(handle: int) -> Any:
    """One of torch's streams, as cuda.core wants it; it stays torch's."""
    from cuda.core import Stream

    return Stream.from_handle(handle)


def launch(
    kernel: Any, device: int, grid: tuple[int, int, int], block: int, *arguments: Any
) -> None:
    """Start a kernel of `load` on torch's current stream.

    arguments: addresses as int, numbers as numpy scalars of the parameters' types
    """
    from cuda.core import LaunchConfig
    from cuda.core import launch as start

    with torch.cuda.device(device):
        stream = _stream(torch.cuda.current_stream(device).cuda_stream)
        start(stream, LaunchConfig(grid=grid, block=block), kernel, *arguments)
