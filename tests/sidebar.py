"""The parts of the site, in order: `python tests/sidebar.py` writes nbs/sidebar.yml and nbs/root.yml, a test compares.

nbs/sidebar.yml is read where the pages are staged, nbs/root.yml where somebody renders from the top folder.
"""
import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/"nbs"

# Folder -> its title, and the pages that come first, in the order in which one reads them.
PARTS = {
    "start": ("Get started", ["install", "first_run", "tour"]),
    "tutorials": ("Tutorials", ["own_images", "fine_tuning", "photographs", "read_results", "resume", "several_labels",
                                "extend", "compare_and_choose", "experiment", "service", "clusters"]),
    "howto": ("How-to", ["choose_a_learning_rate", "use_a_gpu", "pretrained_offline", "rare_classes",
                         "own_augmentation", "own_loss_metric", "clean_data", "large_data", "save_memory",
                         "steer_and_watch", "thresholds", "many_images", "several_processes", "deploy"]),
    "guide": ("Guide", ["exactness", "uncertainty", "the_loop", "data_flow", "weights_that_answer"]),
    "reference": ("Reference", ["rooms", "names", "config", "commands", "run_folder"]),
    "benchmarks": ("Benchmarks", ["speed", "toolbox", "recipes", "gpu", "drawing", "shipping", "scaling"]),
    "coming_from": ("Coming from", ["comparison", "fastai", "lightning", "keras", "timm", "commands"]),
}
HELP = ["troubleshooting", "when_not", "changelog"]
FLOORS = ["ground", "data", "model", "training", "seeing", "the face", "shipping"]


def pages_of(part: str) -> list[str]:
    "Pages of a part that exist, in their order; those that nobody has placed come last."
    there = {file.stem for file in (NBS/part).glob("*.ipynb")}
    placed = [name for name in PARTS[part][1] if name in there]
    return [f"{part}/{name}.ipynb" for name in [*placed, *sorted(there - {*placed})]]


def title_of(notebook: Path) -> str:
    "Its first heading."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return next(m[1].strip() for cell in cells if (m := re.search(r"^# (.+)$", "".join(cell["source"]), re.M)))


def floors() -> list[dict]:
    "Rooms with their numbers, by floor."
    rooms = sorted(NBS.glob("[0-9][0-9]*_*.ipynb"))
    entry = lambda file: {"text": f"{file.stem.split('_')[0]} {title_of(file)}", "href": file.name}
    return [{"section": f"{floor}x {name}", "contents": [entry(file) for file in rooms if file.name[0] == str(floor)]}
            for floor, name in enumerate(FLOORS)]


def site() -> dict:
    "The navigation, with paths as they are in nbs/."
    parts = {part: pages_of(part) for part in PARTS}
    contents: list = ["index.ipynb"]
    for part, pages in parts.items():
        if part == "reference": pages = [*pages, *floors()]
        if pages: contents.append({"section": PARTS[part][0], "contents": pages})
    others = [f"{name}.ipynb" for name in HELP if (NBS/f"{name}.ipynb").is_file()]
    if others: contents.append({"section": "Help", "contents": others})
    left = [{"text": PARTS[part][0], "href": pages[0]} for part, pages in parts.items() if pages]
    return {"website": {"navbar": {"left": left}, "sidebar": {"contents": contents}}}


def below(value, folder: str):
    "The same navigation, as it is seen from the top folder."
    if isinstance(value, dict): return {key: below(item, folder) for key, item in value.items()}
    if isinstance(value, list): return [below(item, folder) for item in value]
    return folder + value if isinstance(value, str) and value.endswith(".ipynb") else value


def texts() -> dict[Path, str]:
    "Both files."
    def written(value: dict) -> str: return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    note = "# Written by tests/sidebar.py.\n"
    render = ["nbs/index.ipynb", "nbs/404.qmd", "nbs/*.ipynb", *[f"nbs/{part}/*.ipynb" for part in PARTS]]
    light = ["cosmo", "nbs/theme.scss"]
    look = {"theme": {"light": light, "dark": [*light, "nbs/dark.scss"]}, "css": "nbs/styles.css"}
    website = below(site(), "nbs/")["website"] | {"favicon": "nbs/favicon.svg"}
    root = {"project": {"render": render, "resources": ["nbs/llms.txt"]},
            "format": {"html": {"keep-md": False, **look}}, "website": website}
    return {NBS/"sidebar.yml": note + written(site()),
            NBS/"root.yml": note + "# Read only by a render from the top folder.\n" + written(root)}


def differences() -> list[str]:
    "Files that are not what the notebooks say."
    return [str(file.relative_to(ROOT)) for file, text in texts().items()
            if not file.exists() or file.read_text(encoding="utf-8") != text]


if __name__ == "__main__":
    if "--check" in sys.argv: sys.exit("\n".join(differences()) and f"run python tests/sidebar.py: {differences()}")
    for file, text in texts().items(): file.write_text(text, encoding="utf-8")
