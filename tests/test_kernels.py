"""The kernel language: values compute as numbers do, and calls have as many arguments as kernels take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from nas_mnist.engine.cuda import kernels
from nas_mnist.engine.cuda.launch import CudaDType, Launch, run
from nas_mnist.engine.kernels import parameters
from nas_mnist.engine.kernels.compile import KERNELS, LANES, CallList, DType, compile_kernel, compiled
from nas_mnist.engine.kernels.values import Vector
from nas_mnist.engine.kernels.writer import Writer

FLOAT = DType(torch.float32)


def computed(expression: Callable[[Writer, Vector], Vector], *numbers: float) -> list[float]:
    """An expression of a vector that begins with these numbers."""
    source, target = np.zeros((2, LANES), np.float32)
    source[: len(numbers)] = numbers

    def write(w: Writer) -> None:
        pointers = w.argument(), w.argument()
        w.store(expression(w, w.load(pointers[0])), pointers[1])

    CallList([[compile_kernel(write, FLOAT), source.ctypes.data, target.ctypes.data]]).run()
    return [float(number) for number in target[: len(numbers)]]


def test_vectors_mix_with_pythons_numbers() -> None:
    assert computed(lambda _, x: (x + 1.0) * x - 0.5, 2.0, -3.0) == [5.5, 5.5]
    assert computed(lambda _, x: 1.0 - (2.0 * x + x), 2.0, -3.0) == [-5.0, 10.0]
    assert computed(lambda _, x: 1.0 / x + x / 2.0, 2.0, -4.0) == [1.5, -2.25]
    assert computed(lambda _, x: -x, 2.0, 0.0) == [-2.0, 0.0]


def test_comparisons_are_false_for_nan() -> None:
    numbers = 1.0, 2.0, 3.0, np.nan
    assert computed(lambda w, x: w.select(x < 2.0, 1.0, 0.0), *numbers) == [1, 0, 0, 0]
    assert computed(lambda w, x: w.select(x > 2.0, 1.0, 0.0), *numbers) == [0, 0, 1, 0]
    assert computed(lambda w, x: w.select(x.equals(2.0), 1.0, 0.0), *numbers) == [0, 1, 0, 0]


def test_functions_of_vectors() -> None:
    assert computed(lambda w, x: w.maximum(w.sqrt(x), w.vector(1.5)), 1.0, 4.0) == [1.5, 2.0]
    assert np.isnan(computed(lambda w, x: w.maximum(x, w.vector(1.0)), np.nan)).all()
    assert computed(lambda w, x: w.clip(w.floor(x), -1.0, 2.0), -3.5, 0.5, 1.5, 9.0) == [-1, 0, 1, 2]
    assert computed(lambda w, x: w.to_float(w.minimum(w.iota(3) * 2, 8) + w.to_int(x)), 0.9, 5.2) == [6, 13]


@pytest.mark.parametrize("steps", [(1,), (4, 2, 1), (3, 1)])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 11])
def test_unrolled_loops_cover_every_number_once(count: int, steps: Sequence[int]) -> None:
    counts = np.zeros((16, LANES), np.float32)

    def write(w: Writer) -> None:
        pointer, size = w.argument(), w.argument()
        for first, step in w.unrolled_loops(size, steps):
            for i in range(step):
                at = (first + i) * LANES
                w.store(w.load(pointer, at) + 1.0, pointer, at)

    CallList([[compile_kernel(write, FLOAT), counts.ctypes.data, count]]).run()
    assert (counts[:count] == 1).all()
    assert (counts[count:] == 0).all()


@compiled()
def copy(w: Writer) -> None:
    """Copies a vector."""
    source, target = w.argument(), w.argument()
    w.store(w.load(source), target)


def test_a_kernel_knows_its_name_and_its_arguments() -> None:
    assert KERNELS[copy(FLOAT)] == ("test_kernels.copy", 2)
    assert KERNELS[parameters.gather(FLOAT)] == ("parameters.gather", 4)


def test_a_kernel_is_compiled_once_for_a_dtype_and_its_parameters() -> None:
    assert parameters.scatter_sum(FLOAT, True) == parameters.scatter_sum(DType(torch.float32), True)
    others = parameters.scatter_sum(FLOAT, False), parameters.scatter_sum(FLOAT.as_float64(), True)
    assert len({*others, parameters.scatter_sum(FLOAT, True)}) == 3


def test_a_call_of_no_kernel_or_with_another_number_of_arguments_is_refused() -> None:
    numbers = np.zeros(LANES, np.float32)
    good = [copy(FLOAT), numbers.ctypes.data, numbers.ctypes.data]
    CallList([good]).run()
    for count in (0, 1, 3, 40):
        with pytest.raises(ValueError, match=rf"test_kernels\.copy: {count} arguments \(it takes 2\)"):
            CallList([good, [copy(FLOAT), *[numbers.ctypes.data] * count]])
    with pytest.raises(ValueError, match="not the address of a kernel"):
        CallList([[12345, 1, 2]])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_launch_with_another_number_of_arguments_is_refused(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch adds two arguments to the three of this kernel; on CUDA a driver's handle is checked, too."""
    source, target = torch.arange(32.0), torch.zeros(32)
    pointers = source.data_ptr() + 4 * torch.arange(32)
    arguments = [pointers.data_ptr(), target.data_ptr(), 1]
    dtype = CudaDType(torch.float32, torch.device(device))
    kernel = kernels.gather_pointers(CudaDType(torch.float32))
    if device == "cuda":
        kernel, info = 77, KERNELS[kernel]
        monkeypatch.setitem(KERNELS, kernel, info)
    for wrong in (arguments[:-1], [*arguments, 1]):
        message = rf"kernels\.gather_pointers: {len(wrong) + 2} arguments \(it takes 5\)"
        with pytest.raises(ValueError, match=message):
            Launch(dtype, [kernel, *wrong], items=1, tiles=1)
    launch = Launch(dtype, [kernel, *arguments], items=1, tiles=1)
    if device == "cpu":
        run([launch])
        assert torch.equal(source, target)
