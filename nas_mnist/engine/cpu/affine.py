"""Images picked, warped and normalised on a CPU by one compiled loop: `batches.TorchImages`, faster."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.affine import PaddedImages, warp_images
from ..kernels.compile import LANES, CallList, DType
from .threads import run_parallel, thread_count


class AffineImages(PaddedImages):
    """The `ImageLoader` that runs our kernel; every image has a map."""

    def __call__(self, picked: Tensor, maps: Tensor | None) -> Tensor:
        """Network input (B, C, H, W) float32: images at positions (B,), warped by their prepared maps."""
        assert maps is not None
        channels, height, width = self.shape
        stride = self.shape.numel() + LANES  # a vector that begins in an image may end behind it
        warped = torch.empty((len(picked), stride))
        memory = self.images, picked.contiguous(), maps.contiguous(), warped, self.normal
        call = [
            warp_images(DType(torch.float32)),
            *(one.data_ptr() for one in memory),
            channels,
            height,
            width,
            stride,
        ]
        run_parallel([CallList([call])] * thread_count(), len(picked), (self, memory))
        return warped[:, : self.shape.numel()].view(-1, *self.shape)
