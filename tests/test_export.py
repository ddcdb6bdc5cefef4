"""Every format on three networks, grey and in colour, one class an image and several labels: each agrees.

One export a network and kind of image; the questions about it are asked of the same folder.
"""
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.config import to_dict
from imgcls.core import CheckpointError, ConfigError, DataError
from imgcls.decisions import Decisions, LabelThresholds, PredictionSets, Threshold
from imgcls.export import Export, export_predictor
from imgcls.inference import load_predictor
from imgcls.networks import ModelConfig, build_network
from imgcls.portable import ExportError, formats
from imgcls.predictions import Temperature
from imgcls.predictor import Predictor
from imgcls.seeding import seeded
from imgcls.transforms import NormalizeConfig, TransformConfig, build_transform

CASES = {       # network, mode, classes, how an image gets its size
    "resnet18, grey, 10 classes": ("resnet18", "L", 10, "crop"),
    "simple_cnn, colour, 2 classes": ("simple_cnn", "RGB", 2, "stretch"),
    "tiny_net, colour, several labels": ("tiny_net", "RGB", 3, "pad"),
}
SEVERAL = "tiny_net, colour, several labels"
SIDES = [(90, 70), (64, 64), (200, 333), (40, 48), (61, 300), (33, 32)]
DECISIONS = Decisions(Temperature(1.5, (1.2, 1.9), 0.5, 0.4, 50, "val"),
                      Threshold(0.5, 0.9, 0.9, (0.8, 0.95), 0.8, (0.7, 0.9), 50, "val"),
                      PredictionSets(0.8, 0.1, 50, "val"))
LABELS = Decisions(DECISIONS.temperature, label_thresholds=LabelThresholds(
    (0.3, 0.5, 0.52), ("class 0", "class 1", "class 2"), "f1", None, (0.9,)*3, (20,)*3, (True,)*3, 50, "val"))


def grey(image: Image.Image) -> Image.Image: return image.convert("L")


def predictor_of(architecture: str, mode: str, n_classes: int, resize_mode: str) -> Predictor:
    "With statistics of later batches; a ResNet as it is fine-tuned; three classes: several labels."
    channels, several, tuned = {"RGB": 3, "L": 1}[mode], n_classes == 3, architecture == "resnet18"
    config = TransformConfig(resize=(48, 40), resize_mode=resize_mode, crop_pct=0.875 if tuned else None,
                             interpolation="bicubic" if tuned else "bilinear",
                             normalize=NormalizeConfig(mean=(0.45,)*channels, std=(0.25,)*channels))
    knobs = {"gradient_checkpointing": True, "stochastic_depth": 0.1} if tuned else {}
    model, names = ModelConfig(architecture=architecture, **knobs), [f"class {i}" for i in range(n_classes)]
    network, transform = build_network(model, n_classes, 0, channels), build_transform(config, "test")
    with seeded("test"), torch.no_grad():
        for _ in range(10): network(torch.randn(8, channels, 48, 40))
    about = {"class_names": names, "architecture": architecture, "n_outputs": n_classes, "in_channels": channels,
             "model": to_dict(model), "mode": mode, "preprocessing": to_dict(config)}
    seen = transform if mode == "RGB" else lambda image: transform(grey(image))
    return Predictor(network, seen, names, about=about, decisions=LABELS if several else DECISIONS,
                     multi_label=several)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> list[str]:
    "Files of several sizes and kinds: smooth patterns, in colour and grey, one on its side, one with an alpha channel."
    folder, files = tmp_path_factory.mktemp("images"), []
    for i, (height, width) in enumerate(SIDES):
        y, x = np.mgrid[:height, :width]
        waves = [127.5 + 127*np.sin((x*(i + 1) + y*(c + 2))/(9 + 3*i)) for c in range(3)]
        image, file = Image.fromarray(np.stack(waves, -1).astype(np.uint8)), folder/f'{i} "a", ü.png'
        if i == 1: image = image.convert("L")
        if i == 2: image.putalpha(Image.fromarray(waves[0].astype(np.uint8)))
        if i == 3:
            turned = Image.Exif()
            turned[0x0112] = 6
            file = file.with_suffix(".jpg")
            image.save(file, exif=turned, quality=95)
        else: image.save(file)
        files.append(str(file))
    return files


@pytest.fixture(scope="session")
def exports(tmp_path_factory, images) -> dict[str, tuple[Predictor, Export]]:
    folder, found = tmp_path_factory.mktemp("exports"), {}
    for name, case in CASES.items():
        predictor = predictor_of(*case)
        found[name] = predictor, export_predictor(predictor, folder/name, images=images)
    return found


@pytest.mark.parametrize("case", CASES)
def test_each_format_agrees_in_a_fresh_process(case, exports, images):
    _, export = exports[case]
    assert list(export.files) == list(formats) and all(file.is_file() for file in export.files.values())
    table = export.table
    assert (table["images"] == len(images)).all() and (table["labels_equal"] == len(images)).all()
    assert (table["greatest_difference"] < 1e-3).all()
    assert (table.loc[["safetensors", "state_dict"], "greatest_difference"] == 0).all()
    if "stretch" in CASES[case]:        # torch's own resampling, in both
        assert (table.loc[["torch_export", "torchscript"], "greatest_difference"] < 1e-6).all()


@pytest.mark.parametrize("case", CASES)
def test_predict_py_alone_says_what_the_predictor_says(case, exports, images):
    "As a user runs it: no imgcls, no torch; labels, doubts and sets."
    predictor, export = exports[case]
    block = "import sys; sys.modules['torch'] = sys.modules['imgcls'] = None; import runpy; " \
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-B", "-c", block, str(export.folder/"predict.py"), *images],
                          capture_output=True, text=True, check=True, timeout=120)
    answers, lines = predictor.predict(images), done.stdout.splitlines()
    if case == SEVERAL:
        said = [[named.rsplit(" ", 1)[0] for named in line.rsplit(": ", 1)[1].split(", ")] for line in lines]
        assert said == [labels or said[i] for i, labels in enumerate(answers.labels)]
        assert [line.count("no label; then class ") for line in lines] == [not labels for labels in answers.labels]
        return
    accepted = DECISIONS.threshold.of(answers.probabilities)
    sets = DECISIONS.sets.of(answers.probabilities)
    for line, image, label, sure, row in zip(lines, images, answers.labels, accepted, sets, strict=True):
        assert line.startswith(f"{image}: {'' if sure else 'not sure: '}{label} 0.")
        named = line[line.index("{") + 1:line.index("}")].split(", ")
        assert set(named) == {name for name, inside in zip(predictor.class_names, row, strict=True) if inside}


@pytest.mark.parametrize("case", CASES)
def test_the_folder_is_a_predictor_again(case, exports, images):
    predictor, export = exports[case]
    again = load_predictor(export.folder, device="cpu", num_workers=0)
    assert again.decisions == predictor.decisions and again.class_names == predictor.class_names
    found, expected = again.predict(images), predictor.predict(images)
    assert found.labels == expected.labels and np.allclose(found.probabilities, expected.probabilities, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_each_file_says_what_it_is_of(case, exports):
    import onnx
    from safetensors import safe_open
    predictor, export = exports[case]
    extra = dict.fromkeys(("class_names", "weights_sha256", "versions"), "")
    torch.export.load(export.files["torch_export"], extra_files=extra)
    scripted = dict(extra)
    torch.jit.load(export.files["torchscript"], _extra_files=scripted)
    with safe_open(export.files["safetensors"], "pt") as file: header = file.metadata()
    properties = {p.key: p.value for p in onnx.load(export.files["onnx"]).metadata_props}
    for said in (extra, scripted, header, properties):
        assert json.loads(said["class_names"]) == predictor.class_names
        text = said["weights_sha256"]
        assert (text.decode() if isinstance(text, bytes) else text) == export.data["weights_sha256"]
        assert torch.__version__.startswith(json.loads(said["versions"])["torch"])
    network = build_network(ModelConfig(**predictor.about["model"]), len(predictor.class_names), 1,
                            predictor.about["in_channels"])
    network.load_state_dict(torch.load(export.files["state_dict"], weights_only=True))


def test_a_changed_export_is_not_opened(exports, tmp_path):
    _, export = exports[SEVERAL]
    for name in ("model.onnx", "model.pth", "predict.py"):
        copy = shutil.copytree(export.folder, tmp_path/name)
        with open(copy/name, "ab") as file: file.write(b" ")
        with pytest.raises(CheckpointError, match="must be the file that was proven"): Export.open(copy)
    damaged = (export.folder/"export.json").read_text()[:-40]
    (tmp_path/"model.pth"/"export.json").write_text(damaged)
    with pytest.raises(CheckpointError, match="is no export of imgcls"): Export.open(tmp_path/"model.pth")


WRONG = TransformConfig(resize=(48, 40), normalize=NormalizeConfig(mean=(0.9,)*3, std=(0.05,)*3))


def test_bad_input_leaves_nothing(exports, images, tmp_path):
    predictor, _ = exports["simple_cnn, colour, 2 classes"]
    export = lambda **options: export_predictor(predictor, tmp_path/"new", **({"images": images[:1]} | options))
    broken = tmp_path/"broken.png"
    broken.write_bytes(b"no image")
    for error, options in [
            (ConfigError, {"formats": ["onxx"]}), (ConfigError, {"formats": []}), (ConfigError, {"formats": ["int8"]}),
            (DataError, {"formats": ["onnx", "int8"]}), (DataError, {"images": []}), (DataError, {"images": None}),
            (DataError, {"images": tmp_path/"none"}), (DataError, {"images": [broken], "formats": ["state_dict"]}),
            (ConfigError, {"n_images": 0}), (ConfigError, {"tolerance": -1.0}),
            (ExportError, {"preprocessing": WRONG, "formats": ["torchscript"]})]:
        with pytest.raises(error): export(**options)
        assert [file.name for file in tmp_path.iterdir()] == ["broken.png"], options
    (tmp_path/"new").mkdir()
    with pytest.raises(ConfigError, match="must be a new one"): export(formats=["state_dict"])
    with pytest.raises(CheckpointError, match="is no export"): export(formats=["state_dict"], overwrite=True)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_export import predictor_of
import imgcls.export as room
def wait(*_): print("writing", flush=True); time.sleep(60)
room.prove = wait
room.export_predictor(predictor_of("tiny_net", "RGB", 2, "stretch"), {folder!r}, ["state_dict"], images={images!r})
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_killed_export_leaves_no_folder_and_its_rest_is_removed_by_the_next(exports, images, workspace):
    predictor, _ = exports["simple_cnn, colour, 2 classes"]
    place = workspace.folder/"exports"
    place.mkdir()
    program = KILLED.format(tests=str(Path(__file__).parent), folder=str(place/"new"), images=images[:1])
    process = workspace.launch(sys.executable, "-c", program)
    try: assert process.stdout.readline() == "writing\n"
    finally: process.send_signal(signal.SIGKILL)
    process.wait(20)
    left = [file.name for file in place.iterdir()]
    assert len(left) == 1 and left[0].startswith(".new.") and left[0].endswith(".part")
    export_predictor(predictor, place/"new", ["state_dict"], images=images[:1])
    assert [file.name for file in place.iterdir()] == ["new"]


def test_exporting_changes_nothing_and_is_float32_whatever_is_set_outside(images, tmp_path, capfd):
    predictor = predictor_of("tiny_net", "RGB", 2, "stretch")
    predictor.network.train()
    predictor.network.features[1].eval()
    modes = [module.training for module in predictor.network.modules()]
    weights = {name: tensor.clone() for name, tensor in predictor.network.state_dict().items()}
    rng, begin = torch.get_rng_state(), time.time()
    with torch.autocast("cpu", torch.bfloat16):
        export = export_predictor(predictor, tmp_path/"new", ["onnx", "torch_export", "torchscript"], images[:2])
    assert capfd.readouterr() == ("", "") and time.time() > begin
    assert (export.table["greatest_difference"] < 1e-3).all()
    assert modes == [module.training for module in predictor.network.modules()]
    assert all(torch.equal(weights[name], tensor) for name, tensor in predictor.network.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


def test_int8_says_what_it_costs(tmp_path):
    from imgcls.data import ImageData
    random = np.random.default_rng(0)
    for split, name, i in [(s, n, i) for s in ("train", "val") for n in ("a", "b") for i in range(5)]:
        file = tmp_path/"data"/split/name/f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = random.integers(0, 256, (9, 7 + i, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60, 50), Image.Resampling.BICUBIC).save(file)
    predictor = predictor_of("simple_cnn", "RGB", 2, "stretch")
    predictor.class_names = ["a", "b"]
    data = ImageData.from_folder(tmp_path/"data", 32)
    export = export_predictor(predictor, tmp_path/"new", ["onnx", "int8"], images=data)
    proof = export.data["formats"]["int8"]["proof"]
    assert proof["n_images"] == 10 and proof["split"] == "val" and proof["verdict"] in export._repr_html_()
    assert proof["accuracy_interval"][0] < -0.01 and "is not excluded" in proof["verdict"]     # ten images say little
    assert export.files["int8"].stat().st_size < export.files["onnx"].stat().st_size / 2


def test_a_network_of_many_classes_that_says_little_is_proven_too(images, tmp_path):
    "No probability is above the tolerance, so a wrong description would go unseen if it were all that counts."
    predictor = predictor_of("tiny_net", "RGB", 200, "stretch")
    assert predictor.predict(images).probabilities.max() < 0.01
    wrong = NormalizeConfig(mean=(0.2,)*3, std=(0.25,)*3)
    described = TransformConfig(resize=(48, 40), resize_mode="stretch", normalize=wrong)
    with pytest.raises(ExportError, match=r"model\.pt does not answer as the predictor does"):
        export_predictor(predictor, tmp_path/"new", ["torchscript"], images, described)
    export = export_predictor(predictor, tmp_path/"new", ["onnx"], images)
    assert (export.table["labels_equal"] == len(images)).all()


def nested(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    "A file, and what is in it if it is a zip."
    yield name, content
    if not zipfile.is_zipfile(io.BytesIO(content)): return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.namelist(): yield from nested(f"{name}/{entry}", archive.read(entry))


def test_no_file_tells_where_it_was_made(exports):
    import imgcls
    places = [str(Path(imgcls.__file__).parent.parent), str(Path.home()), str(Path(__file__).parent),
              Path(__file__).name, "site-packages", str(Path(torch.__file__).parent)]
    for _, export in exports.values():
        for file in export.folder.iterdir():
            for name, content in nested(file.name, file.read_bytes()):
                assert not [place for place in places if len(place) > 1 and place.encode() in content], name


def test_the_same_export_is_the_same_bits(exports, images, tmp_path):
    "TorchScript counts its modules on within a process, and times differ: those two are not compared."
    predictor, export = exports[SEVERAL]
    names = ["onnx", "torch_export", "safetensors", "state_dict"]
    again = export_predictor(predictor, tmp_path/"again", names, images[:1])
    for name, file in again.files.items(): assert file.read_bytes() == export.files[name].read_bytes(), name


def test_predict_py_says_what_it_cannot_do(exports, images, tmp_path):
    _, export = exports["simple_cnn, colour, 2 classes"]
    run = lambda *names: subprocess.run([sys.executable, "-I", "-B", str(export.folder/"predict.py"), *map(str, names)],
                                        capture_output=True, text=True, timeout=120)
    asked, helped = run(), run("--help")
    assert asked.returncode == 2 and "predict.py image.jpg" in asked.stderr and not asked.stdout
    assert helped.returncode == 0 and "predict.py image.jpg" in helped.stdout
    (tmp_path/"broken.png").write_bytes(b"no image")
    Image.fromarray(np.full((20, 30), 0.5, np.float32)).save(tmp_path/"floats.tif")
    Image.fromarray(np.full((20, 30), 70_000, np.int32)).save(tmp_path/"whole.tif")
    done = run(tmp_path/"broken.png", images[0], tmp_path, tmp_path/"floats.tif", tmp_path/"whole.tif", images[1])
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 2 and len(done.stderr.splitlines()) == 4
    assert done.stderr.count("no agreed range") == 2 and "Is a directory" in done.stderr


def test_predict_py_reads_deep_grey_images_as_the_library_does(exports, tmp_path):
    from imgcls.images import as_image
    program = exports["simple_cnn, colour, 2 classes"][1].folder/"predict.py"
    spec = importlib.util.spec_from_file_location("predict", program)
    predict = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(predict)
    levels = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    image = Image.fromarray(levels)
    image.save(tmp_path/"plain.png")
    image.save(tmp_path/"hole.png", transparency=int(levels[3, 4]))
    image.save(tmp_path/"negative.tif", tiffinfo={262: 0})
    for name in ("plain.png", "hole.png", "negative.tif"):
        found, wanted = predict.pixels(tmp_path/name)[0].transpose(1, 2, 0), np.asarray(as_image(tmp_path/name))
        assert np.array_equal(found, wanted), name


def test_int8_claims_nothing_that_was_fitted_for_other_weights(exports, tmp_path):
    from imgcls.portable import said_in
    from imgcls.quantization import quantize
    _, export = exports["simple_cnn, colour, 2 classes"]
    file = tmp_path/"a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
    quantize(export.files["onnx"], tmp_path/"int8.onnx", [str(file)], "RGB", said_in(export.files["onnx"]))
    said = said_in(tmp_path/"int8.onnx")
    decisions = json.loads(said["decisions"])
    assert decisions["temperature"] and decisions["threshold"] is decisions["sets"] is None
    assert "weights_sha256" not in said and said["quantised_from"] == export.data["weights_sha256"]
    assert json.loads(said["imgcls"])["decisions"] == decisions
