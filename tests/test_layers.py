"""Imports point downward only, every outside service has one door, and the light half needs no heavy package."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up; a module may import its own layer and those below.
LAYERS = (
    {"errors"},
    {"config", "storage", "imaging", "archives", "compiled"},
    {"masks", "nn", "weights"},
    {"losses", "optim"},
    {"methods"},
    {"training", "inference", "data"},
    {"evaluation", "checkpoints"},
    {"tracking", "cluster", "sweep", "demo", "demo_photos"},
    {"bench"},
    {"cli"},
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}

DOORS = {  # outside service → the places that may import it; a benchmark also measures the straightforward way
    "boto3": ("inpaint/storage/", "inpaint/bench/"),
    "botocore": ("inpaint/storage/", "inpaint/bench/"),
    "wandb": ("inpaint/tracking.py",),
    "kubernetes": ("inpaint/cluster/client.py",),
    "ray": ("ray_jobs/", "inpaint/cluster/ray_client.py"),
    "webdataset": ("inpaint/bench/",),
}
LIGHT_BUT_SLOW = {"boto3", "kubernetes"}  # come with the light half, but `inpaint --help` need not wait for them
HEAVY = {"torch", "torchvision", "ray", "numpy", "scipy", "skimage", "PIL", "pyarrow", "wandb", "moto", "optuna"}
HEAVY |= {"isal", "numba", "simplejpeg", "lpips", "torchmetrics", "matplotlib", "safetensors", "webdataset"}


def modules(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def parsed(path):
    return ast.parse(path.read_text())


def imports(path, *, only_at_import=False):
    """(module, line) of every import outside `TYPE_CHECKING` blocks; if asked, only of those outside functions too."""
    for node in _nodes(parsed(path), only_at_import):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.module, node.lineno
            if node.module == "inpaint":
                yield from ((f"inpaint.{alias.name}", node.lineno) for alias in node.names)


def _nodes(node, only_at_import):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if only_at_import and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield child
        yield from _nodes(child, only_at_import)


def part_of(module):
    """The part of the package a module belongs to: data of inpaint.data.index."""
    words = module.split(".")
    return words[1] if words[0] == "inpaint" and len(words) > 1 and words[1] in HEIGHT else None


def place(path):
    return path.relative_to(ROOT).as_posix()


def test_every_part_of_the_package_has_its_layer():
    paths = (ROOT / "inpaint").iterdir()
    parts = {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - set(HEIGHT) - {"__init__", "__main__"} == set()


@pytest.mark.parametrize("path", modules("inpaint"), ids=place)
def test_imports_point_downward(path):
    own = part_of("inpaint." + path.relative_to(ROOT / "inpaint").with_suffix("").parts[0])
    upward = [
        f"{place(path)}:{line}: {own} imports {module}"
        for module, line in imports(path)
        if own and (other := part_of(module)) and HEIGHT[other] > HEIGHT[own]
    ]
    assert upward == []
    started_by_a_command = own == "cli"  # cli and ray_jobs are one layer: a command starts a job when it is run
    jobs = imports(path, only_at_import=started_by_a_command)
    assert [module for module, _ in jobs if module.split(".")[0] in ("ray_jobs", "tests")] == []


def test_training_sees_of_the_methods_only_what_all_share():
    seen = {module for path in modules("inpaint/training") for module, _ in imports(path) if part_of(module)}
    parts = {part_of(module) for module in seen}
    assert parts <= {"errors", "config", "imaging", "optim", "methods", "training"}
    assert {module for module in seen if part_of(module) == "methods"} <= {"inpaint.methods.base"}


@pytest.mark.parametrize("service", DOORS)
def test_every_outside_service_has_one_door(service):
    inside = [
        f"{place(path)}:{line}"
        for path in modules("inpaint", "ray_jobs", "sweeps")
        for module, line in imports(path)
        if module.split(".")[0] == service and not place(path).startswith(DOORS[service])
    ]
    assert inside == []


@pytest.mark.parametrize("path", modules("inpaint/cli", "inpaint/config", "inpaint/cluster"), ids=place)
def test_the_light_half_imports_nothing_heavy_when_it_is_imported(path):
    door = place(path) == "inpaint/cluster/client.py"
    unwanted = HEAVY if door else HEAVY | LIGHT_BUT_SLOW
    assert [module for module, _ in imports(path, only_at_import=True) if module.split(".")[0] in unwanted] == []


BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {heavy!r}:
            raise ImportError(name + ' is not on this laptop')

sys.meta_path.insert(0, Refuse())
import importlib
for name in {names!r}:
    importlib.import_module(name)
from inpaint.config import list_presets, load_run
for preset in list_presets():
    load_run(preset)
sys.argv = ['inpaint', '--help']
from inpaint.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def test_a_laptop_without_torch_ray_and_numpy_checks_every_preset_and_shows_help():
    names = [
        place(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in modules("inpaint/config", "inpaint/cluster", "inpaint/cli")
    ]
    program = BLOCKED.format(heavy=sorted(HEAVY), names=names)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "shards" in done.stdout
