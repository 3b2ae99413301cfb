"""Who computes: our kernels, or torch's modules where llvmlite is missing or broken or torch is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import run_python

from nas_mnist import Architecture
from nas_mnist.core.errors import InputError
from nas_mnist.engine import backend
from nas_mnist.engine.backend import ENGINE_VARIABLE, create_backend, resolve_engine
from nas_mnist.engine.cpu.backend import CpuBackend
from nas_mnist.engine.torch_backend import TorchBackend
from nas_mnist.models.network import build

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


@pytest.mark.parametrize(
    ("llvmlite", "says"),
    [
        ("raise ImportError", "llvmlite"),
        ("raise OSError('cannot open\\nlibllvmlite.so')", "cannot open libllvmlite.so"),
    ],
    ids=["missing", "broken"],
)
def test_everything_but_the_kernels_works_without_llvmlite(
    llvmlite: str, says: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "llvmlite").mkdir()
    (work / "llvmlite" / "__init__.py").write_text(llvmlite)
    monkeypatch.setenv("PYTHONPATH", str(work))
    ended = run_python(["-c", USE], work)
    assert ended.code == 0, ended.err
    backend_name, *warned = ended.out.splitlines()
    assert backend_name == "TorchBackend"
    assert len(warned) == 1
    assert says in warned[0]
