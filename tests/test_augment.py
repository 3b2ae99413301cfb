"""Augmentation: random affine maps, and images warped by them, by torch and by our kernel."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch

from nas_mnist.data.normalize import Normalizer
from nas_mnist.engine.batches import TorchImages, warp
from nas_mnist.engine.cpu.affine import AffineImages
from nas_mnist.recipes.recipe import Augmentation
from nas_mnist.training.augment import draw_affine_maps


def pictures() -> torch.Tensor:
    return torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255


def moved(images: torch.Tensor, how: Augmentation, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return warp(images, draw_affine_maps(how, len(images), generator))


def test_no_augmentation_is_the_identity() -> None:
    assert Augmentation().off
    made = moved(pictures(), Augmentation())
    torch.testing.assert_close(made, pictures(), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", ["rotate", "translate", "scale", "shear"])
def test_every_kind_of_augmentation_moves_every_image(name: str) -> None:
    how = Augmentation(**{name: 20 if name in ("rotate", "shear") else 0.3})
    assert not how.off
    made = moved(pictures(), how)
    assert all((one - other).abs().max() > 1 for one, other in zip(made, pictures(), strict=True))


def test_affine_maps_are_those_of_torchs_grid() -> None:
    images = torch.rand(3, 2, 10, 7)
    how = Augmentation(rotate=30, translate=0.2, scale=0.3, shear=20)
    amounts = torch.rand((5, 3), generator=torch.Generator().manual_seed(4)) * 2 - 1
    angle, slant, size = amounts[0] * math.pi / 6, torch.tan(amounts[1] * math.pi / 9), 1 + amounts[2] * 0.3
    zero, one = torch.zeros(3), torch.ones(3)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(3, 2, 2)
    shear = torch.stack([one, slant, zero, one], 1).view(3, 2, 2)
    theta = torch.cat([turn @ shear / size.view(3, 1, 1), amounts[3:].T.reshape(3, 2, 1) * 0.4], 2)
    grid = torch.nn.functional.affine_grid(theta, [3, 2, 10, 7], align_corners=False)
    expected = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(moved(images, how, 4), expected)


@pytest.mark.parametrize("loader", [TorchImages, AffineImages])
def test_what_lies_outside_of_an_image_continues_its_border(loader: type) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, 201, (9, 3, 10, 8), generator=generator, dtype=torch.uint8)
    images[..., 4, 4] = 0  # dark ink on light paper
    how = Augmentation(rotate=180, translate=1, scale=0.5)
    load = loader(images, Normalizer(0.0, 1.0))
    made = load(torch.arange(9), load.prepare_maps(draw_affine_maps(how, 9, generator)))
    border = torch.cat([made[..., 0, :], made[..., -1, :], made[..., 0], made[..., -1]], dim=-1)
    assert (border > 99).float().mean() > 0.95
    far = torch.tensor([1.0, 0.0, 5.0, 0.0, 1.0, 5.0]).view(1, 2, 3)  # the lower right corner, everywhere
    made = load(torch.zeros(1, dtype=torch.long), load.prepare_maps(far))
    torch.testing.assert_close(made, images[:1, :, -1:, -1:].float().expand_as(made))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 10, 7), (1, 2, 5), (2, 1, 1)])
def test_the_kernel_warps_images_as_torch_does(shape: tuple[int, ...], threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, *shape), generator=generator, dtype=torch.uint8)
    picked = torch.tensor([5, 0, 0, 3, 1, 2, 4, 5, 5])
    loaders = [loader(images, Normalizer(40.0, 70.0)) for loader in (TorchImages, AffineImages)]
    for how in (
        Augmentation(),
        Augmentation(rotate=10, translate=0.1, scale=0.1),
        Augmentation(rotate=180, translate=1, scale=0.9, shear=60),
    ):
        maps = draw_affine_maps(how, len(picked), generator)
        with mock.patch("nas_mnist.engine.cpu.affine.thread_count", return_value=threads):
            expected, found = (loader(picked, loader.prepare_maps(maps)) for loader in loaders)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
