"""What the rooms promise about each other: which may import which, whose names are used, who may touch whose class.

The plan of the house is a table here, so that a change of it is a change of this file.
"""
import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, NOTEBOOKS = ROOT/"imgcls", ROOT/"nbs"
NUMBERED = re.compile(r"File to edit: \.\./nbs/((\d\d[a-z]?)_\w+)\.ipynb")

# Which floors a room may import from, beside lower rooms of its own: 3x sees batches, never folders of images.
FLOORS = {0: {0}, 1: {0, 1}, 2: {0, 2}, 3: {0, 2, 3}, 4: {0, 1, 2, 3, 4}, 5: {0, 1, 2, 3, 4, 5}, 6: {0, 1, 2, 6}}
ROOMS = {63: {0, 1, 2, 3, 4, 5, 6}}             # with a rule of its own: the commands (63, 63a) stand on everything
SHIPPED = {30, 31, 32}                          # rooms of training that 6x may read: history, summaries, runs
# Verbs of a predictor whose work is done on floor 6. What an object can do must not depend on what was imported, so
# they stand with their class; the room is imported when the verb is called, and only then.
DOORS = {"predictor": {"inference", "strategies", "streaming", "ensembles", "export", "packages"},
         "folds": {"ensembles"}}        # and the folds of a cross-validation, which answer as one predictor


@dataclass(frozen=True)
class Room:
    notebook: str
    number: float               # 14a, a room between 14 and 15: 14.01
    imports: frozenset[str]     # modules of the package, at any depth


@cache
def rooms() -> dict[str, Room]:
    "Module -> its notebook, number and imports."
    found = {}
    for file in PACKAGE.glob("*.py"):
        text = file.read_text()
        match = NUMBERED.search(text)
        if match: found[file.stem] = Room(match[1], number_of(match[2]), frozenset(imported(ast.parse(text))))
    return found


def number_of(name: str) -> float:
    "A floor of ten rooms may be full: 14a stands between 14 and 15."
    return int(name[:2]) + (ord(name[2]) - ord("a") + 1) / 100 if name[2:] else int(name)


def imported(tree: ast.AST) -> Iterator[str]:
    "Modules of the package: `from .x import y`, `from . import x`, `from imgcls import x`, `import imgcls.x`."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("imgcls."))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            inside = node.level == 1 or module.split(".")[0] == "imgcls"
            path = module if node.level else module.removeprefix("imgcls").lstrip(".")
            if inside and path: yield path.split(".")[0]
            elif inside: yield from (alias.name for alias in node.names)


def may_import(number: float, other: float) -> bool:
    "The table."
    if other >= number: return False
    if number // 10 == 6 and other in SHIPPED: return True
    return other // 10 in ROOMS.get(int(number), FLOORS[number // 10])


def forbidden(rooms: dict[str, Room]) -> list[str]:
    return [f"{room.notebook} imports {rooms[name].notebook}" for module, room in rooms.items()
            for name in sorted(room.imports) if name in rooms and not may_import(room.number, rooms[name].number)
            and name not in DOORS.get(module, ())]


def test_imports_follow_the_table():
    assert len(rooms()) > 30
    assert not forbidden(rooms())


def test_doors_are_opened_only_when_somebody_goes_through():
    for module, doors in DOORS.items():
        top = ast.Module([node for node in ast.parse((PACKAGE/f"{module}.py").read_text()).body
                          if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
        assert not doors & set(imported(top))


@pytest.mark.parametrize("code", ["from .learner import Learner", "from . import learner", "import imgcls.learner",
                                  "from imgcls import learner", "def f():\n    from imgcls.learner import Learner"])
def test_the_check_can_fail(code):
    spoiled = rooms() | {"data": Room("19_data", 19, frozenset(imported(ast.parse(code))))}
    assert forbidden(spoiled) == [f"19_data imports {rooms()['learner'].notebook}"]


def test_the_table_is_not_a_line():
    "Lower is not enough: a network knows no folders, the loop no files of images."
    assert not may_import(24, 19) and not may_import(33, 19) and not may_import(61, 33)
    assert may_import(24, 9) and may_import(33, 20) and may_import(55, 19) and may_import(61, 31)


def test_every_room_is_there():
    "Each numbered notebook has its module, and each module its notebook."
    notebooks = {file.stem for file in NOTEBOOKS.glob("[0-9][0-9]*_*.ipynb")}
    assert notebooks == {room.notebook for room in rooms().values()}


def test_every_room_is_in_the_sidebar():
    sidebar = (NOTEBOOKS/"sidebar.yml").read_text()
    missing = [room.notebook for room in rooms().values() if f"{room.notebook}.ipynb" not in sidebar]
    named = re.findall(r"(\d\d[a-z]?_\w+)\.ipynb", sidebar)
    gone = [name for name in named if not (NOTEBOOKS/f"{name}.ipynb").is_file()]
    assert not missing and not gone


@dataclass(frozen=True)
class Cell:
    notebook: str
    module: str             # that the notebook exports; "" where it exports none
    kind: str               # 'exported', 'hidden' or 'shown'
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        if re.match(r"\s*(#\|.*\s+)*%%", self.text): return ast.Module([], [])      # another language, or a file
        return ast.parse(re.sub(r"^([ \t]*)[%!].*$", r"\1pass", self.text, flags=re.M))


@cache
def cells() -> list[Cell]:
    "Every code cell."
    found = []
    for file in sorted(NOTEBOOKS.rglob("*.ipynb")):
        if file.parent.name.startswith((".", "_")): continue
        every = json.loads(file.read_text())["cells"]
        texts = ["".join(cell["source"]) for cell in every if cell["cell_type"] == "code"]
        module = next((m[1] for text in texts if (m := re.search(r"^#\| default_exp:? (\w+)", text, re.M))), "")
        found += [Cell(file.stem, module, _kind(text), text) for text in texts]
    return found


def _kind(text: str) -> str:
    if re.search(r"^#\| ?export\b", text, re.M): return "exported"
    return "hidden" if re.search(r"^#\| ?hide\b", text, re.M) else "shown"


def names_in(tree: ast.AST, texts: bool = True) -> set[str]:
    "Every name that is read, also as an attribute, an import or (`texts`) in quotes, as an annotation may be."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name): found.add(node.id)
        elif isinstance(node, ast.Attribute): found.add(node.attr)
        elif isinstance(node, ast.ImportFrom): found |= {alias.name for alias in node.names}
        elif texts and isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return found


def defined(cell: Cell) -> list[str]:
    "Public functions, classes and constants that a cell exports; methods that it adds to a class are not among them."
    found = []
    for node in cell.tree.body:
        patched = any("patch" in ast.unparse(d) for d in getattr(node, "decorator_list", ()))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not patched: found.append(node.name)
        elif isinstance(node, ast.Assign): found += [t.id for t in node.targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name): found.append(node.target.id)
    return [name for name in found if not name.startswith("_")]


def unused(cells: list[Cell], others: set[str]) -> list[str]:
    "Public names that no other cell needs: neither a room, nor a lesson that is shown, nor `others`."
    used = [(cell, names_in(cell.tree)) for cell in cells if cell.kind != "hidden"]
    counts: dict[str, int] = {}
    for cell, names in used:
        own = {*defined(cell)} if cell.kind == "exported" else set()
        for name in names - own: counts[name] = counts.get(name, 0) + 1
    within = {name for cell in cells if cell.kind == "exported" for name in defined(cell)
              if len(re.findall(rf"\b{name}\b", cell.text)) > 1}        # its own cell needs it
    return [f"{cell.notebook}: {name}" for cell in cells if cell.kind == "exported" for name in defined(cell)
            if not counts.get(name) and name not in others and name not in within]


@cache
def needed_elsewhere() -> set[str]:
    "What is public by `imgcls.__all__`, named by a command, or used by the tests here."
    files = [file for file in (ROOT/"tests").glob("*.py") if file.name != Path(__file__).name]
    named = set().union(*(names_in(ast.parse(file.read_text())) for file in files))
    in_texts = {word for file in files for word in re.findall(r"\w+", file.read_text())}      # programs that tests run
    commands = set(re.findall(r'"imgcls\.\w+:(\w+)"', (ROOT/"pyproject.toml").read_text()))
    return named | in_texts | commands | names_in(ast.parse((PACKAGE/"__init__.py").read_text()))


def test_no_exported_name_is_unused():
    assert not unused(cells(), needed_elsewhere())


def test_unused_names_are_found():
    spare = Cell("00_core", "core", "exported", "def nobody_calls_this(): ...")
    assert unused([*cells(), spare], needed_elsewhere()) == ["00_core: nobody_calls_this"]
    needed = Cell("01_settings", "settings", "shown", "nobody_calls_this()")
    assert not unused([*cells(), spare, needed], needed_elsewhere())


def defined_twice(cells: list[Cell]) -> list[str]:
    "Functions and classes that a module defines again: of a merge, say. Patched methods may share names."
    seen: set[tuple[str, str]] = set()
    twice = []
    for cell in cells:
        if cell.kind != "exported" or not cell.module: continue
        for node in cell.tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.decorator_list: continue
            if (cell.module, node.name) in seen: twice.append(f"{cell.notebook}: {node.name}")
            seen.add((cell.module, node.name))
    return twice


def test_nothing_is_defined_twice():
    assert not defined_twice(cells())


def test_second_definitions_are_found():
    spare = Cell("20_x", "x", "exported", "def _f(): ...")
    assert defined_twice([spare, spare]) == ["20_x: _f"]


def patched(cell: Cell) -> Iterator[str]:
    "Classes that get a method in a cell."
    for node in cell.tree.body:
        for decorator in getattr(node, "decorator_list", ()):
            call = decorator if isinstance(decorator, ast.Call) else None
            name = ast.unparse(call.func if call else decorator)
            if name == "patch_to": yield ast.unparse(call.args[0])
            elif name == "patch":
                first = (node.args.posonlyargs + node.args.args)[0]
                yield from re.findall(r"\w+", ast.unparse(first.annotation))


def strangers_patched(cells: list[Cell]) -> list[str]:
    classes = {(cell.module, node.name) for cell in cells if cell.kind == "exported" for node in cell.tree.body
               if isinstance(node, ast.ClassDef)}
    return [f"{cell.notebook} patches {name}, a class of another room" for cell in cells if cell.kind == "exported"
            for name in patched(cell) if (cell.module, name) not in classes]


def test_no_room_patches_the_class_of_another():
    assert not strangers_patched(cells())


def test_patched_strangers_are_found():
    for code in ("@patch\ndef shout(self: Learner): ...", "@patch_to(Learner)\ndef shout(self): ..."):
        found = strangers_patched([*cells(), Cell("43_interpretation", "interpretation", "exported", code)])
        assert found == ["43_interpretation patches Learner, a class of another room"]


def private_reads(cell: Cell, private: set[str]) -> set[str]:
    "Private names of the package that a cell reads without making them itself."
    made = {node.name for node in ast.walk(cell.tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    made |= {target.attr for node in ast.walk(cell.tree) if isinstance(node, ast.Assign) for target in node.targets
             if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"}
    return (names_in(cell.tree, texts=False) & private) - made


@cache
def private_names() -> set[str]:
    "Of functions, classes, methods and attributes of the package."
    found = set()
    for cell in cells():
        if cell.kind != "exported": continue
        for node in ast.walk(cell.tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store): found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store): found.add(node.id)
    return {name for name in found if name.startswith("_") and not name.endswith("_") and name != "_"}


SHOWN = {"_repr_html_", "_repr_markdown_"}
REASON = re.compile(r"#.*\bprivate\b", re.I)        # a comment that says why a private name is read


def unexplained(cells: list[Cell]) -> list[str]:
    return [f"{cell.notebook} reads {', '.join(sorted(found))} and no comment says why it is private and read"
            for cell in cells if cell.kind != "exported" and not REASON.search(cell.text)
            and (found := private_reads(cell, private_names()) - SHOWN)]


def test_no_test_reads_a_private_name_without_saying_why():
    files = [Cell(f"tests/{file.name}", "", "shown", file.read_text()) for file in (ROOT/"tests").glob("test_*.py")
             if file.name != Path(__file__).name]
    assert not unexplained([*cells(), *files])


def test_private_reads_are_found():
    name = next(iter(sorted(private_names() - SHOWN)))
    assert unexplained([Cell("55_learner", "learner", "shown", f"learn.{name}")])
    assert not unexplained([Cell("55_learner", "learner", "shown", f"learn.{name}     # private: nothing else tells")])


LONGEST = 60        # lines of an exported cell
FAMILY = 30         # lines of a cell with several small methods


def crowded(cell: Cell) -> str:
    "What makes an exported cell hard to read; '' for nothing."
    if all(isinstance(node, (ast.Import, ast.ImportFrom, ast.If)) for node in cell.tree.body): return ""
    defs = [node for node in cell.tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public = [node.name for node in defs if not node.name.startswith("_")]
    n = len([line for line in cell.text.strip().split("\n") if not line.startswith("#|")])
    siblings = n <= FAMILY and all("patch" in ast.unparse(node) for node in defs)      # small methods of one class
    if len(public) > 1 and not siblings: return f"holds {' and '.join(public)}: one public thing a cell"
    return f"{', '.join(public) or cell.text[:40]!r} has {n} lines, {LONGEST} at most" if n > LONGEST else ""


def test_exported_cells_are_small():
    assert not [f"{cell.notebook}: {problem}" for cell in cells() if cell.kind == "exported" and cell.module
                and "#| export: true\n" in cell.text and (problem := crowded(cell))]


def test_crowded_cells_are_found():
    cell = lambda text: Cell("00_core", "core", "exported", text)
    assert crowded(cell("def a(): ...\ndef b(): ...")) == "holds a and b: one public thing a cell"
    assert "62 lines" in crowded(cell("def a():\n" + "    pass\n"*61))


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout


def test_import_loads_no_torch():
    heavy = ["torch", "torchvision", "matplotlib", "pandas", "sklearn"]
    assert python(f"import imgcls, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def strangers(code: str, *ours: str) -> list[str]:
    "Packages that a program loads after `before = set(sys.modules)`, beside Python's own and ours."
    packages = "{m.split('.')[0] for m in %s}"
    new = f"{packages % 'sys.modules'} - {packages % 'before'} - sys.stdlib_module_names"
    loaded = python(f"import sys\n{code}\nprint()\nprint(*{new})")
    return sorted(name for name in loaded.splitlines()[-1].split() if name not in ours and not name.startswith("_"))


def test_learner_loads_few_packages_beside_torch():
    "Each has to be loaded by everybody, every time: a further one has to be worth it."
    code = "import torch, torchvision\nbefore = set(sys.modules)\nfrom imgcls import Learner"
    assert strangers(code) == ["cloudpickle", "fastcore", "imgcls", "jaxtyping", "loguru", "yaml"]


COMMANDS = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_commands_say_what_they_are_without_loading_anything(command, option):
    room, command = COMMANDS[command].split(":")
    code = f"before = set(sys.modules)\nfrom {room} import {command}\n" \
           f"try: {command}(['{option}'])\nexcept SystemExit as end: assert not end.code"
    assert strangers(code, "imgcls") == []


def test_garbage_is_not_searched_for_while_a_room_is_loaded():
    "What an import makes stays. Afterwards the search goes on as it was before."
    code = """
import gc, sys
n, before = lambda: sum(s['collections'] for s in gc.get_stats()), 0
gc.enable()
before = n()
from imgcls import Learner
print(n() - before < 20, gc.isenabled())
gc.disable()
assert 'imgcls.flips' not in sys.modules
from imgcls import compare
print(gc.isenabled())
"""
    assert python(code).split() == ["True", "True", "False"]


def test_public_names_exist():
    import imgcls
    for name in imgcls.__all__: assert getattr(imgcls, name) is not None
    assert set(imgcls.__all__) <= set(dir(imgcls))
    with pytest.raises(AttributeError, match="Did you mean 'Learner'"): _ = imgcls.Lerner


def test_a_class_has_its_verbs_wherever_it_comes_from():
    "Each room is imported before those above it: what its classes can do is complete then, and never grows."
    homes = [name for name, _ in sorted(rooms().items(), key=lambda item: item[1].number)]
    program = f"""
import importlib, inspect
import imgcls
known = {{}}
for home in {homes}:
    room = importlib.import_module(f"imgcls.{{home}}")
    known |= {{c: set(vars(c)) for c in vars(room).values() if inspect.isclass(c) and c.__module__ == room.__name__}}
grown = [f"{{c.__module__}}.{{c.__name__}}" for c, verbs in known.items() if set(vars(c)) - verbs
         - {{"__abstractmethods__", "_abc_impl", "__annotations__"}}]
for name in imgcls.__all__:
    public = getattr(imgcls, name)
    if inspect.isclass(public): assert public in known and public.__name__ == name, name
print(len(known) > 50, grown)
"""
    assert python(program).strip() == "True []"
