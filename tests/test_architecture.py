"""The arrows between the packages, read from the source: who may import whom, and nobody inside a function."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "eugen3d"

ARROWS: dict[str, set[str]] = {
    "layers": set(),
    "runtime": {"layers"},
    "training": set(),
    "distill": {"layers", "training"},
    "fields": {"layers", "runtime"},
    "metrics": {"layers"},
    "datasets": set(),
    "mapping": {"layers", "runtime", "fields", "datasets"},
    "models": {"layers", "runtime", "training", "fields", "metrics", "datasets", "mapping"},
    "methods": {"layers", "models", "datasets", "mapping", "fields"},
    "cli": {
        "layers",
        "runtime",
        "training",
        "distill",
        "fields",
        "metrics",
        "datasets",
        "mapping",
        "models",
        "methods",
    },
}
"""Every package with the packages of eugen3d that it may import; layers are everybody's vocabulary."""

THIRD_PARTY: dict[str, set[str]] = {
    "layers": {"torch"},
    "runtime": {"torch", "jaxtyping"},
    "training": {"torch"},
    "distill": {"torch", "jaxtyping"},
    "fields": {"torch", "jaxtyping"},
    "mapping": {"torch", "numpy"},
    "metrics": {"torch", "jaxtyping", "torchmetrics", "torchvision", "lpips", "numpy", "igl"},
}
"""The packages that have to do without nerfstudio, with what they import beside the standard library."""

LAZY: set[tuple[str, str]] = {
    ("metrics", "lpips"),
    ("runtime", "triton"),
    ("runtime", "tinycudann"),
    ("cli", "timm"),
    ("cli", "transformers"),
    ("cli", "submitit"),
    ("cli", "ray"),
    ("mapping", "skimage"),
    ("mapping", "scipy"),
    ("cli", "trimesh"),
    ("datasets", "trimesh"),
    ("cli", "nerfstudio.configs.method_configs"),
}
"""Heavy or optional packages and modules, and the one package of ours that may import each inside a function."""

SOURCES = sorted(PACKAGE.rglob("*.py"))


def is_lazy(package: str, name: str) -> bool:
    """Whether a package of ours may import a module inside a function."""
    return any(package == owner and f"{name}.".startswith(f"{heavy}.") for owner, heavy in LAZY)


def package_of(path: Path) -> str:
    """The package of eugen3d that a file stands in; "" for eugen3d itself."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported_names(node: ast.AST) -> list[str]:
    """The modules that a statement imports; of `from eugen3d import layers` the package, too."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return [f"{module}.{alias.name}" for alias in node.names] if module == "eugen3d" else [module]
    return []


def imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a file, wherever it stands: line and module."""
    tree = ast.parse(path.read_text())
    return [
        (node.lineno, name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(node)
    ]


def imports_inside_functions(path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    found = {
        (node.lineno, name)
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(node)
    }
    return sorted(found)


def test_every_package_has_its_place() -> None:
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found <= ARROWS.keys(), "a new package: say in ARROWS what it may import"
    assert {"layers", "runtime", "fields", "metrics", "datasets", "models", "methods"} <= found


def test_the_arrows_have_no_cycle() -> None:
    finished: set[str] = set()
    while remaining := {name for name in ARROWS if name not in finished}:
        ready = {name for name in remaining if ARROWS[name] <= finished}
        assert ready, f"a cycle among {sorted(remaining)}"
        finished |= ready


def test_the_walk_sees_imports() -> None:
    """The canary: a walk that finds nothing would hold everything."""
    assert "eugen3d.fields" in {name for _, name in imports(PACKAGE / "models" / "nerf.py")}
    assert len(SOURCES) > 15


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    package = package_of(path)
    wrong = []
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        is_inner = target == package or target in ARROWS.get(package, set())
        is_public_face = target not in ARROWS and package == "cli"
        if top == "eugen3d" and package and not is_inner and not is_public_face:
            wrong.append(f"{path}:{line}: {package} imports {name}")
        if top == "eugen3d" and not package and target not in {"layers", "distill", "runtime"}:
            wrong.append(f"{path}:{line}: `import eugen3d` would load {name}")
        is_foreign = top != "eugen3d" and top not in sys.stdlib_module_names
        allowed = package not in THIRD_PARTY or top in THIRD_PARTY[package] or is_lazy(package, name)
        if is_foreign and not allowed:
            wrong.append(f"{path}:{line}: {package} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_imported_inside_a_function(path: Path) -> None:
    package = package_of(path)
    hidden = [(line, name) for line, name in imports_inside_functions(path) if not is_lazy(package, name)]
    assert not hidden, f"{path}: {hidden}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Within a package, too: the graph of modules can be put in order."""
    modules = {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in SOURCES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {
        module: {name for _, name in imports(path) if name in modules and name != module}
        for module, path in modules.items()
    }
    while graph:
        leaves = {module for module, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: targets for module, targets in graph.items() if module not in leaves}


def test_no_folder_of_odds_and_ends() -> None:
    odds = {"utils", "util", "helpers", "helper", "common", "misc"}
    names = {part for path in SOURCES for part in path.relative_to(PROJECT).with_suffix("").parts}
    assert not names & odds


def test_importing_eugen3d_is_light() -> None:
    """In a fresh interpreter: neither nerfstudio nor CUDA nor anything optional."""
    program = (
        "import sys, eugen3d, torch; print(*sorted({name.split('.')[0] for name in sys.modules}));"
        "print(torch.cuda.is_initialized())"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT)
    names, cuda = finished.stdout.splitlines()
    loaded = set(names.split())
    assert {"eugen3d", "torch"} <= loaded
    assert not loaded & {"nerfstudio", "tinycudann", "nerfacc", "triton", "mitsuba", "torchmetrics", "lpips", "viser"}
    assert cuda == "False"


def test_the_entry_points_load_and_bear_their_names() -> None:
    """nerfstudio loads every plugin at every start of `ns-train`, outside any try."""
    program = (
        "import torch; from importlib.metadata import entry_points\n"
        "plugins = [p for p in entry_points(group='nerfstudio.method_configs') if p.value.startswith('eugen3d.')]\n"
        "print(*(p.name for p in plugins if p.load().config.method_name == p.name), torch.cuda.is_initialized())\n"
        "assert all(p.load().config.method_name == p.name for p in plugins)"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=PROJECT
    )
    assert finished.returncode == 0, finished.stderr
    *names, cuda = finished.stdout.splitlines()[-1].split()
    assert {"eugen-nerf", "eugen-nerf-small"} <= set(names)
    assert cuda == "False"
