"""Who computes: our kernels, or torch's modules where llvmlite is missing or broken or torch is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas_mnist import Architecture
from nas_mnist.core.errors import InputError
from nas_mnist.data.dataset import DataSet
from nas_mnist.engine import backend
from nas_mnist.engine.backend import ENGINE_VARIABLE, create_backend, resolve_engine
from nas_mnist.engine.cpu.backend import CpuBackend
from nas_mnist.engine.torch_backend import TorchBackend
from nas_mnist.models.network import build
from nas_mnist.recipes.recipe import Recipe
from nas_mnist.training.loop import train

CPU, MPS = torch.device("cpu"), torch.device("mps")
NETWORK = Architecture.make({"blocks": [{"kind": "conv", "channels": 3, "stride": 2}, {"kind": "pool"}]})


@pytest.fixture(autouse=True)
def _no_choice_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)


def test_kernels_compute_unless_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(NETWORK, 0)
    assert isinstance(create_backend(model, CPU), CpuBackend)
    assert isinstance(create_backend(model, CPU, "torch"), TorchBackend)
    assert isinstance(create_backend(model, MPS), TorchBackend)
    monkeypatch.setenv(ENGINE_VARIABLE, "torch")
    assert isinstance(create_backend(model, CPU), TorchBackend)
    assert isinstance(create_backend(model, CPU, "auto"), CpuBackend)  # an argument wins
    assert resolve_engine(None, CPU) == ("torch", "")


def test_an_unknown_engine_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^engine: 'fast' is not known \(use auto, torch\)$"):
        resolve_engine("fast", CPU)
    monkeypatch.setenv(ENGINE_VARIABLE, "fast")
    with pytest.raises(InputError, match=r"^NAS_MNIST_ENGINE: 'fast' is not known \(use auto, torch\)$"):
        create_backend(build(NETWORK, 0), CPU)


def test_the_note_says_why_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_llvmlite_error", lambda: "OSError: no such library")
    engine, note = resolve_engine(None, CPU)
    assert engine == "torch"
    assert "llvmlite" in note
    assert "OSError: no such library" in note
    assert "\n" not in note
    assert resolve_engine("torch", CPU) == ("torch", "")  # as it was asked for
    assert resolve_engine("auto", MPS) == ("auto", "")  # there are no kernels for it anyway


def test_torchs_modules_train_with_one_warning(tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, model = Recipe(epochs=2, batch_size=60), build(NETWORK, 0)
    expected = list(train(build(NETWORK, 0), tiny_data.train, recipe, seed=0, engine="torch"))
    monkeypatch.setattr(backend, "_llvmlite_error", lambda: "ImportError: broken")
    with pytest.warns(UserWarning, match="llvmlite") as warned:
        found = list(train(model, tiny_data.train, recipe, seed=0, score_on=tiny_data.read_test()))
    assert len(warned) == 1
    assert [one.train_loss for one in found] == [one.train_loss for one in expected]


USE = """
import sys, warnings
import torch
import nas_mnist.export, nas_mnist.predict, nas_mnist.describe, nas_mnist.reproduce
import nas_mnist.report.page, nas_mnist.training.classifier, nas_mnist.training.final
from nas_mnist import Architecture
from nas_mnist.data.dataset import Images
from nas_mnist.data.normalize import Normalizer
from nas_mnist.engine.backend import create_backend
from nas_mnist.models.network import build
from nas_mnist.recipes.recipe import load_recipe
from nas_mnist.training.evaluate import evaluate
from nas_mnist.training.loop import train

assert not any(name.startswith("llvmlite.") for name in sys.modules)
torch.manual_seed(0)
data = Images(torch.randint(256, (80, 1, 28, 28), dtype=torch.uint8), torch.arange(80) % 10)
model = build(Architecture.make({"blocks": [{"kind": "conv", "channels": 3}, {"kind": "pool"}]}), 0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(type(create_backend(model, torch.device("cpu"))).__name__)
    recipe = load_recipe("default").with_epochs(1)
    (result,) = train(model, data, recipe, seed=0, score_on=data)
    assert evaluate(model, data, Normalizer.of(data.images)) == result.score
print(*(one.message for one in caught), sep="\\n")
"""


def in_a_fresh_interpreter(before: str = "", **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", before + USE],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_everything_but_the_kernels_works_without_llvmlite() -> None:
    said = in_a_fresh_interpreter("import sys; sys.modules['llvmlite'] = None\n")
    assert said[0] == "TorchBackend"
    assert len(said) == 2
    assert "llvmlite" in said[1]


def test_a_broken_llvmlite_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "llvmlite").mkdir()
    (tmp_path / "llvmlite" / "__init__.py").write_text("raise OSError('cannot open\\nlibllvmlite.so')\n")
    kernels = in_a_fresh_interpreter()
    assert kernels[0] == "CpuBackend"
    assert kernels[1:] == [""]
    broken = in_a_fresh_interpreter(PYTHONPATH=str(tmp_path))
    assert broken[0] == "TorchBackend"
    assert broken[1:] == [broken[1]]
    assert "cannot open libllvmlite.so" in broken[1]
