"""Exports: C equals its model in Python bit for bit; a class of its own; sizes and accuracies as stated."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from math import prod
from pathlib import Path
from types import ModuleType

import pytest
import torch
from candidates import random_architectures, varied
from conftest import FULL_MNIST, Runner, needs_full_mnist

from nas_mnist import Architecture
from nas_mnist.data.normalize import Normalizer
from nas_mnist.export.c_source import c_source
from nas_mnist.export.compilers import host_compiler, run_c, section_sizes
from nas_mnist.export.folded import FoldedNetwork, equalise
from nas_mnist.export.int8 import Factor
from nas_mnist.export.measure import Measured
from nas_mnist.export.onnx_file import to_onnx
from nas_mnist.export.python_source import python_source
from nas_mnist.export.quantise import quantise
from nas_mnist.lookup import find_weights
from nas_mnist.models import zoo
from nas_mnist.models.cost import cost_of
from nas_mnist.models.network import build
from nas_mnist.models.program import IMAGE, fuse, last_reads, plan_memory
from nas_mnist.training.classifier import Classifier, WithPreprocessing
from nas_mnist.training.exports import read_exports

REPORTS = Path(__file__).parents[1] / "reports"

CONV = {"kind": "conv", "channels": 6}
KINDS = {  # every kind of call, activation and place of a normalisation
    "repeats": [
        CONV | {"activation": "hardswish"},
        {"kind": "separable", "channels": 6, "activation": "hardswish"},
        {"kind": "repeat"},
        {"kind": "pool"},
        {"kind": "repeat"},
    ],
    "residual": [
        CONV | {"norm": "after", "activation": "silu"},
        {"kind": "residual", "body": [{"kind": "separable", "channels": 9}], "activation": "gelu"},
        {"kind": "residual", "body": [CONV | {"channels": 9, "activation": "none"}], "activation": "relu"},
        {"kind": "residual", "body": [{"kind": "depthwise", "activation": "leaky_relu"}]},
    ],
    "strides": [
        CONV | {"kernel": 5, "stride": 2, "padding": "valid", "bias": True, "norm": "none"},
        {"kind": "depthwise", "stride": 2, "norm": "after"},
        CONV | {"kernel": 1, "channels": 12},
        {"kind": "pool", "method": "average", "kernel": 2, "stride": 1},
    ],
}


def trained(architecture: Architecture, seed: int = 0) -> Classifier:
    """A classifier whose normalisations differ from channel to channel, and have seen some images."""
    model = varied(build(architecture, seed)).float()
    with torch.no_grad():
        model(torch.randn(16, *architecture.input_shape))
    return Classifier(model.eval(), Normalizer(33.3, 78.5))


def random_images(architecture: Architecture, count: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, *architecture.input_shape), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def float_scores(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    return WithPreprocessing(classifier)(images)  # type: ignore[no-any-return]


def kind_of(name: str) -> Architecture:
    shape, classes = ([2, 15, 13], 3) if name == "strides" else ([1, 12, 12], 10)
    order = "pool_then_conv" if name == "residual" else "conv_then_pool"
    whole = {"input_shape": shape, "classes": classes, "blocks": KINDS[name], "head": {"order": order}}
    return Architecture.make(whole)


def test_folded_networks_have_the_scores_of_the_network() -> None:
    for seed, architecture in enumerate(random_architectures(60, seed=2)):
        classifier, images = trained(architecture, seed), random_images(architecture, 4)
        wanted = float_scores(classifier, images)
        folded = FoldedNetwork(classifier)
        for _ in range(2):  # the second time with channels of one range
            with torch.no_grad():
                torch.testing.assert_close(folded(images.float()), wanted, rtol=1e-4, atol=1e-4)
            equalise(folded, images.float())


def test_calls_lie_in_the_buffer_without_touching_what_is_read_later() -> None:
    """Every output is in its place from its call to its last reader; nothing else is written there."""
    for architecture in random_architectures(300, seed=3):
        calls, values = fuse(architecture.layers), prod(architecture.input_shape)
        memory, last = plan_memory(calls, values), last_reads(calls)
        live = {IMAGE: (memory.image, memory.image + values)}
        for number, (call, place) in enumerate(zip(calls, memory.places, strict=True)):
            assert live[call.source][0] == place.source
            inputs = {call.source: call, **({} if call.other is None else {call.other: call})}
            if number == len(calls) - 1:
                break
            end = place.target + prod(call.layer.out_shape)
            assert end <= memory.size
            for other, (first, after) in live.items():
                if place.target < after and first < end:  # only in place of an input that dies here
                    assert other in inputs
                    assert last[other] == number
                    assert first == place.target
                    assert call.in_place or other == call.other != call.source
                    if call.scratch and other == call.source:
                        assert place.scratch + call.scratch <= memory.size
                        assert place.scratch >= max(after, end) or place.scratch + call.scratch <= first
            live[number] = (place.target, end)
            live = {read: where for read, where in live.items() if last[read] > number}


@pytest.mark.parametrize("name", KINDS)
def test_compiled_c_equals_the_integers_bit_for_bit(name: str) -> None:
    architecture = kind_of(name)
    classifier, images = trained(architecture), random_images(architecture)
    network = quantise(FoldedNetwork(classifier), images)
    files = c_source(network, "my-net", classifier, images[:3], ["A fact."])
    compiler = host_compiler()
    assert compiler
    scores = run_c(compiler, files, images)  # it compiles only if flash and RAM are as stated
    assert torch.equal(scores.long(), network.scores(images))
    wanted = float_scores(classifier, images)
    error = scores / 2 ** network.calls[-1].exponent - wanted
    assert error.abs().max() < 0.1 * wanted.abs().max()
    dark = quantise(FoldedNetwork(classifier), images // 8)  # brighter ones are cut off at int16
    scores = run_c(compiler, c_source(dark, "dark", classifier, images[:1], []), images)
    assert torch.equal(scores.long(), dark.scores(images))
    cost = cost_of(architecture)
    assert (network.flash, network.memory.size) == (cost.flash, cost.ram)
    assert f"FLASH_BYTES {cost.flash} " in files["my-net.h"].decode()


def test_c_of_a_network_checks_its_own_test_vectors(work: Path) -> None:
    architecture = kind_of("repeats")
    classifier, images = trained(architecture), random_images(architecture)
    network = quantise(FoldedNetwork(classifier), images)
    for file, content in c_source(network, "net", classifier, images[:3], []).items():
        (work / file).write_bytes(content)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Os"]
    subprocess.run([str(host_compiler()), *strict, "-DNET_TEST", "net.c", "-o", "net"], check=True, cwd=work)
    ended = subprocess.run([work / "net"], capture_output=True, text=True, check=True)
    best = network.scores(images[:3]).argmax(1).tolist()
    assert ended.stdout.splitlines() == [*(f"class {one}" for one in best), "0 of 30 scores differ"]


def test_sections_of_an_object_file_are_counted() -> None:
    name, header = b"\x7fELF".ljust(32, b"\0"), bytearray(20)
    header[14:18] = (40).to_bytes(2, "little") + (3).to_bytes(2, "little")
    rows = [(1, 2 | 4, 100), (1, 2 | 1, 20), (8, 2 | 1, 7)]
    table = b"".join(
        b"".join(value.to_bytes(4, "little") for value in (0, kind, flags, 0, 0, size, 0, 0, 0, 0))
        for kind, flags, size in rows
    )
    file = name + (52).to_bytes(4, "little") + bytes(header[4:])
    assert section_sizes(file[:52].ljust(52, b"\0") + table) == (100, 20, 7)


@pytest.mark.parametrize("real", [1.0, -0.37, 3e-5, 123.4, 0.9999999, 1e-20, 0.0])
def test_factors_are_near_the_real_number(real: float) -> None:
    factor = Factor.of(real)
    assert -32768 <= factor.multiplier <= 32767
    assert 1 <= factor.shift <= 62
    assert factor.multiplier / 2**factor.shift == pytest.approx(real, rel=4e-5, abs=1e-13)


@pytest.mark.parametrize("name", KINDS)
def test_a_class_of_its_own_has_equal_scores(name: str, work: Path) -> None:
    architecture = kind_of(name)
    classifier, images = trained(architecture), random_images(architecture)
    files = python_source(classifier, "net", "A title.", ["A fact."])
    for file, content in files.items():
        (work / file).write_bytes(content)
    text = files["net.py"].decode()
    assert "nas_mnist" not in text
    module = ModuleType("net")
    exec(text, vars(module))  # as in a notebook: without a file's name
    with torch.no_grad():
        assert torch.equal(module.load()(images), float_scores(classifier, images))


def test_onnx_has_no_normalisation_and_shares_the_weights_of_repeats() -> None:
    import onnx

    model = onnx.load_from_string(to_onnx(FoldedNetwork(trained(kind_of("repeats"))), {}))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    pointwise = [one for one in model.graph.initializer if list(one.dims) == [6, 6, 1, 1]]
    assert len(pointwise) == 1


@pytest.mark.usefixtures("work")
def test_int8_onnx_keeps_the_accuracy_of_the_smallest_network(invoke: Runner) -> None:
    ended = invoke("export", "mnist-500", "--to", "onnx", "--int8", "--dataset", "mnist-5k")
    assert (ended.code, ended.err) == (0, "")
    said = re.search(r"Test accuracy: (.*)% of 833 images by onnxruntime; in float32 (.*)%", ended.out)
    assert said
    assert float(said[1]) > float(said[2]) - 0.5 > 96  # with 8 bits before the activations: 36
    assert "Warning" not in ended.out


def test_export_refuses_what_it_cannot_do(work: Path, invoke: Runner) -> None:
    for words, says in (
        (["--to", "c", "--int8"], "--int8: 'True' counts only with --to onnx"),
        (["--to", "python", "--output", "net.txt"], "use a name that ends in .py"),
        (["--to", "python", "--output", "my-net.py"], "use a name of letters, digits and _"),
        (["--to", "python", "--output", "random.py"], "hides the module 'random'"),
        (["--to", "tflite"], "use safetensors, torch, onnx, python, c"),
        ([], "--to: missing (use safetensors, torch, onnx, python, c)"),
        (["--to", "c", "--data-dir", "nowhere"], "is missing"),
    ):
        ended = invoke("export", "mnist-500", *words)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended
        assert says in ended.err
    (work / "mnist-500-int8.onnx").touch()  # float32 and int8 have names of their own
    assert "mnist-500-int8.onnx exists" in invoke("export", "mnist-500", "--to", "onnx", "--int8").err
    (work / "mnist_500.h").touch()
    assert "mnist_500.h exists" in invoke("export", "mnist-500", "--to", "c").err
    assert not (work / "mnist_500.c").exists()


def test_the_report_of_a_folder_shows_what_was_exported_from_it(work: Path, invoke: Runner) -> None:
    folder = work / "results"
    folder.mkdir()
    (folder / "result.json").write_bytes((REPORTS / "mnist-500" / "result.json").read_bytes())
    (folder / "weights-seed-0.safetensors").write_bytes(find_weights("mnist-500")[1].read_bytes())
    for file in ("first.safetensors", "second.safetensors"):
        ended = invoke("export", "results", "--to", "safetensors", "--output", file, "--dataset", "mnist-5k")
        assert ended.code == 0, ended
    (record,) = read_exports(folder)
    assert (record["file"], record["test_images"]) == ("second.safetensors", 833)
    assert record["test_accuracy"] == record["float32_accuracy"] > 0.97
    assert f"Test accuracy: {record['test_accuracy']:.2%} of 833 images by {record['runtime']}" in ended.out
    assert "Weights: results/weights-seed-0.safetensors\n" in ended.out
    assert "Warning" not in ended.out
    assert invoke("report", "results").code == 0
    page = (folder / "report.html").read_text()
    assert "Exported files" in page
    assert "<td>second.safetensors</td>" in page
    (folder / "exports.json").write_text('[{"format": "c"}]')
    ended = invoke("export", "results", "--to", "safetensors", "--output", "third.safetensors")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert not (work / "third.safetensors").exists()


def test_a_result_of_another_network_or_of_other_data_is_not_taken(work: Path, invoke: Runner) -> None:
    result = json.loads((REPORTS / "mnist-500" / "result.json").read_text())
    result["data"] |= {"name": "mnist-5k", "fingerprint": "0" * 16}
    (work / "result.json").write_text(json.dumps(result))
    (work / "weights-seed-0.safetensors").write_bytes(find_weights("mnist-500")[1].read_bytes())
    (work / "mine.safetensors").write_bytes(find_weights("mnist-1k")[1].read_bytes())
    ended = invoke("export", "weights-seed-0.safetensors", "--to", "python")
    assert (ended.code, ended.err) == (0, "")
    assert "Test accuracy: not measured (mnist-5k has changed since the training)" in ended.out
    ended = invoke(
        "export", "mine.safetensors", "--to", "python", *("--output", "my.py", "--dataset", "mnist-5k")
    )
    assert (ended.code, ended.err) == (0, "")
    assert "of 833 images by the written class" in ended.out
    assert not (work / "exports.json").exists()


def test_text_of_a_file_stays_text_in_source() -> None:
    classifier = trained(kind_of("repeats"))
    odd = ["/*", "*/", "//", "\\N", '"""', "a\nb", "'", "h", "i", "j"]
    hostile = replace(classifier, data='x"""\nraise SystemExit(1)\n""" */ int', own_names=tuple(odd))
    text = python_source(hostile, "net", f"Of {hostile.data}.", [hostile.data])["net.py"].decode()
    module = ModuleType("net")
    exec(text, vars(module))
    assert list(vars(module)["CLASSES"]) == odd
    images = random_images(kind_of("repeats"), 2)
    network = quantise(FoldedNetwork(hostile), images)
    compiler = host_compiler()
    assert compiler
    assert len(run_c(compiler, c_source(network, "net", hostile, images, [hostile.data]), images)) == 2


def test_a_rounding_that_costs_a_point_is_a_warning() -> None:
    for lost, warns in ((0.009, False), (0.011, True), (-0.1, False)):
        line = Measured("onnxruntime", 100, 0.9, 0.9 + lost).warning()
        assert line == ("Warning: rounding to int8 costs 1.1 points of accuracy" if warns else "")
    assert not Measured("gcc", 0).warning()  # not measured


@pytest.mark.slow
@needs_full_mnist
def test_exports_of_the_zoo_print_the_accuracy_that_they_have(work: Path, invoke: Runner) -> None:
    there = ["--data-dir", FULL_MNIST]
    ended = invoke("export", "mnist-500", "--to", "c", *there)
    assert "Test accuracy: 97.24% of 10,000 images by the compiled C" in ended.out
    assert "in float32 97.25%" in ended.out
    assert "97.24% of 10,000" in (work / "mnist_500.h").read_text()
    ended = invoke("export", "mnist-500", "--to", "python", *there)
    assert "Test accuracy: 97.25% of 10,000 images by the written class" in ended.out
    script = [sys.executable, "-I", "mnist_500.py", FULL_MNIST]
    printed = subprocess.run(script, capture_output=True, text=True, check=True, cwd=work).stdout
    assert printed == "498 parameters\n97.25% of 10,000 test images\n"


def test_the_zoo_takes_the_flash_and_ram_that_were_worked_out() -> None:
    for name, flash, ram in (
        ("mnist-500", 1_850, 3_920),
        ("mnist-2k", 4_571, 12_550),
        ("mnist-16k", 18_202, 11_172),
    ):
        cost = cost_of(zoo.load(name).architecture)
        assert (cost.flash, cost.ram) == (flash, ram)
