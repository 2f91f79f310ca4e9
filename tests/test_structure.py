"""The rooms of the package: who may import whom."""

import ast
import pathlib

import sb3_jepa

PACKAGE = pathlib.Path(sb3_jepa.__file__).parent
# From the ground up: each room imports those before it
ROOMS = (
    *("common", "parts", "objectives", "diagnostics", "buffers", "extractors", "policies", "alternating", "inspection"),
    *("envs", "distributed", "callbacks", "algorithms", "data", "zero_shot", "imitation", "pretrain", "report"),
)
# They know PyTorch and NumPy, and not Stable-Baselines3
PURE_ROOMS = ("parts", "objectives", "diagnostics")
ROOT_MODULES = ("__init__", "old_paths")


def module_of(file: pathlib.Path) -> str:
    parts = ("sb3_jepa", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in PACKAGE.rglob("*.py")}


def imported_by(module: str) -> set[str]:
    """The modules that a module imports, wherever in its text; of the package by their files."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module} has a relative import"
            # A name of a package may be a module of it
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in FILES else node.module for name in names)
    return found


IMPORTS = {module: imported_by(module) for module in FILES}


def room_of(module: str) -> str:
    return module.split(".")[1]


def reachable(module: str) -> set[str]:
    """All that a module imports, directly or through others of the package."""
    found, waiting = set(), [module]
    while waiting:
        new = IMPORTS.get(waiting.pop(), set()) - found
        found |= new
        waiting.extend(new)
    return found


def test_every_module_lies_in_a_room():
    assert {room_of(module) for module in FILES if module != "sb3_jepa"} <= {*ROOMS, *ROOT_MODULES}


def test_no_import_leads_to_a_higher_room():
    upward = [
        f"{module} -> {other}"
        for module, others in IMPORTS.items()
        if module != "sb3_jepa" and room_of(module) in ROOMS
        for other in others & FILES.keys()
        if other == "sb3_jepa" or ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    assert not [module for module in FILES if module in reachable(module)]


def test_the_mathematics_knows_no_stable_baselines3():
    for module in FILES:
        if module != "sb3_jepa" and room_of(module) in PURE_ROOMS:
            knows = {other for other in reachable(module) if other.startswith(("stable_baselines3", "sb3_contrib"))}
            assert not knows, module


def test_no_file_is_longer_than_400_lines():
    tests = pathlib.Path(__file__).parent
    long = [file.name for folder in (PACKAGE, tests) for file in folder.rglob("*.py") if _n_lines(file) > 400]
    assert not long


def _n_lines(file: pathlib.Path) -> int:
    return len(file.read_text().splitlines())


# Private names of the package's own objects, and of named tuples
OWN_PRIVATES = {"_replace", "_frames", "_latest"}
OWN_OBJECTS = {"self", "cls", "super()"}


def test_private_names_of_others_are_used_in_one_file_for_each_of_them():
    found = []
    for module, file in FILES.items():
        attributes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
        private = [node for node in attributes if node.attr.startswith("_") and not node.attr.endswith("__")]
        of_others = [node for node in private if ast.unparse(node.value) not in OWN_OBJECTS]
        found += [(module, ast.unparse(node)) for node in of_others if node.attr not in OWN_PRIVATES]
    assert {module for module, _ in found} == {f"sb3_jepa.common.{of}_privates" for of in ("sb3", "torch")}, found
