"""The rooms and the direction of imports, read from the sources and tried in a bare interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cropray

PACKAGE = Path(cropray.__file__).parent
LEAVES = (["errors"], ["types"], ["bands"], ["grid"], ["config"])
HEAVY = {"ray", "torch", "ee", "rasterio", "mlflow"}
BARE = {"numpy", "torch", "pyarrow", "xxhash", "safetensors", "pyproj", "fsspec"}
BARE_LEAVES = {"cropray.errors", "cropray.types", "cropray.bands", "cropray.grid", "cropray.storage"}
# The order of the rooms: a module imports from its own room and from those before it only.
ROOMS = (
    *("errors", "bands", "grid", "types", "storage", "config", "progress", "run", "cluster"),
    *("rasters", "figures", "simulation", "imagery", "rois", "labels", "shards", "models", "tracking"),
    *(
        "evaluation",
        "training",
        "tuning",
        "maps",
        "report",
        "pipeline",
        "api",
        "demo",
        "doctor",
        "cli",
        "__main__",
    ),
)
TRAINING_STEP = {f"cropray.training.{name}" for name in ("step", "batches", "recipe", "state")}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("cropray", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports at run time, wherever in the file."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - {"cropray"} - sys.stdlib_module_names


def inside(path: Path) -> set[str]:
    known = modules()
    return {name for name in imports(path) if name in known and name != "cropray"}


def room(name: str) -> str:
    return name.split(".")[1]


def is_bare(name: str) -> bool:
    """Whether a module must run on a GPU machine without the rest of the project's packages."""
    if name == "cropray.shards.inspection":  # it draws, and compares with the run's records
        return False
    return name.startswith(("cropray.shards", "cropray.models")) or name in TRAINING_STEP


def test_data_flows_downward() -> None:
    paths = {name: path for name, path in modules().items() if name != "cropray"}
    assert {room(name) for name in paths} == set(ROOMS)
    upward = {
        f"{name} imports {other}"
        for name, path in paths.items()
        for other in inside(path)
        if ROOMS.index(room(other)) > ROOMS.index(room(name))
    }
    assert upward == set()


def test_a_leaf_imports_nothing_heavy() -> None:
    leaves = {name: path for name, path in modules().items() if name.split(".")[1:2] in LEAVES}
    assert len(leaves) > len(LEAVES)
    assert {name: outside(path) & HEAVY for name, path in leaves.items() if outside(path) & HEAVY} == {}


def test_shards_models_and_the_training_step_run_on_a_bare_machine() -> None:
    bare = {name: path for name, path in modules().items() if is_bare(name)}
    assert len(bare) > 8
    for name, path in bare.items():
        assert outside(path) <= BARE, name
        assert inside(path) <= BARE_LEAVES | set(bare) | TRAINING_STEP, name


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("ee", "cropray.imagery.earthengine.graph"),
        ("mlflow", "cropray.tracking"),
        ("rasterio", "cropray.rasters"),
    ],
)
def test_one_room_alone_imports(package: str, rooms: str) -> None:
    importers = {name for name, path in modules().items() if package in outside(path)}
    assert importers
    assert all(name.startswith(rooms) for name in importers), importers


def test_the_pure_rooms_do_not_import_ray() -> None:
    drivers = ("cropray.cluster", "cropray.pipeline", "cropray.training", "cropray.tuning", "cropray.doctor")
    importers = {name for name, path in modules().items() if "ray" in outside(path)}
    assert importers
    assert all(name.startswith(drivers) for name in importers), importers


def test_the_command_line_answers_help_without_heavy_packages() -> None:
    late = HEAVY | {"pandas", "geopandas", "sklearn", "matplotlib", "pydantic", "pyarrow"}
    code = (
        "import sys\n"
        "from cropray.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as exit: assert not exit.code\n"
        f"loaded = {late!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_export_starts_its_processes_without_networks_and_graphs() -> None:
    code = (
        "import sys, cropray.pipeline.export\n"
        "loaded = {'torch', 'sklearn', 'matplotlib', 'mlflow', 'scipy.sparse'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bare_modules_import_where_the_rest_is_missing() -> None:
    names = [name for name in modules() if is_bare(name)]
    code = (
        "import sys\n"
        "for name in ('ray', 'rasterio', 'mlflow', 'pydantic', 'geopandas', 'sklearn', 'ee'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {names!r}: __import__(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_is_longer_than_a_person_reads_at_once() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: lines for name, lines in lengths.items() if lines > 350} == {}
