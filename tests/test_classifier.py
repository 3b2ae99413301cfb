"""Trained networks as files: written, read back, refused, exported, and asked about a picture."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FULL_MNIST, Runner, best_folder, needs_full_mnist
from PIL import Image
from safetensors.torch import load_file, save, save_file

from nas_mnist import Architecture
from nas_mnist.core.errors import InputError
from nas_mnist.data.dataset import DataSet, load
from nas_mnist.data.normalize import Normalizer
from nas_mnist.export.folded import FoldedNetwork
from nas_mnist.export.formats import metadata, to_torch
from nas_mnist.export.onnx_file import to_onnx
from nas_mnist.lookup import find_classifier
from nas_mnist.models import zoo
from nas_mnist.models.network import build
from nas_mnist.training.classifier import Classifier
from nas_mnist.training.evaluate import predict

REPORTS = Path(__file__).parents[1] / "reports"
SMALL = Architecture.make(
    {
        "blocks": [
            {"kind": "conv", "channels": 4, "bias": True},
            {"kind": "residual", "body": [{"kind": "separable", "channels": 6, "norm": "after"}]},
            {"kind": "pool"},
            {"kind": "conv", "channels": 6, "kernel": 1},
            {"kind": "repeat"},
        ]
    }
)


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(build(SMALL, 0).eval(), Normalizer(33.25, 78.5))


@pytest.fixture
def images(five_thousand: DataSet) -> torch.Tensor:
    return five_thousand.read_test().images


def test_own_names_of_classes_come_back_from_the_file(classifier: Classifier, work: Path) -> None:
    assert classifier.class_names[9] == "9"
    names = tuple("abcdefghij")
    (work / "w.safetensors").write_bytes(replace(classifier, data="folder", own_names=names).to_bytes())
    assert Classifier.load(work / "w.safetensors").class_names == names
    (work / "w.safetensors").write_bytes(replace(classifier, own_names=names[:3]).to_bytes())
    with pytest.raises(InputError, match="3 names for 10 classes"):
        Classifier.load(work / "w.safetensors")


def test_a_network_comes_back_from_its_file(classifier: Classifier, images: torch.Tensor, work: Path) -> None:
    (work / "w.safetensors").write_bytes(classifier.to_bytes())
    back = Classifier.load(work / "w.safetensors")
    assert back.model.architecture == SMALL
    assert back.normalizer == classifier.normalizer
    probabilities = back(images[:20])
    assert torch.equal(probabilities, classifier(images[:20]))
    assert probabilities.sum(1) == pytest.approx(np.ones(20), abs=1e-5)


def test_of_a_folder_with_several_seeds_the_lowest_counts(work: Path) -> None:
    whole = json.loads((REPORTS / "mnist-500" / "result.json").read_text())
    whole["runs"] = [whole["runs"][0] | {"seed": seed} for seed in (10, 2, 30)]
    (work / "results").mkdir()
    (work / "results" / "result.json").write_text(json.dumps(whole))
    for seed in (10, 2, 30):
        content = Classifier(build(SMALL, seed).eval(), Normalizer(seed, 1.0)).to_bytes()
        (work / "results" / f"weights-seed-{seed}.safetensors").write_bytes(content)
    assert find_classifier("results")[1].normalizer.mean == 2


def spoil_metadata(file: Path, **changes: object) -> None:
    about = {"architecture": SMALL.model_dump(mode="json"), "mean": 1.0, "std": 1.0} | changes
    save_file(load_file(file), file, {"classifier": json.dumps(about)})


SPOILED = {
    "no metadata": lambda file: save_file(load_file(file), file),
    "other architecture": lambda file: spoil_metadata(file, architecture={"blocks": [{"kind": "pool"}]}),
    "std of zero": lambda file: spoil_metadata(file, std=0),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_file_that_holds_no_such_network_is_refused_in_one_line(
    how: str, classifier: Classifier, work: Path, invoke: Runner
) -> None:
    file = work / "w.safetensors"
    file.write_bytes(classifier.to_bytes())
    SPOILED[how](file)
    ended = invoke("export", "w.safetensors", "--to", "torch", "--output", "out.pt2")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert ended.err.startswith("error: weights: w.safetensors")
    assert not (work / "out.pt2").exists()


def test_weights_smaller_than_their_architecture_are_refused_before_it_is_built(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = {"kind": "conv", "channels": 1024, "kernel": 7}
    about = {"architecture": {"blocks": [huge] * 8}, "mean": 1.0, "std": 1.0}
    (work / "x.safetensors").write_bytes(save({"a": torch.zeros(2)}, {"classifier": json.dumps(about)}))
    monkeypatch.setattr("nas_mnist.training.classifier.Network", None)
    with pytest.raises(InputError, match="fewer bytes than the 1,4"):
        Classifier.load(work / "x.safetensors")


def test_onnx_agrees_with_torch_to_the_last_prediction(
    classifier: Classifier, images: torch.Tensor, work: Path
) -> None:
    import onnxruntime

    (work / "m.onnx").write_bytes(to_onnx(FoldedNetwork(classifier), metadata(classifier)))
    session = onnxruntime.InferenceSession(work / "m.onnx", providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert told["input"].startswith("float32 (N, 1, 28, 28), pixels from 0 to 255")
    assert json.loads(told["classes"]) == list("0123456789")
    assert Architecture.from_json(told["architecture"]).key == classifier.model.architecture.key
    (scores,) = session.run(["scores"], {"pixels": images.float().numpy()})
    ours = classifier(images)
    assert scores.shape == (len(images), 10)
    assert (scores.argmax(1) == ours.argmax(1).numpy()).all()
    assert torch.from_numpy(scores).softmax(1).numpy() == pytest.approx(ours.numpy(), abs=1e-4)


def test_a_torch_program_agrees_too(classifier: Classifier, images: torch.Tensor, work: Path) -> None:
    (work / "m.pt2").write_bytes(to_torch(classifier))
    program = torch.export.load(work / "m.pt2").module()
    assert program(images.float()).softmax(1).detach().numpy() == pytest.approx(
        classifier(images).numpy(), abs=1e-4
    )


def test_export_writes_what_it_says_and_overwrites_nothing(
    classifier: Classifier, work: Path, invoke: Runner
) -> None:
    (work / "w.safetensors").write_bytes(classifier.to_bytes())
    ended = invoke("export", "w.safetensors", "--to", "safetensors", "--output", "copy.safetensors")
    assert (ended.code, ended.err) == (0, "")
    assert (work / "copy.safetensors").read_bytes() == (work / "w.safetensors").read_bytes()
    assert f"{(work / 'copy.safetensors').stat().st_size:,} bytes" in ended.out
    assert "(byte - 33.250000) / 78.500000" in ended.out
    again = invoke("export", "w.safetensors", "--to", "safetensors", "--output", "copy.safetensors")
    assert again.code == 2
    assert "copy.safetensors exists" in again.err


def test_the_best_of_a_study_is_exported_and_asked(
    copied: Path, invoke: Runner, images: torch.Tensor
) -> None:
    ended = invoke("export", "best", "--to", "safetensors")
    assert (ended.code, ended.err) == (0, "")
    weights = best_folder(copied) / "weights-seed-0.safetensors"
    assert (copied / "nas_mnist-best.safetensors").read_bytes() == weights.read_bytes()
    Image.fromarray(images[0, 0].numpy()).save(copied / "digit.png")
    ended = invoke("predict", "digit.png", "--network", "best", "--json")
    assert (ended.code, ended.err) == (0, "")
    found, classifier = json.loads(ended.out), Classifier.load(weights)
    expected = classifier(images[:1])[0]
    assert found["probabilities"] == pytest.approx(expected.tolist())
    assert (found["class"], found["name"]) == (int(expected.argmax()), str(int(expected.argmax())))
    for what in ("best", weights.parent):
        described = json.loads(invoke("describe", what, "--json").out)
        assert described["key"] == classifier.model.architecture.key
    ended = invoke("predict", "digit.png", "--network", "reports/nas_mnist")
    assert str(weights.parent.relative_to(copied)) in ended.err.partition("(use ")[2]
    shutil.rmtree(copied / "reports")
    assert invoke("predict", "digit.png", "--network", "best").code == 1  # it has to be trained again


def test_the_readmes_example_classifies_a_picture(
    images: torch.Tensor, five_thousand: DataSet, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (work / "example.py").write_text(readme.split("```python\n")[1].split("```")[0])
    Image.fromarray(images[0, 0].numpy()).save(work / "digit.png")
    runpy.run_path("example.py")
    probabilities = json.loads(capsys.readouterr().out)
    assert len(probabilities) == 10
    assert probabilities.index(max(probabilities)) == int(five_thousand.read_test().labels[0])


ZOO = zoo.names()


@pytest.mark.parametrize("name", ZOO)
def test_weights_of_the_zoo_belong_to_their_architecture(
    name: str, images: torch.Tensor, five_thousand: DataSet
) -> None:
    found, classifier = find_classifier(name, "none", "none")
    assert found == name
    assert classifier.model.architecture == zoo.load(name).architecture
    right = classifier(images).argmax(1) == five_thousand.read_test().labels
    assert right.float().mean() > 0.97  # seen in its training: says only that weights and preprocessing fit


@pytest.mark.slow
@needs_full_mnist
def test_the_zoo_and_its_export_reach_the_reported_accuracy_on_all_test_images(work: Path) -> None:
    import onnxruntime

    test = load("mnist", Path(str(FULL_MNIST))).read_test()
    for name in ZOO:
        _, classifier = find_classifier(name, "none", "none")
        ours = predict(classifier.model, test.images, classifier.normalizer).argmax(1)
        reported = zoo.load(name).test_accuracies[0]  # of seed 0
        assert int((ours == test.labels).sum()) == round(10_000 * reported)
    (work / "m.onnx").write_bytes(to_onnx(FoldedNetwork(classifier), metadata(classifier)))
    session = onnxruntime.InferenceSession(work / "m.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"pixels": test.images.float().numpy()})
    assert (scores.argmax(1) == ours.numpy()).all()
