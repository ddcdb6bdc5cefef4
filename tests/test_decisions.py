"""A predictor that is calibrated, abstains and gives sets: on folders, data, files, and when it is wrong."""
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.core import CheckpointError, DataError
from imgcls.data import ImageData, sample_digits
from imgcls.decisions import Decisions, fit_sets, judge_sets, paired_gain
from imgcls.evaluation import read_predictions
from imgcls.networks import ModelConfig, build_network
from imgcls.predictor import Predictor


@pytest.fixture(scope="module")
def digits():
    return sample_digits(size=16)


@pytest.fixture(scope="module")
def trained(digits):
    network = build_network(ModelConfig(architecture="tiny_net"), digits.n_classes, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    for epoch in range(3):
        for images, targets in digits.batches("train", batch_size=64).epoch(epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), targets).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture
def predictor(digits, trained):
    return Predictor(trained, digits.eval_transform, digits.class_names, data=lambda: digits)


def test_the_three_verbs_on_data(predictor, digits):
    before = predictor.evaluate(digits, split="test")
    temperature = predictor.calibrate(digits)
    assert temperature.split == "val" and predictor.decisions == Decisions(temperature)
    threshold, sets = predictor.choose_threshold(digits, 0.8), predictor.prediction_sets(digits, 0.1)
    assert predictor.decisions == Decisions(temperature, threshold, sets)
    after = predictor.evaluate(digits, split="test")
    assert (after.predicted == before.predicted).all()
    assert (after.accepted == (after.confidence >= threshold.value)).all()
    assert paired_gain(before, after).worsened == 0
    judged = judge_sets(sets, after)
    assert judged.n == len(after) and abs(judged.measured - np.mean(
        [after.class_names[t] in names for t, names in zip(after.targets, after.sets, strict=True)])) < 1e-12
    with pytest.raises(DataError, match="on other images"): judge_sets(sets, predictor.evaluate(digits, split="val"))
    with pytest.raises(DataError, match="did not learn from"):
        predictor.calibrate(predictor.evaluate(digits, split="train"))
    with pytest.raises(DataError, match="did not learn from"): predictor.calibrate(digits.batches("train"))


def test_decisions_come_back_from_json_and_answer_the_same(predictor, digits, trained):
    predictor.calibrate(digits)
    predictor.choose_threshold(digits, 0.8)
    predictor.prediction_sets(digits)
    again = Decisions.from_dict(json.loads(json.dumps(predictor.decisions.to_dict())))
    assert again == predictor.decisions
    other = Predictor(trained, digits.eval_transform, digits.class_names, decisions=again)
    one, two = (p.evaluate(digits, split="test") for p in (predictor, other))
    assert (one.accepted == two.accepted).all() and one.sets == two.sets
    assert (one.probabilities == two.probabilities).all()


def test_an_answer_comes_back_from_a_csv(predictor, digits, tmp_path):
    predictor.choose_threshold(digits, 0.8)
    predictor.prediction_sets(digits)
    said = predictor.evaluate(digits, split="test")
    said.to_csv(tmp_path/"said.csv")
    back = read_predictions(tmp_path/"said.csv")
    assert (back.accepted == said.accepted).all() and back.sets == said.sets
    assert back[3].set == said[3].set and back[3].accepted == said[3].accepted
    assert back.per_sample.equals(said.per_sample)


def write(folder: Path, names: list[str], n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for name in names:
        (folder/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(folder/name/f"{i}.png")


def test_which_images_of_a_folder(predictor, digits, tmp_path):
    names = digits.class_names
    for seed, split in enumerate(("train", "val", "test")): write(tmp_path/"all"/split, names, 2, seed)
    sets = predictor.prediction_sets(tmp_path/"all")
    assert (sets.n, sets.split) == (2*len(names), "val")
    sets = predictor.prediction_sets(tmp_path/"all"/"test")
    assert (sets.n, sets.split) == (2*len(names), None)
    with pytest.raises(DataError, match="those called train"): predictor.prediction_sets(tmp_path/"all"/"train")
    (tmp_path/"all"/"val").rename(tmp_path/"elsewhere")
    with pytest.raises(DataError, match="val"): predictor.prediction_sets(tmp_path/"all")
    with pytest.raises(DataError): predictor.prediction_sets(tmp_path/"nowhere")
    assert predictor.decisions.sets == sets                 # what fails changes nothing


def test_files_of_the_training_are_known_again(predictor, digits, trained, tmp_path):
    write(tmp_path/"mine", digits.class_names, 3, 0)
    data = ImageData.from_folder(tmp_path/"mine", size=16)
    known = Predictor(trained, digits.eval_transform, digits.class_names, data=lambda: data)
    with pytest.raises(DataError, match="files of its training"): known.calibrate(tmp_path/"mine")
    with pytest.raises(DataError, match="files of its training"):
        known.prediction_sets(os.path.relpath(tmp_path/"mine"))

    def gone():
        raise CheckpointError("its images are not here")
    assert Predictor(trained, digits.eval_transform, digits.class_names, data=gone).prediction_sets(tmp_path/"mine").n


def test_another_temperature_drops_what_was_chosen(predictor, digits):
    predictor.calibrate(digits)
    predictor.choose_threshold(digits, 0.8)
    predictor.prediction_sets(digits)
    kept = predictor.decisions
    predictor.calibrate(digits)                             # the same again
    assert predictor.decisions == kept
    predictor.decisions = replace(kept, temperature=replace(kept.temperature, value=5.0))
    predictor.calibrate(digits)
    assert predictor.decisions == Decisions(kept.temperature)


def test_an_evaluation_at_another_temperature_is_taken_to_this_one(predictor, digits):
    plain = predictor.evaluate(digits, split="val")
    predictor.calibrate(plain)
    one, two = predictor.prediction_sets(plain), predictor.prediction_sets(digits)
    assert abs(one.quantile - two.quantile) < 1e-9 and one.n == two.n
    with pytest.raises(DataError, match="at least 9 images"): predictor.prediction_sets(plain[:5])
    with pytest.raises(DataError, match="at least 9 images"): fit_sets(plain[:1])
