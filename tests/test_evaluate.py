"""Normalisation, class scores, and the loss and accuracy that follow from them."""

from __future__ import annotations

import math

import pytest
import torch

from nas_mnist import Architecture
from nas_mnist.data.dataset import DataSet, Images
from nas_mnist.data.normalize import Normalizer
from nas_mnist.models.network import build
from nas_mnist.training.evaluate import Evaluation, Mistake, evaluate, predict

FIRST = {"kind": "conv", "channels": 6, "stride": 2, "dropout": 0.1}
SMALL = Architecture.make({"blocks": [FIRST, {"kind": "separable", "channels": 6, "norm": "after"}]})


def test_normaliser_measures_mean_and_deviation() -> None:
    images = torch.tensor([0, 0, 30, 90], dtype=torch.uint8).view(1, 1, 2, 2)
    normalize = Normalizer.of(images)
    assert normalize.mean == pytest.approx(30)
    assert normalize.std == pytest.approx(math.sqrt((900 + 900 + 0 + 3600) / 4))
    made = normalize(images)
    assert made.dtype == torch.float32
    assert made.flatten().tolist() == pytest.approx([-30 / normalize.std] * 2 + [0, 60 / normalize.std])


def test_mean_and_deviation_of_real_images_are_those_of_mnist(five_thousand: DataSet) -> None:
    normalize = Normalizer.of(five_thousand.train.images)
    assert normalize.mean / 255 == pytest.approx(0.1307, abs=0.005)
    assert normalize.std / 255 == pytest.approx(0.3081, abs=0.005)


def test_normaliser_survives_images_of_one_colour() -> None:
    images = torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)
    assert Normalizer.of(images)(images).abs().max() == 0


def test_score_counts_the_right_predictions_which_do_not_depend_on_other_images(tiny_data: DataSet) -> None:
    train_data, val_data = tiny_data.split()
    normalize = Normalizer.of(train_data.images)
    model = build(SMALL, 0)
    scores = predict(model, val_data.images, normalize)
    assert (scores.shape, scores.dtype) == ((len(val_data), 10), torch.float32)
    alone = torch.cat([predict(model, image[None], normalize) for image in val_data.images[:5]])
    torch.testing.assert_close(scores[:5], alone, rtol=1e-4, atol=1e-4)
    found = evaluate(model, val_data, normalize)
    right = int((scores.argmax(1) == val_data.labels).sum())
    assert (found.correct, found.count, found.accuracy) == (right, len(val_data), right / len(val_data))
    log_shares = scores.log_softmax(1)[torch.arange(len(val_data)), val_data.labels]
    assert found.loss == pytest.approx(float(-log_shares.mean()), rel=1e-5)
    perfect = evaluate(model, Images(val_data.images, scores.argmax(1)), normalize)
    assert perfect.accuracy == 1.0


def test_an_evaluation_counts_confusions_and_lists_mistakes() -> None:
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, math.log(3)], [4.0, 0.0]])
    found = Evaluation.of(scores, torch.tensor([0, 1, 0, 0]))
    assert found.confusion == ((2, 1), (0, 1))
    assert found.mistakes == (Mistake(2, 0, 1, pytest.approx(0.75)),)
