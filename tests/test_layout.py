"""The library's shape: imports point one way, files stay short, importing stays quick."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = {"types", "errors"}
MAY_IMPORT = {  # part of jaxvision -> the other parts that its files may import
    "__init__": set(),
    "types": set(),
    "errors": set(),
    "ops": BASE,
    "models": BASE | {"ops"},
    "metrics": BASE | {"ops"},
    "losses": BASE | {"ops", "metrics"},
    "weights": BASE | {"models", "data"},  # for downloads
    "data": {"errors"},  # and not types, which imports jax
    "report": BASE | {"metrics"},
    "train": BASE | {"data"},
}
WIRE_EVERYTHING = {"__main__", "cli", "predict"}
EXCEPTIONS = {
    # A checkpoint names its model; this is the one place of train/ that turns a name into a model.
    ("train/checkpoint.py", "load_checkpoint", "jaxvision.models"),
}
NOT_FOR_DATA = {"jax", "jaxlib", "flax", "optax", "orbax"}


def library():
    """Yields (path below jaxvision/, source) of each file of the library."""
    for path in sorted((ROOT / "jaxvision").rglob("*.py")):
        yield path.relative_to(ROOT / "jaxvision").as_posix(), path.read_text(encoding="utf-8")


def imports(name, source):
    """Yields (module, the function that imports it or None), wherever in the file it stands."""
    package = ["jaxvision", *name.split("/")[:-1]]

    def visit(node, function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        elif isinstance(node, ast.Import):
            yield from ((alias.name, function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "jaxvision":  # "from jaxvision import models" imports jaxvision.models
                yield from ((f"{module}.{alias.name}", function) for alias in node.names)
            else:
                yield module, function
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(ast.parse(source), None)


def forbidden_imports(name, source):
    """Returns the modules that a file imports although its part may not."""
    part = name.removesuffix(".py").split("/")[0]
    if part in WIRE_EVERYTHING:
        return []
    assert part in MAY_IMPORT, f"say in MAY_IMPORT what jaxvision/{part} may import"
    forbidden = []
    for module, function in imports(name, source):
        top, _, rest = module.partition(".")
        if top == "jaxvision":
            allowed = rest.split(".")[0] in MAY_IMPORT[part] | {part}
            allowed |= (name, function, module) in EXCEPTIONS
        else:
            allowed = part != "data" or top not in NOT_FOR_DATA
        if not allowed:
            forbidden.append(module)
    return forbidden


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("ops/boxes.py", "import jax\nfrom jaxvision.types import Array", []),
        ("ops/boxes.py", "from jaxvision.models import get_model", ["jaxvision.models"]),
        ("models/a.py", "import jaxvision.train.step", ["jaxvision.train.step"]),
        ("models/a.py", "from jaxvision import losses, ops", ["jaxvision.losses"]),
        ("losses/a.py", "from jaxvision.metrics import accuracy", []),
        ("metrics/a.py", "from ..losses import cross_entropy", ["jaxvision.losses"]),
        ("metrics/a/b.py", "from .. import c\nfrom ... import report", ["jaxvision.report"]),
        ("data/a.py", "def f():\n    import jax.numpy as jnp", ["jax.numpy"]),
        ("data/a.py", "import numpy\nfrom jaxvision import types", ["jaxvision.types"]),
        ("report/a.py", "from jaxvision.data import Batches", ["jaxvision.data"]),
        ("report/a.py", "from jaxvision.metrics import accuracy", []),
        ("train/a.py", "from jaxvision.data.pipeline import prefetch", []),
        ("train/a.py", "class A:\n    from jaxvision.ops import nms", ["jaxvision.ops"]),
        ("train/checkpoint.py", "def load_checkpoint():\n    import jaxvision.models", []),
        ("train/checkpoint.py", "def other():\n    import jaxvision.models", ["jaxvision.models"]),
        ("train/checkpoint.py", "import jaxvision.models", ["jaxvision.models"]),
        (
            "train/loop.py",
            "def load_checkpoint():\n    import jaxvision.models",
            ["jaxvision.models"],
        ),
        ("predict.py", "from jaxvision.data import read_image", []),
        ("types.py", "from jaxvision.errors import UserError", ["jaxvision.errors"]),
    ],
)
def test_the_rule_finds_what_it_must(name, source, expected):
    assert forbidden_imports(name, source) == expected


def test_imports_point_one_way():
    found = {name: forbidden_imports(name, source) for name, source in library()}
    assert len(found) > 30
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_the_exceptions_are_still_needed():
    used = {
        (name, where, what) for name, source in library() for what, where in imports(name, source)
    }
    assert used >= EXCEPTIONS


def test_files_are_short():
    for folder in ("jaxvision", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            limit = 400 if folder == "tests" else 350
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= limit, (
                f"{path.relative_to(ROOT)} has {lines} lines, the limit is {limit}"
            )


def tracked_files():
    """The files under version control or about to be; in a copy without git, all but the caches."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        skipped = re.compile(
            r"\.venv|^\.git$|__pycache__|\.egg-info|\.\w+_cache|^(runs|build|dist|\.cache)$"
        )
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(skipped.search(part) for part in path.relative_to(ROOT).parts)
        ]
    return [path for path in paths if path.is_file()]


PLACES = (
    r"/(?:home|Users|root|work)/[\w.-]+",  # someone's files; /usr and the like are everyone's
    r"\.\./shared\b",
    re.escape(str(ROOT)) + r"\b",
)
MACHINE_PATH = re.compile(rf"(?<![\w.:/-])(?:{'|'.join(PLACES)})")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cd /ho" + "me/ada/jaxvision", True),
        ('open("/wo' + 'rk/data.npz")', True),
        ("see ../sha" + "red/notes.md", True),
        (f"{ROOT}/runs", True),
        ("/usr/share/datasets/fashion-mnist", False),
        ("https://example.org/ho" + "me/page.html", False),
        ("runs/wo" + "rk/1", False),
    ],
)
def test_the_pattern_finds_machine_paths(text, found):
    assert bool(MACHINE_PATH.search(text)) == found


def test_no_file_names_a_place_on_one_machine():
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match}" for match in MACHINE_PATH.findall(text)]
    assert found == []


def in_a_fresh_process(program):
    """Runs `program`, and returns what it printed as JSON."""
    command = [sys.executable, "-c", f"import json, sys, time\n{program}"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_import_jaxvision_is_quick_and_light():
    program = """
start = time.perf_counter()
import jaxvision
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""
    results = [in_a_fresh_process(program) for _ in range(3)]
    assert min(seconds for seconds, _ in results) < 1
    assert not {"jax", "matplotlib", "tensorflow", "torch"} & set(results[0][1])


def test_parts_load_no_other_framework_and_data_no_jax():
    program = """
import importlib
loaded = {}
for part in ("data", "report", "models", "losses", "train", "train.checkpoint", "predict", "cli"):
    importlib.import_module(f"jaxvision.{part}")
    heavy = ("jax", "matplotlib", "tensorflow", "torch", "cv2", "tensorflow_datasets")
    loaded[part] = [name for name in heavy if name in sys.modules]
print(json.dumps(loaded))
"""
    loaded = in_a_fresh_process(program)
    assert loaded["data"] == []
    assert {part: names for part, names in loaded.items() if set(names) - {"jax"}} == {}
    assert loaded["train"] == ["jax"]
