"""The rooms stay rooms: which way imports point, what may be imported where, what is documented."""

from __future__ import annotations

import ast
import collections
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROOMS = ("ops", "idol", "pipelines", "jobs")
"""Lowest first: a room may import itself and the rooms before it."""

CLUSTER_LIBRARIES = {"ray", "pyarrow", "mlflow"}
"""Known to pipelines/ alone."""

HEAVY_LIBRARIES = {*CLUSTER_LIBRARIES, "matplotlib", "numba", "pandas"}
"""What `import idol` leaves for those who need it: each costs up to seconds."""

SLOW_LIBRARIES = {*HEAVY_LIBRARIES, "cv2", "optuna", "scipy", "torch"}
"""What `python -m jobs.X --help` does not load, so that it answers within a second."""

MAX_FILES = 14
"""Files in a folder, without __init__.py."""

MAX_LINES, MAX_FUNCTION = 400, 60
"""Lines of a file and of a function, docstrings and comments included."""

INNER_ROOMS = {
    "idol": (
        ("arrays",),
        ("structures", "config", "lazy", "files", "addresses", "spool"),
        ("masks", "clip_presets"),
        ("presets",),
        ("images", "network"),
        ("learning", "detection", "tracker", "ytvis", "instances"),
        ("evaluation", "weights", "follower"),
        ("clips",),
        ("analysis", "segmenter"),
        ("streams",),
    ),
    "pipelines": (
        ("errors", "gauges"),
        ("cluster", "configuration", "storage", "package"),
        ("sources", "job_server", "actors", "preflight", "resources"),
        ("formats", "submit", "fetch"),
        ("report", "batches"),
        ("training",),
        ("stages", "stream"),
        ("sweep", "check", "serving"),
        ("demo", "plan"),
    ),
}
"""Rooms and files of a package by height, lowest first: each may import what stands lower."""

FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def is_module(dotted: str) -> bool:
    """Whether this names a file or folder of the rooms."""
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, also inside functions and TYPE_CHECKING.

    Of `from idol import masks` the module is idol.masks, of `from idol import IDOL` it is idol.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # from . import x: stays in its own room
                continue
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield node.lineno, inner if is_module(inner) else module


def complaints(check: str, found: list[str]) -> None:
    """Fail with all that was found, one per line."""
    assert not found, f"{check}:\n  " + "\n  ".join(found)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ROOMS)


def test_no_import_points_back() -> None:
    found = []
    for path in FILES:
        room = path.relative_to(ROOT).parts[0]
        above = ROOMS[ROOMS.index(room) + 1 :]
        found += [
            f"{name(path)}:{line} imports {module}"
            for line, module in imported(path)
            if module.split(".")[0] in above
        ]
    complaints("jobs -> pipelines -> idol -> ops, and nothing points back", found)


def inner_arrows() -> Iterator[tuple[Path, int, str, str, str]]:
    """(file, line, package, inner room of the file, inner room imported); lazy imports too."""
    known = set(modules(*ROOMS))
    for path in FILES:
        package, *rest = path.relative_to(ROOT).with_suffix("").parts
        if package not in INNER_ROOMS or rest == ["__init__"]:
            continue
        for line, module in imported(path):
            parts = module.split(".")
            if parts[0] == package and len(parts) > 1 and module in known and parts[1] != rest[0]:
                yield path, line, package, rest[0], parts[1]


def test_inside_a_package_no_import_points_back() -> None:
    heights = {
        package: {room: height for height, level in enumerate(levels) for room in level}
        for package, levels in INNER_ROOMS.items()
    }
    found = [
        f"{name(path)}:{line} imports {package}.{target}"
        for path, line, package, source, target in inner_arrows()
        if not (
            target in heights[package]
            and heights[package][target] < heights[package].get(source, -1)
        )
    ]
    complaints("INNER_ROOMS says which rooms stand lower; nothing points back", found)


def test_every_inner_room_has_its_place() -> None:
    for package, levels in INNER_ROOMS.items():
        there = {
            path.relative_to(ROOT / package).with_suffix("").parts[0]
            for path in (ROOT / package).rglob("*.py")
        }
        assert there - {"__init__"} == {room for level in levels for room in level}


def test_files_import_one_another_in_no_circle() -> None:
    files = {module: path for path, module in zip(FILES, modules(*ROOMS), strict=True)}
    arrows = {
        module: {target for _, target in imported(path) if target in files and target != module}
        for module, path in files.items()
        if path.name != "__init__.py"  # public names, imported when they are used
    }
    try:
        list(graphlib.TopologicalSorter(arrows).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle, lazy ones counted: {' -> '.join(error.args[1])}")


def test_no_folder_is_a_drawer() -> None:
    counts = collections.Counter(path.parent for path in FILES if path.name != "__init__.py")
    found = [f"{name(folder)}: {n} files" for folder, n in counts.items() if n > MAX_FILES]
    complaints(f"a room has at most {MAX_FILES} files; it is two rooms", found)


def test_no_room_imports_what_stands_beside_the_rooms() -> None:
    found = [
        f"{name(path)}:{line} imports {module}"
        for path in FILES
        for line, module in imported(path)
        if module.split(".")[0] in {"tests", "benchmarks"}
    ]
    complaints("tests and benchmarks are not installed", found)


def test_ray_arrow_and_mlflow_stay_in_pipelines() -> None:
    found = [
        f"{name(path)}:{line} imports {module}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] != "pipelines"
        for line, module in imported(path)
        if module.split(".")[0] in CLUSTER_LIBRARIES
    ]
    complaints(f"only pipelines/ may import {sorted(CLUSTER_LIBRARIES)}", found)


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    extras = [name for name in optional if name != "dev"]
    declared = [*project["dependencies"], *(one for name in extras for one in optional[name])]
    # What is required by what is declared, and used to speak with it: httpx2 and the last three.
    distribution = {"cv2": "opencv-python-headless", "cuda": "cuda-core", "PIL": "pillow"}
    distribution |= {"huggingface_hub": "huggingface-hub", "httpx2": "huggingface-hub"}
    distribution |= {"fastapi": "ray"}
    distribution |= {"aiohttp": "ray", "markupsafe": "jinja2", "llvmlite": "numba"}
    known = {
        requirement.split("[")[0].split(">")[0].split("=")[0].strip() for requirement in declared
    }
    # Compilers of the GPU kernels: looked for at run time, there where torch came with CUDA.
    known |= {"cuda-core", "triton"}
    found = [
        f"{name(path)}:{line} imports {module}"
        for path in FILES
        for line, module in imported(path)
        if (top := module.split(".")[0]) not in {*sys.stdlib_module_names, *ROOMS}
        and distribution.get(top, top) not in known
    ]
    complaints("a library that is imported must be in pyproject.toml's dependencies", found)


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}
    complaints(
        "a function whose home is unclear has not been understood yet",
        [name(path) for path in FILES if path.name in drawers],
    )


def test_no_file_and_no_function_is_too_long() -> None:
    found = []
    for path in FILES:
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > MAX_LINES:
            found.append(f"{name(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    found.append(f"{name(path)} {node.name}: {lines} lines")
    complaints(f"a file has {MAX_LINES} lines, a function {MAX_FUNCTION}; split it", found)


def test_processes_are_started_anew_and_not_forked() -> None:
    # A forked child inherits locks but not the threads that hold them: torch and Ray hang in it.
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = [ast.unparse(argument) for argument in node.args]
            forks = called in {"os.fork", "multiprocessing.Pool", "multiprocessing.Process"}
            forks |= called == "multiprocessing.get_context" and given != ["'spawn'"]
            named = {keyword.arg for keyword in node.keywords}
            executor = called.endswith("ProcessPoolExecutor")
            if forks or (executor and len(given) < 2 and "mp_context" not in named):
                found.append(f"{name(path)}:{node.lineno} {called}")
    complaints('use multiprocessing.get_context("spawn")', found)


def test_public_names_of_rooms_are_there() -> None:
    found = python(
        "import importlib\n"
        f"for name in {modules('ops', 'idol', 'pipelines')!r}:\n"
        "    room = importlib.import_module(name)\n"
        "    public = list(getattr(room, '__all__', ()))\n"
        "    if not room.__file__.endswith('__init__.py'):\n"
        "        continue\n"
        "    for public_name in public:\n"
        "        if not hasattr(room, public_name):\n"
        "            print(f'{name}.{public_name} is in __all__ alone')\n"
        "    if '.' in name and not public:\n"
        "        print(f'{name} has no __all__')\n"
    )
    complaints("what a room offers is there, and in __all__", found.splitlines())


def python(code: str) -> str:
    """Run code in a new interpreter, from the root, and return its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules(*rooms: str) -> list[str]:
    """Dotted names of the rooms' modules."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.relative_to(ROOT).parts[0] in rooms
    ]


def test_the_method_imports_without_ray_arrow_and_mlflow() -> None:
    python(
        "import importlib, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {CLUSTER_LIBRARIES!r}:\n"
        "            raise ModuleNotFoundError(f'{name} is not installed here', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {modules('ops', 'idol')!r}:\n"
        "    importlib.import_module(name)\n"
    )


def test_importing_idol_loads_nothing_heavy() -> None:
    loaded = python(
        "import idol, sys\n"
        "assert all(hasattr(idol, name) for name in idol.__all__)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert HEAVY_LIBRARIES.isdisjoint(loaded.split())


def test_an_actor_does_not_import_the_compiler() -> None:
    loaded = python(
        "import numpy, sys, idol, pipelines.stages.detect\n"
        "from idol.detection.detector import Detector\n"
        "model = idol.load('shipped')\n"
        "detector = Detector(model, model.config)\n"
        "detector.detect([detector.prepare(numpy.zeros((96, 128, 3), 'uint8'))], [0])\n"
        "print(*sys.modules)"
    )
    assert {"torch._dynamo", "sympy", "ray"}.isdisjoint(loaded.split())


@pytest.mark.parametrize(
    "job",
    sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if "__main__" in path.read_text()),
)
def test_help_loads_nothing_heavy(job: str) -> None:
    loaded = python(
        f"import contextlib, io, sys; from jobs import {job}\n"
        "shown = io.StringIO()\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):\n"
        f"    {job}.main(['--help'])\n"
        f"assert 'usage: python -m jobs.{job}' in shown.getvalue()\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert SLOW_LIBRARIES.isdisjoint(loaded.split())


def public_definitions(
    tree: ast.Module,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """(qualified name, node) of a module's public classes, functions and methods."""
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_"):
            continue
        yield node.name, node
        # A Protocol describes its members in its own docstring: they have no bodies.
        if isinstance(node, ast.ClassDef) and "Protocol" not in map(ast.unparse, node.bases):
            yield from (
                (f"{node.name}.{inner.name}", inner)
                for inner in node.body
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
                and not inner.name.startswith("_")
            )


def test_every_public_name_has_a_docstring() -> None:
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        if tree.body and ast.get_docstring(tree) is None:
            found.append(f"{name(path)}: the module")
        found += [
            f"{name(path)}:{node.lineno} {qualified}"
            for qualified, node in public_definitions(tree)
            if ast.get_docstring(node) is None
        ]
    complaints("a public name says what it is", found)


def undescribed(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The tensor arguments of a function that its docstring says nothing of."""
    text = ast.get_docstring(node) or ""
    if re.search(r"\bas (in|of|for)\b", text):  # "arguments as of cost_matrix"
        return []
    tensors = [
        argument.arg
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if argument.annotation is not None
        and ast.unparse(argument.annotation).removesuffix(" | None") in {"Tensor", "torch.Tensor"}
    ]
    # "(..., 4) centre, width, height -> ..." leaves no doubt where there is one argument.
    if len(tensors) == 1 and re.search(r"\([^)]*,[^)]*\)", text):
        return []
    return [argument for argument in tensors if not re.search(rf"\b{argument}\b", text)]


def test_every_tensor_argument_is_described() -> None:
    found = [
        f"{name(path)}:{node.lineno} {qualified}({argument})"
        for path in FILES
        for qualified, node in public_definitions(ast.parse(path.read_text()))
        if not isinstance(node, ast.ClassDef)
        for argument in undescribed(node)
    ]
    complaints("a tensor argument has a line `name: (shape) meaning`", found)


def test_every_fixture_says_what_it_gives() -> None:
    found = [
        f"{name(path)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.returns is None
        and any("pytest.fixture" in ast.unparse(d) for d in node.decorator_list)
    ]
    complaints("a fixture's return type is annotated", found)


def test_tests_are_four_fifths_of_the_library() -> None:
    library = sum(len(path.read_text().splitlines()) for path in FILES)
    tests = sum(len(p.read_text().splitlines()) for p in (ROOT / "tests").rglob("*.py"))
    assert tests >= 0.8 * library, f"{tests} lines of tests for {library} lines of library"
