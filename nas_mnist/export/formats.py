"""What each format writes, and how its files are run to test them."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..models.cost import cost_of
from ..training.classifier import Classifier, WithPreprocessing
from ..training.evaluate import predict
from .c_source import c_source, identifier, three_classes
from .compilers import cortex_sizes, host_compiler, run_c
from .folded import FoldedNetwork
from .onnx_file import is_scaled, to_int8_onnx, to_onnx
from .python_source import python_source
from .quantise import quantise

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from .export_data import ExportData

Files = Mapping[str, bytes]  # by name
_BATCH = 500  # images


class Format(NamedTuple):
    """One way to write a network."""

    make: Callable[[Sequence[str]], Files]  # of lines about the network; the same files but for these lines
    run: Callable[[Files, Tensor], Tensor] | None  # class scores of uint8 images; None: `runtime` says why
    runtime: str
    notes: Callable[[Files], list[str]]


def format_of(to: str, classifier: Classifier, stem: str, data: ExportData) -> Format:
    """The format called ``to``; ``stem`` is the name of the files without a suffix."""
    if to == "c":
        return _c(classifier, stem, data)
    if to == "python":
        return _python(classifier, stem)
    if to.startswith("onnx"):
        return _onnx(classifier, stem, data if to == "onnx-int8" else None)
    if to == "torch":
        return _torch(classifier, stem)
    return _safetensors(classifier, stem)


def metadata(classifier: Classifier) -> dict[str, str]:
    """A description of input, output and classes, which an ONNX file contains."""
    architecture = classifier.model.architecture
    shape = ", ".join(map(str, architecture.input_shape))
    return {
        "input": f"float32 (N, {shape}), pixels from 0 to 255, as in {classifier.data_title}",
        "output": f"float32 (N, {architecture.classes}), a score for every class; the largest one wins",
        "classes": json.dumps(classifier.class_names),
        "data": classifier.data,
        "architecture": architecture.to_json(),
    }


def _c(classifier: Classifier, stem: str, data: ExportData) -> Format:
    train = data.training_images()
    network = quantise(FoldedNetwork(classifier), train.images)
    examples = three_classes(train)
    compiler = host_compiler()

    def make(facts: Sequence[str]) -> Files:
        return c_source(network, stem, classifier, examples, facts)

    def run(files: Files, images: Tensor) -> Tensor:
        assert compiler is not None
        return run_c(compiler, files, images)

    name = "no C compiler" if compiler is None else f"the compiled C ({Path(compiler).name})"
    return Format(
        make, run if compiler else None, name, lambda files: [_self_test(stem), cortex_sizes(files)]
    )


def _self_test(stem: str) -> str:
    return (
        f"Self-test: cc -Os -std=c99 -D{identifier(stem).upper()}_TEST {shlex.quote(f'{stem}.c')} && ./a.out"
    )


def _python(classifier: Classifier, stem: str) -> Format:
    params = cost_of(classifier.model.architecture).params
    title = f"A convolutional network with {params:,} parameters for images of {classifier.data_title}."

    def run(files: Files, images: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            pixels, scores = Path(folder) / "images.pt", Path(folder) / "scores.pt"
            torch.save(images, pixels)
            command = [sys.executable, "-I", "-c", _RUN_PYTHON, folder, stem, str(pixels), str(scores)]
            subprocess.run(command, check=True)
            found: Tensor = torch.load(scores)
        return found

    return Format(
        lambda facts: python_source(classifier, stem, title, facts),
        run,
        "the written class",
        lambda _: [f"Use: from {stem} import load, predict"],
    )


_RUN_PYTHON = f"""
import sys
folder, stem, images, scores = sys.argv[1:]
sys.path.insert(0, folder)
import torch
network = __import__(stem).load()
with torch.no_grad():
    torch.save(torch.cat([network(batch) for batch in torch.load(images).split({_BATCH})]), scores)
"""


def _onnx(classifier: Classifier, stem: str, data: ExportData | None) -> Format:
    folded, about = FoldedNetwork(classifier), metadata(classifier)
    if data is None:
        content = to_onnx(folded, about)
        scaled = sum(is_scaled(folded, number) for number in folded.convolutions)
        repeats = f"; {scaled} convolutions that share weights have a scale and a bias each" if scaled else ""
    else:
        content = to_int8_onnx(folded, about, data.training_images().images)
        repeats = "; repeated convolutions are copies"
    try:
        import onnxruntime
    except ImportError:
        run, name = None, "onnxruntime is not installed"
    else:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

        def run(_: Files, images: Tensor) -> Tensor:
            batches = (batch.float().numpy() for batch in images.split(_BATCH))
            return torch.cat([torch.from_numpy(session.run(None, {"pixels": one})[0]) for one in batches])

        name = "onnxruntime"
    notes = [f"Normalisations: folded{repeats}", f"Input: {about['input']}; the preprocessing is inside"]
    return Format(lambda _: {f"{stem}.onnx": content}, run, name, lambda _: notes)


def _torch(classifier: Classifier, stem: str) -> Format:
    content = to_torch(classifier)
    program = torch.export.load(io.BytesIO(content)).module()

    @torch.no_grad()
    def run(_: Files, images: Tensor) -> Tensor:
        return torch.cat([program(batch.float()) for batch in images.split(_BATCH)])

    note = f"Input: {metadata(classifier)['input']}; the preprocessing is inside"
    return Format(lambda _: {f"{stem}.pt2": content}, run, "torch.export", lambda _: [note])


def _safetensors(classifier: Classifier, stem: str) -> Format:
    mean, std = classifier.normalizer.mean, classifier.normalizer.std
    return Format(
        lambda _: {f"{stem}.safetensors": classifier.to_bytes()},
        lambda _, images: predict(classifier.model, images, classifier.normalizer),
        "this package",
        lambda _: [f"Preprocessing: (byte - {mean:.6f}) / {std:.6f}"],
    )


def to_torch(classifier: Classifier) -> bytes:
    """A `torch.export` program with the preprocessing: ``torch.export.load(file).module()``."""
    stream = io.BytesIO()
    torch.export.save(_program(classifier), stream)
    return stream.getvalue()


def _program(classifier: Classifier) -> ExportedProgram:
    """The classifier with its preprocessing, for any number of images."""
    example = torch.zeros(2, *classifier.model.architecture.input_shape)
    images = torch.export.Dim("images")
    return torch.export.export(
        WithPreprocessing(classifier).eval(), (example,), dynamic_shapes=({0: images},)
    )
