"""How tall is the house? Rooms, floors and arrows of `hftl`, the way of `run`'s arguments, untyped places, sizes.

    python scripts/house.py [--types]

A room is a top-level folder or module of `hftl`, but for the front door, `hftl/__init__.py`, which only names what is
public. Its floor is its depth by imports, whenever they are made: a room that imports none of the others stands on
floor 1. An arrow is one room that imports another; it runs back where the other one stands on the same floor or above,
as it must in a circle. A stay is one function that the arguments of `run` pass through, whole or as one of their
parts, not inside the result of a stage; a climb is a call among these to a room above. `--types` also counts what
pyright finds, which takes a minute or more.
"""

import argparse
import ast
import json
import subprocess
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hftl"


@dataclass
class Module:
    """One file: its imports of `hftl` (name -> module and name there) and its functions."""

    name: str
    tree: ast.Module
    names: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef]:
        found = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = node
            elif isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{n.name}": n for n in node.body if isinstance(n, ast.FunctionDef)}
        return found


def read_modules() -> dict[str, Module]:
    """Every module of the package by its name below `hftl`."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        modules[name] = Module(name, ast.parse(path.read_text()))
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hftl":
                source = (node.module or "").removeprefix("hftl").lstrip(".")
                for alias in node.names:
                    inner = f"{source}.{alias.name}".lstrip(".")
                    target, member = (inner, None) if inner in modules else (source, alias.name)
                    module.names[alias.asname or alias.name] = (target, member)
                    module.imports.add(target)
    return modules


def link_rooms(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    rooms: dict[str, set[str]] = {module.room: set() for module in modules.values() if module.room}
    for module in modules.values():
        if module.room:
            rooms[module.room] |= {target.partition(".")[0] for target in module.imports} - {module.room, ""}
    return rooms


def find_floors(links: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room; rooms that import each other in a circle share that of the deepest."""
    floors: dict[str, int] = {}

    def climb(room: str, path: tuple[str, ...]) -> int:
        if room in path:
            return 0
        if room not in floors:
            floors[room] = 1 + max((climb(other, (*path, room)) for other in links[room]), default=0)
        return floors[room]

    for room in links:
        climb(room, ())
    return floors


def walk_arguments(modules: dict[str, Module], floors: dict[str, int]) -> tuple[int, int, int]:
    """Stays, rooms and climbs of the first parameter of `hftl.training.run.run`."""
    first = modules["training.run"].functions["run"].args.args[0].arg
    queue, seen, climbs = deque([("training.run", "run", first)]), {("training.run", "run", first)}, 0
    while queue:
        module, function, parameter = queue.popleft()
        for stop in _follow(modules, module, function, parameter):
            climbs += floors[stop[0].partition(".")[0]] > floors[module.partition(".")[0]]
            if stop not in seen:
                seen.add(stop)
                queue.append(stop)
    return len(seen), len({module.partition(".")[0] for module, _, _ in seen}), climbs


def _follow(modules: dict[str, Module], name: str, function: str, parameter: str) -> list[tuple[str, str, str]]:
    """The functions that get the parameter, or a part of it, from this one."""
    module, stops = modules[name], []
    for call in (node for node in ast.walk(module.functions[function]) if isinstance(node, ast.Call)):
        target = _find_target(modules, module, call.func)
        if target is None:
            continue
        accepted = [argument.arg for argument in modules[target[0]].functions[target[1]].args.args]
        accepted = accepted[1:] if accepted[:1] == ["self"] else accepted
        given = [*zip(accepted, call.args, strict=False), *((word.arg, word.value) for word in call.keywords)]
        stops += [(*target, into) for into, value in given if into and _is_part(value, parameter)]
    return stops


def _is_part(value: ast.expr, parameter: str) -> bool:
    while isinstance(value, ast.Attribute):
        value = value.value
    return isinstance(value, ast.Name) and value.id == parameter


def _find_target(modules: dict[str, Module], module: Module, called: ast.expr) -> tuple[str, str] | None:
    if isinstance(called, ast.Name):
        source, member = module.names.get(called.id, (module.name, called.id))
    elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id in module.names:
        (source, member), attribute = module.names[called.value.id], called.attr
        member = attribute if member is None else f"{member}.{attribute}"
    else:
        return None
    functions = modules[source].functions if source in modules else {}
    found = next((name for name in (member, f"{member}.__init__") if name in functions), None)
    return (source, found) if found else None


def count_any(modules: dict[str, Module]) -> int:
    """Places that are annotated with `Any`."""
    return sum(isinstance(n, ast.Name) and n.id == "Any" for m in modules.values() for n in ast.walk(m.tree))


def count_type_errors() -> int:
    """What pyright finds by the settings in pyproject.toml."""
    found = subprocess.run(["pyright", "--outputjson"], cwd=PACKAGE.parent, capture_output=True, text=True)
    return json.loads(found.stdout)["summary"]["errorCount"]


def measure(*, types: bool = False) -> dict[str, int]:
    """Every figure by its name."""
    modules = read_modules()
    links = link_rooms(modules)
    floors = find_floors(links)
    stays, visited, climbs = walk_arguments(modules, floors)
    run = modules["training.run"].functions["run"]
    sizes = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    figures = {
        "rooms": len(links),
        "floors": max(floors.values()),
        "arrows": sum(map(len, links.values())),
        "arrows that run back": sum(floors[b] >= floors[a] for a, others in links.items() for b in others),
        "stays of the arguments of run()": stays,
        "rooms that they visit": visited,
        "their climbs": climbs,
        "lines of run()": (run.end_lineno or 0) - run.lineno + 1,
        "Any": count_any(modules),
        "files over 350 lines": sum(lines > 350 for lines in sizes.values()),
        "lines": sum(sizes.values()),
    }
    return figures | ({"type errors": count_type_errors()} if types else {})


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="The structure of hftl in numbers.")
    parser.add_argument("--types", action="store_true", help="also count what pyright finds")
    for name, value in measure(types=parser.parse_args().types).items():
        print(f"{value:8,d}  {name}")


if __name__ == "__main__":
    main()
