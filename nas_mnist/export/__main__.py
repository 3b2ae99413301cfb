"""``python -m nas_mnist.export NETWORK --to FORMAT``: a trained network as a file for other programs."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path
from typing import Annotated

from ..core.cli import (
    OUTPUT,
    WHAT,
    DataDir,
    Network,
    Storage,
    Study,
    as_path,
    check_data_dir,
    check_in_use,
    check_lookup,
    option,
    run,
)
from ..core.defaults import DEFAULT_STORAGE, DEFAULT_STUDY
from ..core.errors import InputError, choices
from ..core.fileio import check_new, write_bytes

FORMATS = {  # by the word behind --to: the suffixes of the files that are written
    "safetensors": (".safetensors",),
    "torch": (".pt2",),
    "onnx": (".onnx",),
    "python": (".py", ".safetensors"),
    "c": (".c", ".h"),
}


def export(
    network: Network,
    to: Annotated[str, option(WHAT, "FORMAT", "Write python, c, onnx, torch or safetensors.")] = "",
    int8: Annotated[bool, option(WHAT, "", "With onnx: quantise to int8 by onnxruntime.", "--int8")] = False,
    output: Annotated[
        str | None, option(OUTPUT, "FILE", "Write this new file (NAME.FORMAT, NAME-int8.onnx).", "--output")
    ] = None,
    study: Study = DEFAULT_STUDY,
    storage: Storage = DEFAULT_STORAGE,
    dataset: Annotated[
        str | None, option(WHAT, "NAME", "Calibrate and test on this data set (the network's).")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Write a trained network to new files, and test these files on all test images.

    python, onnx, torch and c files contain the preprocessing: pixels from 0 to 255 in, class scores out.
    Of a network from a folder of results the accuracy is kept there, and its report shows it.
    """
    check_lookup(network, study, storage)
    if not to:
        raise InputError(f"--to: missing (use {', '.join(FORMATS)})")
    if to not in FORMATS:
        raise InputError(f"--to: {to!r} {choices(to, FORMATS)}")
    check_in_use("--int8", int8, False, to == "onnx", "with --to onnx")
    if to == "onnx":
        _need("onnx", "onnxscript", *(["onnxruntime"] if int8 else []))
    target = as_path(output)
    if target is not None and to in ("python", "c") and target.suffix != FORMATS[to][0]:
        raise InputError(f"--output: {str(target)!r} (use a name that ends in {FORMATS[to][0]})")

    from ..lookup import find_weights
    from ..training.classifier import Classifier
    from ..training.exports import add_export, read_exports
    from ..training.run_store import result_of
    from .export_data import ExportData
    from .formats import format_of
    from .measure import measure, size_lines

    name, weights = find_weights(network, study, storage)
    classifier = Classifier.load(weights)
    result = result_of(weights, classifier.model.architecture)
    usual = str(result["data"]["name"]) if result else classifier.data
    check_data_dir(data_dir, usual if dataset is None else dataset)
    if target is None:
        module = re.sub(r"\W", "_", name if name[0].isalpha() else f"network_{name}", flags=re.ASCII)
        suffix = "-int8" if int8 else ""
        target = Path((module if to in ("python", "c") else name) + suffix + FORMATS[to][0])
    if to == "python":
        _check_module(target)
    targets = [target, *(target.with_suffix(suffix) for suffix in FORMATS[to][1:])]
    for one in targets:
        check_new(one, "--output")
    if result:
        read_exports(weights.parent)  # refuses a damaged file before anything is written
    fingerprint = result["data"].get("fingerprint") if result else None
    data = ExportData(classifier, usual, dataset, as_path(data_dir), fingerprint)
    made = format_of("onnx-int8" if int8 else to, classifier, target.name.removesuffix(target.suffix), data)
    sizes = size_lines(classifier)
    measured = measure(data, made)
    accuracy = measured.line(is_rounded=int8 or to == "c")
    files = made.make([accuracy, *sizes])
    for one, content in zip(targets, files.values(), strict=True):
        write_bytes(one, content)
        print(f"Written: {one}, {len(content):,} bytes")
    print(f"Weights: {weights}", accuracy, *made.notes(files), *sizes, sep="\n")
    if warning := measured.warning():
        print(warning)
    if measured.images and result:
        add_export(weights.parent, measured.record(f"{to} int8" if int8 else to, target.name, weights.name))


def _check_module(path: Path) -> None:
    """Raise `InputError` unless a file can be imported by its name and hides no module that torch needs."""
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise InputError(f"--output: {str(path)!r} (use a name of letters, digits and _, as modules have)")
    if path.stem in (*sys.stdlib_module_names, "torch", "numpy"):
        raise InputError(f"--output: {str(path)!r} hides the module {path.stem!r} (use another name)")


def _need(*packages: str) -> None:
    """Raise `InputError` unless the packages can be imported."""
    import importlib

    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(f"--to: onnx needs {package} (pip install 'nas-mnist[onnx]')") from None


if __name__ == "__main__":
    run(export)
