"""The backend for CUDA computes the same as torch's modules, and its kernels become PTX.

The processor runs the kernels here; a GPU does, too, if there is one.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import itertools
import random
import re
import weakref
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from candidates import random_architectures, varied
from torch import Tensor, nn
from torch.nn import functional as F

from nas_mnist.core.errors import InputError
from nas_mnist.data.dataset import Images
from nas_mnist.data.normalize import Normalizer
from nas_mnist.engine.backend import create_backend
from nas_mnist.engine.batches import Batches, warp
from nas_mnist.engine.cuda import kernels, writer
from nas_mnist.engine.cuda import launch as launcher
from nas_mnist.engine.cuda.backbone import Backbone
from nas_mnist.engine.cuda.backend import CudaBackend
from nas_mnist.engine.cuda.launch import CudaDType, Launch
from nas_mnist.engine.cuda.step import FusedSGD
from nas_mnist.engine.flat_parameters import FlatParameters
from nas_mnist.engine.kernels import convolution, parameters, pointwise
from nas_mnist.engine.kernels.compile import KERNELS, kernel_name
from nas_mnist.engine.kernels.epilogue import AVERAGE_POOL, Epilogue
from nas_mnist.engine.sgd import SGD, StepTables
from nas_mnist.engine.stages import UnsupportedLayerError
from nas_mnist.engine.torch_backend import TorchBackend, TorchTrainer
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.network import Network, build, stack_models
from nas_mnist.models.zoo import load
from nas_mnist.recipes.recipe import Augmentation, Recipe
from nas_mnist.training.augment import draw_affine_maps
from nas_mnist.training.loop import device_failure

CPU = torch.device("cpu")
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
on_devices = pytest.mark.parametrize("device", DEVICES)


def network(architecture: Architecture, copies: int = 1) -> Network:
    """In float64 and in training mode, without dropout, with normalisations that differ by channel."""
    return varied(stack_models([build(architecture, seed) for seed in range(copies)]))


def by_torch(model: Network, images: Tensor) -> Tensor:
    """Class scores (copies * N, classes) by torch's modules, which take a network's channels side by side."""
    beside = images.unflatten(0, (model.copies, -1)).transpose(0, 1).flatten(1, 2)
    return model(beside).unflatten(1, (model.copies, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return]


def backward(backbone: Backbone, gradient: Tensor) -> None:
    """From the gradient of the scores (models * N, classes) to those of all parameters."""
    backbone.workspace.put(gradient[..., None, None], backbone.score_gradient.values)
    backbone.run_backward()


def check(model: Network, count: int, device: str) -> None:
    """Scores, gradients and running statistics of two training passes, and scores in evaluation."""
    theirs = copy.deepcopy(model)
    flat, backend = FlatParameters(model.to(device)), CudaBackend(model, torch.device(device))
    backbone = backend.backbone(count, flat.gradients)
    for _ in range(2):
        images = torch.randn(model.copies * count, *model.architecture.input_shape, dtype=torch.float64)
        scores, expected = backbone.forward(images.to(device)), by_torch(theirs, images)
        torch.testing.assert_close(scores.cpu(), expected)
        weights = torch.randn_like(expected)
        flat.gradient.fill_(torch.nan)
        theirs.zero_grad()
        backward(backbone, weights.to(device))
        (expected * weights).sum().backward()
        for (name, other), mine in zip(theirs.named_parameters(), model.parameters(), strict=True):
            assert other.grad is not None
            scale = max(1.0, other.grad.abs().max().item())
            found = {name: flat.gradients[mine].cpu()}
            torch.testing.assert_close(found, {name: other.grad}, rtol=1e-6, atol=1e-7 * scale)
    buffers = {name: one.cpu() for name, one in model.named_buffers()}
    torch.testing.assert_close(buffers, dict(theirs.named_buffers()))
    theirs.eval()
    one_each = images[:count]
    with torch.inference_mode():
        expected = by_torch(theirs, one_each.repeat(model.copies, 1, 1, 1)).unflatten(0, (model.copies, -1))
        torch.testing.assert_close(backend.scores(one_each.to(device)).cpu(), expected)


@pytest.mark.slow
@on_devices
def test_random_networks_agree_with_torch(device: str) -> None:
    rng, checked = random.Random(0), 0
    for architecture in random_architectures(80, seed=9):
        try:
            model = network(architecture, rng.choice((1, 1, 2)))
            check(model, rng.choice((2, 31, 32, 33)), device)
        except UnsupportedLayerError:
            continue
        checked += 1
    assert checked >= 10


@on_devices
def test_several_networks_maps_with_several_readers_and_repeated_weights(device: str) -> None:
    check(network(load("reference").architecture, 2), 35, device)
    blocks: list[dict[str, Any]] = [
        {"kind": "conv", "channels": 6, "norm": "after", "bias": True},
        {"kind": "residual", "body": [{"kind": "conv", "channels": 6, "bias": True}]},
        {"kind": "repeat"},
        {"kind": "repeat"},
        {"kind": "pool"},
        {"kind": "residual", "body": [{"kind": "separable", "channels": 9}]},
    ]
    for head in ({"kernel": 3, "padding": "same"}, {"order": "pool_then_conv", "bias": False}):
        fields = {"blocks": blocks, "head": head, "input_shape": [2, 11, 10], "classes": 4}
        check(network(Architecture.make(fields), 2), 5, device)


def test_dropout_keeps_whole_maps_and_lets_them_grow() -> None:
    model = build(load("reference").architecture, 0).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.25
    backend = CudaBackend(model, CPU)
    backbone = backend.backbone(40, FlatParameters(model).gradients)
    images = torch.randn(40, 1, 28, 28, dtype=torch.float64)
    scores = backbone.forward(images)
    kept = [one.dropout_factors for one in backbone.dropouts]  # (tiles, C, 32), in the layers' order
    assert len(kept) == 5
    for one in kept:
        assert set(one.unique().tolist()) == {0.0, 1 / 0.75}
    masks = iter([one.transpose(1, 2).flatten(0, 1)[:40, :, None, None] for one in kept])
    with mock.patch.object(nn.Dropout2d, "forward", lambda _, maps: maps * next(masks)):
        torch.testing.assert_close(scores, copy.deepcopy(model)(images))
    before = kept[0].clone()
    backbone.forward(images)
    assert not torch.equal(kept[0], before)
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(backend.scores(images)[0], model(images))


def test_a_pass_that_is_not_needed_any_more_gives_its_memory_back() -> None:
    model = build(load("mnist-500").architecture, 0)
    backend = CudaBackend(model, CPU)
    gc.disable()
    try:
        backbone = weakref.ref(backend.backbone(3, FlatParameters(model).gradients))
        del backend
        assert backbone() is None
    finally:
        gc.enable()


def test_weights_that_are_elsewhere_are_found() -> None:
    model = build(load("mnist-500").architecture, 0).eval()
    backend, images = CudaBackend(model, CPU), torch.randn(3, 1, 28, 28)
    with torch.inference_mode():
        first = backend.scores(images)
        weight = next(model.parameters())
        weight.data = weight.data * 2
        second = backend.scores(images)
        torch.testing.assert_close(second[0], model(images))
    assert not torch.allclose(first, second)


def test_more_images_than_a_launch_can_take_are_refused() -> None:
    model = build(load("mnist-500").architecture, 0)
    with (
        mock.patch("nas_mnist.engine.cuda.workspace._MAX_BLOCKS", 3),
        pytest.raises(InputError, match=r"batch_size: 200 images of this size \(use fewer\)"),
    ):
        CudaBackend(model, CPU).backbone(200, FlatParameters(model).gradients)


def test_wide_networks_are_evaluated_in_smaller_batches() -> None:
    wide = Architecture.make({"blocks": [{"kind": "conv", "channels": 1024}] * 3})
    # The image, and maps before and behind their normalisation.
    assert CudaBackend(build(wide, 0), CPU).max_batch == int(2e9 / (4 * 784 * 2 * (1 + 3 * 1024)))
    assert CudaBackend(build(load("mnist-500").architecture, 0), CPU).max_batch == 2_000


def test_layers_without_kernels_are_left_to_torch() -> None:
    for fields in ({"blocks": [{"kind": "conv", "channels": 3, "activation": "silu"}]},
                   {"blocks": [{"kind": "conv", "channels": 3}], "head": {"norm": True}}):  # fmt: skip
        model = build(Architecture.make(fields), 0)
        with pytest.raises(UnsupportedLayerError):
            CudaBackend(model, CPU)
        with mock.patch("nas_mnist.engine.cuda.launch.runs_on", return_value=True):
            backend = create_backend(model, torch.device("cuda"), "auto")
        assert isinstance(backend, TorchBackend)
        assert backend.recordable
        assert not create_backend(model, torch.device("cuda"), "torch").recordable


@on_devices
@pytest.mark.parametrize("many", [False, True], ids=["by a kernel", "more bytes than 32 bits count"])
def test_a_steps_images_loss_and_gradient(many: bool, device: str) -> None:
    """Two networks side by side, 35 images each: a full batch tile and one that is not."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (90, 2, 11, 9), dtype=torch.uint8)
    data = Images(images.to(device), torch.randint(0, 4, (90,)).to(device))
    fields = {"blocks": [{"kind": "conv", "channels": 3}], "input_shape": [2, 11, 9], "classes": 4}
    model = stack_models([build(Architecture.make(fields), seed) for seed in range(2)]).train()
    theirs, normalize = copy.deepcopy(model), Normalizer.of(images)
    flat, backend = FlatParameters(model.to(device)), CudaBackend(model, torch.device(device))
    how = Augmentation(rotate=20, translate=0.2, scale=0.2)
    recipe = Recipe(batch_size=35, label_smoothing=0.1, augmentation=how)
    with mock.patch("nas_mnist.engine.cuda.backend.fits_32_bits", return_value=not many):
        trainer = backend.trainer(flat, data, normalize, recipe)
    assert isinstance(trainer, TorchTrainer) == many
    picked, maps = torch.randperm(90)[:70], draw_affine_maps(how, 70, torch.Generator().manual_seed(1))
    flat.gradient.fill_(torch.nan)
    batches = Batches(picked[None].to(device), trainer.prepare_maps(maps.to(device))[None])
    losses = trainer.losses(batches, torch.zeros(1, dtype=torch.long, device=device)).cpu()
    scores = by_torch(theirs, normalize(warp(images[picked].float(), maps)))
    labels = data.labels.cpu()[picked]
    each = F.cross_entropy(scores, labels, label_smoothing=0.1, reduction="none")
    expected = each.view(2, -1).mean(1)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=0)
    expected.sum().backward()
    found = [flat.gradients[one].cpu() for one in model.parameters()]
    torch.testing.assert_close(found, [one.grad for one in theirs.parameters()], rtol=1e-3, atol=1e-4)


@on_devices
def test_fused_sgd_takes_the_steps_of_sgd_and_averages(device: str) -> None:
    where = torch.device(device)
    flats = [FlatParameters(build(load("mnist-500").architecture, 0).to(where)) for _ in range(2)]
    lrs, alphas = torch.tensor([0.1, 0.05, 0.02]).to(where), torch.tensor([0.9, 0.5, 0.1]).to(where)
    tables = StepTables(torch.zeros(1, dtype=torch.long, device=where), lrs, alphas)
    recipe = Recipe(momentum=0.8, nesterov=True, weight_decay=0.3)
    emas = [flat.all.clone() for flat in flats]
    fused = FusedSGD(CudaDType(torch.float32, where), flats[0], recipe, tables, emas[0])
    plain = SGD(flats[1], recipe, tables, emas[1])
    for step in range(3):
        gradient = torch.randn(len(flats[0].gradient), generator=torch.Generator().manual_seed(step))
        for flat, optimizer in zip(flats, (fused, plain), strict=True):
            flat.gradient.copy_(gradient)
            optimizer.step()
        tables.step_index.add_(1)
        torch.testing.assert_close(flats[0].all, flats[1].all)
        torch.testing.assert_close(emas[0], emas[1])


@pytest.fixture
def no_kernel_is_known() -> Any:
    """Kernels that were compiled before are compiled again, and those of a test are forgotten."""
    functions = [vars(module).values() for module in (convolution, kernels, parameters, pointwise)]
    cached = [one for one in itertools.chain(*functions) if hasattr(one, "cache_clear")]
    for one in cached:
        one.cache_clear()
    yield
    for one in cached:
        one.cache_clear()


@pytest.mark.parametrize("capability", [(7, 0), (12, 0)])
@pytest.mark.usefixtures("no_kernel_is_known")
def test_every_kernel_becomes_ptx(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    codes: dict[str, list[str]] = {}
    handles = itertools.count(1)

    def compile_only(dtype: CudaDType, write: Any, lanes: int) -> tuple[int, int]:
        code, arguments = writer.ptx(write, dtype.number, lanes, capability)
        codes.setdefault(kernel_name(write), []).append(code)
        return next(handles), arguments

    monkeypatch.setattr(CudaDType, "compile", compile_only)
    strided = [
        {"kind": kind, "channels": 9, "kernel": size, "stride": 2, "activation": "leaky_relu"}
        for kind in ("conv", "separable")
        for size in (5, 7)
    ]
    others = Architecture.make({"blocks": strided})
    for architecture in (load("reference").architecture, load("mnist-1k").architecture, others):
        model = build(architecture, 0)
        gradients, backend = FlatParameters(model).gradients, CudaBackend(model, CPU)
        for into in (gradients, None):
            Backbone(backend.plan, 3, 1, backend.dtype, into)
    dtype = CudaDType(torch.float32)
    for kernel in (kernels.augmented_images, kernels.cross_entropy, kernels.ema_update):
        kernel(dtype)
    kernels.sgd_step(dtype, True)
    pointwise.forward(dtype, Epilogue(norm=True, activation="LeakyReLU", pool=AVERAGE_POOL), True)
    assert set(codes) == {
        *("forward", "backward", "batchnorm_backward", "batch_stats", "channel_sums"),
        *("global_average_pool", "global_average_pool_backward", "batchnorm_affine", "batchnorm_gradients"),
        *("gather_pointers", "dense", "depthwise", "dense_weight_gradient", "depthwise_weight_gradient"),
        *("reduce_blocks", "augmented_images", "cross_entropy", "sgd_step", "ema_update"),
    }
    major, minor = min(capability, (9, 0))
    assert len(codes["dense"]) > 8
    for name, code in ((name, code) for name, several in codes.items() for code in several):
        assert f".target sm_{major}{minor}" in code
        assert f".visible .entry {name}(" in code
        assert ".local" not in code  # everything is in registers
        assert set(re.findall(r"\b(?:ld|st)\.(\w+)", code)) <= {"param", "global"}  # where it is, is known
        reads_and_writes = ("batchnorm_affine", "batchnorm_gradients", "reduce_blocks")
        assert ("bar.warp.sync" in code) == (name in reads_and_writes)


def test_what_a_launch_asks_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = CudaDType(torch.float32, torch.device("cuda"))
    monkeypatch.setitem(KERNELS, 77, ("test", 4))
    launch = Launch(dtype, [77, 5, -6], items=9, tiles=8, chunks=3, models=2)
    assert launch.shape == (77, 3, 24, 1, 32, 4, 1, 0)  # three blocks of four warps for nine items, by part
    first = ctypes.cast(launch.pointers[0], ctypes.POINTER(ctypes.c_int64))
    assert [first[at] for at in range(5)] == [3, 4, 5, -6, 0]  # rows' parts, a network's groups, arguments
    library = mock.Mock()
    library.cuLaunchKernel.side_effect = [0, 700]
    library.cuGetErrorString.side_effect = lambda _, text: setattr(text._obj, "value", b"misaligned address")
    driver = launcher._Driver.__new__(launcher._Driver)
    driver.library = library
    monkeypatch.setattr(launcher, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=123))
    launcher.run([launch])
    assert library.cuLaunchKernel.call_args.args == (*launch.shape, 123, launch.pointers, None)
    with pytest.raises(torch.AcceleratorError, match="CUDA error: misaligned address") as raised:
        launcher.run([launch])
    assert device_failure(raised.value) == "device failed"
