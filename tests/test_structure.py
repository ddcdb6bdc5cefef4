"What the rooms promise about each other: imports point down, and the package is light to import."
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]/"imgcls"
NUMBERED = re.compile(r"File to edit: \.\./nbs/((\d\d)_\w+)\.ipynb")


def rooms() -> dict[str, tuple[str, int]]:
    "Module -> its notebook and number."
    found = {}
    for file in PACKAGE.glob("*.py"):
        match = NUMBERED.search(file.read_text())
        if match: found[file.stem] = (match[1], int(match[2]))
    return found


def upward(rooms: dict[str, tuple[str, int]]) -> list[str]:
    "Imports, at any depth, that do not point to a lower number."
    wrong = []
    for module, (notebook, number) in rooms.items():
        for node in ast.walk(ast.parse((PACKAGE/f"{module}.py").read_text())):
            if not isinstance(node, ast.ImportFrom): continue
            if not (node.level or (node.module or "").startswith("imgcls.")): continue
            target = (node.module or "").split(".")[-1]
            if target in rooms and rooms[target][1] >= number:
                wrong.append(f"{notebook} imports {rooms[target][0]}: move the shared code down, or renumber")
    return wrong


def test_imports_point_down():
    found = rooms()
    assert len(found) > 10
    assert not upward(found)


def test_the_check_can_fail():
    found = rooms()
    assert upward(found | {"core": ("99_core", 99)})


def test_every_room_is_there():
    "Each numbered notebook has its module, and each module its notebook."
    notebooks = {f.stem for f in (PACKAGE.parent/"nbs").glob("[0-9][0-9]_*.ipynb")}
    assert notebooks == {notebook for notebook, _ in rooms().values()}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout


def test_import_loads_no_torch():
    heavy = ["torch", "torchvision", "matplotlib", "pandas", "sklearn"]
    assert python(f"import imgcls, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_learner_loads_nothing_heavy_beside_torch():
    heavy = ["matplotlib", "pandas", "sklearn", "seaborn", "tensorboard", "IPython", "scipy"]
    code = f"import torch, torchvision, sys; before = set(sys.modules); from imgcls import Learner; " \
           f"print([m for m in {heavy} if m in sys.modules and m not in before])"
    assert python(code).strip() == "[]"


def test_public_names_exist():
    import imgcls
    for name in imgcls.__all__: assert getattr(imgcls, name) is not None
    assert set(imgcls.__all__) <= set(dir(imgcls))
    with pytest.raises(AttributeError, match="Did you mean 'Learner'"): _ = imgcls.Lerner
