"""The layer table, and the imports of light commands and rooms."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Runner, run_module, run_python

from nas_mnist import Architecture
from nas_mnist.models import zoo
from nas_mnist.models.cost import cost_of
from nas_mnist.recipes.recipe import load_recipe
from nas_mnist.report.layer_table import layer_table, table_rows

# The rows and totals of the published result, in its order.
PUBLISHED = """
            Conv2d-1           [-1, 16, 28, 28]             160
       BatchNorm2d-2           [-1, 16, 28, 28]              32
         Dropout2d-3           [-1, 16, 28, 28]               0
            Conv2d-4           [-1, 32, 28, 28]           4,640
       BatchNorm2d-5           [-1, 32, 28, 28]              64
         Dropout2d-6           [-1, 32, 28, 28]               0
         MaxPool2d-7           [-1, 32, 14, 14]               0
            Conv2d-8            [-1, 8, 14, 14]             264
            Conv2d-9           [-1, 16, 14, 14]           1,168
      BatchNorm2d-10           [-1, 16, 14, 14]              32
        Dropout2d-11           [-1, 16, 14, 14]               0
           Conv2d-12           [-1, 32, 14, 14]           4,640
      BatchNorm2d-13           [-1, 32, 14, 14]              64
        Dropout2d-14           [-1, 32, 14, 14]               0
        MaxPool2d-15             [-1, 32, 7, 7]               0
           Conv2d-16             [-1, 16, 7, 7]             528
           Conv2d-17             [-1, 32, 5, 5]           4,640
        Dropout2d-18             [-1, 32, 5, 5]               0
           Conv2d-19             [-1, 10, 3, 3]           2,890
        AvgPool2d-20             [-1, 10, 1, 1]               0
"""
TOTALS = """
Total params: 19,122
Trainable params: 19,122
Non-trainable params: 0
Input size (MB): 0.00
Forward/backward pass size (MB): 1.17
Params size (MB): 0.07
Estimated Total Size (MB): 1.24
"""
HEAVY = ("torch", "optuna", "llvmlite", "torchvision", "pandas", "scipy")


def loaded(script: str, cwd: Path) -> tuple[list[str], str]:
    """The heavy packages that a fresh interpreter has imported after ``script``, and the script's output."""
    script += f"\nimport sys\nprint('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    ended = run_python(["-c", script], cwd)
    assert ended.code == 0, ended.err
    out, _, names = ended.out.rpartition("LOADED")
    return names.split(), out


def test_reference_prints_the_published_table(work: Path) -> None:
    ended = run_module("describe", "reference", cwd=work)
    assert (ended.code, ended.err) == (0, "")
    rows = [line for line in ended.out.splitlines() if re.search(r"-\d+ +\[", line)]
    assert rows == PUBLISHED.strip("\n").splitlines()
    assert sum(int(row.split()[-1].replace(",", "")) for row in rows) == 19_122
    printed = {" ".join(line.split()) for line in ended.out.splitlines()}
    assert printed >= set(TOTALS.strip().splitlines())
    assert list(work.iterdir()) == []


def test_activations_and_additions_have_no_row_and_everything_else_has() -> None:
    body = [{"kind": "conv", "channels": 2, "dropout": 0.1}]
    blocks = [{"kind": "residual", "body": body, "activation": "silu"}, {"kind": "pool", "method": "average"}]
    architecture = Architecture.make({"blocks": blocks})
    assert table_rows(architecture) == [
        ("Conv2d-1", "[-1, 2, 28, 28]", 18),
        ("BatchNorm2d-2", "[-1, 2, 28, 28]", 4),
        ("Dropout2d-3", "[-1, 2, 28, 28]", 0),
        ("Conv2d-4", "[-1, 2, 28, 28]", 2),
        ("AvgPool2d-5", "[-1, 2, 14, 14]", 0),
        ("Conv2d-6", "[-1, 10, 14, 14]", 30),
        ("AvgPool2d-7", "[-1, 10, 1, 1]", 0),
    ]


def test_rows_of_a_wide_network_stay_in_their_columns() -> None:
    blocks = [{"kind": "conv", "channels": channels, "kernel": 7} for channels in (1024, 1000)]
    table = layer_table(Architecture.make({"input_shape": [1, 256, 256], "blocks": blocks}))
    rows = [line for line in table.splitlines() if re.search(r"-\d+ +\[", line)]
    assert {len(row) for row in rows} == {63}
    assert rows[2].split()[-1] == "50,176,000"


def test_a_file_prints_what_the_zoo_prints(invoke: Runner, work: Path, reference: Architecture) -> None:
    (work / "mine.json").write_text(reference.to_json())
    (work / "printed.json").write_text(invoke("describe", "reference", "--json").out)
    printed = invoke("describe", "reference").out
    assert invoke("describe", "mine.json").out == printed
    assert invoke("describe", "printed.json").out == printed


def test_weights_that_are_used_again_are_explained(invoke: Runner) -> None:
    said = "shares the weights of an earlier one"
    assert said in invoke("describe", "mnist-1k").out
    assert said not in invoke("describe", "reference").out


def test_json_has_stable_fields(invoke: Runner, reference: Architecture) -> None:
    ended = invoke("describe", "reference", "--json")
    assert ended.code == 0
    printed = json.loads(ended.out)
    cost = cost_of(reference)
    assert set(printed) == {"key", "cost", "architecture", "layers"}
    assert printed["key"] == reference.key
    assert printed["cost"] == {
        "params": 19_122,
        "macs": cost.macs,
        "peak_memory": cost.peak_memory,
        "receptive_field": 32,
        "flash": 20_618,
        "ram": 37_632,
    }
    assert Architecture.make(printed["architecture"]) == reference
    assert sum(layer["params"] for layer in printed["layers"]) == 19_122
    assert {"kind", "path", "inputs", "in_shape", "out_shape", "params", "macs"} <= set(printed["layers"][0])


LIGHT = {
    "describe": """
from nas_mnist.describe import describe
describe('reference')
describe('reference', as_json=True)
""",
    "counting and drawing": """
import random
from nas_mnist import Architecture, Budget, SearchSpace
from nas_mnist.models.cost import cost_of
from nas_mnist.space.sampling import RandomSampler
space = SearchSpace.load()
cost = cost_of(space.draw(RandomSampler(random.Random(0)), Budget(20_000)))
assert space.survey(Budget(20_000), 50, random.Random(0)).tried == 50
""",
    "models, space and recipes": """
import importlib, pkgutil
for room in ("models", "space", "recipes"):
    package = importlib.import_module(f"nas_mnist.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"nas_mnist.{room}."):
        if module.name != "nas_mnist.models.network":
            importlib.import_module(module.name)
""",
}


@pytest.mark.parametrize("what", LIGHT)
def test_nothing_heavy_is_imported(what: str, work: Path) -> None:
    assert loaded(LIGHT[what], work)[0] == []


def test_the_check_of_imports_can_fail(work: Path) -> None:
    assert "torch" in loaded("import nas_mnist.models.network", work)[0]


@pytest.mark.parametrize("name", ["describe", "search", "reproduce"])
def test_help_imports_nothing_heavy_and_names_the_options(name: str, work: Path) -> None:
    script = f"""
import sys
from nas_mnist.core.cli import run
from nas_mnist.{"search.__main__" if name == "search" else name} import {name}
sys.argv = ["nas_mnist.{name}", "--help"]
try:
    run({name})
except SystemExit as ended:
    assert not ended.code
"""
    names, out = loaded(script, work)
    assert names == []
    assert "--json" in out


def test_every_network_of_the_zoo_fits_the_exercise_and_names_its_recipe() -> None:
    for entry in map(zoo.load, zoo.names()):
        assert entry.about
        assert cost_of(entry.architecture).params < 20_000
        assert load_recipe(entry.recipe).epochs <= 20
        assert all(layer.kind != "Linear" for layer in entry.architecture.layers)
