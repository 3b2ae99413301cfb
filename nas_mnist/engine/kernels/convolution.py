"""Convolutions, forward and backward; the depthwise ones also for CUDA.

One vector holds a pixel of all images of a batch tile, and a weight is the same for all lanes. So vectors
stay full, however few channels there are. A kernel computes an output tile at once in registers: a few output
channels of a few pixels. So it uses every number several times that it loads.
"""

from __future__ import annotations

from itertools import product

from .compile import LANES, compiled
from .values import Index, Int, Vector
from .writer import MapPointer, Writer

OUTPUTS = 4  # channels of a dense convolution's output tile
# Its pixels, the largest number that fits first. Processors with long vectors have 32 registers, others 16.
_PIXELS = (4, 2, 1) if LANES == 16 else (2, 1)
_DEPTHWISE_PIXELS = (4, 2, 1)


@compiled()
def dense(w: Writer, kernel: int, stride: int) -> None:
    """A convolution of all channels.

    Arguments: map with its padding; map of the output; weights (output tile, ky, input, kx, output of the
    tile); bias (outputs,); inputs; height and width of the output; how many output tiles have 4, 3, 2 and 1
    channels.
    """
    source, target = MapPointer(w), MapPointer(w)
    weights, bias, inputs, height, width = (w.argument() for _ in range(5))
    first_channel: Int = 0
    for outputs in range(OUTPUTS, 0, -1):
        tiles = w.argument()
        with w.loop(tiles) as tile:
            channel = first_channel + tile * outputs
            tile_weights = channel * inputs * kernel**2
            with w.loop(height) as row:
                for pixel, pixels in w.unrolled_loops(width, _PIXELS):
                    start = [w.load_splat(bias, channel + output) for output in range(outputs)]
                    sums = [[w.variable(value) for _ in range(pixels)] for value in start]
                    with w.loop(kernel) as ky, w.loop(inputs) as input_:
                        line = source.at(input_, row * stride + ky, pixel * stride)
                        at = tile_weights + (ky * inputs + input_) * (kernel * outputs)
                        for kx in range(kernel):
                            factors = [
                                w.load_splat(weights, at + (kx * outputs + output))
                                for output in range(outputs)
                            ]
                            for i in range(pixels):
                                x = source.load(line + (i * stride + kx) * w.lanes)
                                for output in range(outputs):
                                    sums[output][i].add(x * factors[output])
                    for output, i in product(range(outputs), range(pixels)):
                        target.store(sums[output][i].get(), target.at(channel + output, row, pixel + i))
        first_channel = first_channel + tiles * outputs


def row_of_pixels(
    w: Writer, source: MapPointer, start: Index, kernel: int, stride: int, pixels: int
) -> list[Vector]:
    """All pixels of a row that neighbouring outputs read."""
    return [source.load(start + i * w.lanes) for i in range((pixels - 1) * stride + kernel)]


@compiled()
def depthwise(w: Writer, kernel: int, stride: int, flipped: bool) -> None:
    """A convolution of every channel by itself; with ``flipped`` weights for the backward pass.

    Arguments: map with its padding; map of the output; per model weights (C, ky, kx); per model bias (C,); C;
    height and width of the output.
    """
    source, target = MapPointer(w), MapPointer(w)
    weights, bias = w.per_model_ptr(), w.per_model_ptr()
    channels, height, width = (w.argument() for _ in range(3))
    with w.parallel_for(channels) as (channel,):
        factors = [w.load_splat(weights, channel * kernel**2 + place) for place in range(kernel**2)]
        if flipped:
            factors.reverse()
        start = w.load_splat(bias, channel)
        with w.rows(height) as row:
            for pixel, pixels in w.unrolled_loops(width, _DEPTHWISE_PIXELS):
                sums = [w.variable(start) for _ in range(pixels)]
                for ky in range(kernel):
                    line = source.at(channel, row * stride + ky, pixel * stride)
                    read = row_of_pixels(w, source, line, kernel, stride, pixels)
                    for kx, i in product(range(kernel), range(pixels)):
                        sums[i].add(read[i * stride + kx] * factors[ky * kernel + kx])
                for i in range(pixels):
                    target.store(sums[i].get(), target.at(channel, row, pixel + i))


def gradient_outputs(kernel: int) -> int:
    """Output channels for which `dense_weight_gradient` sums at once."""
    return {1: 4, 3: 3, 5: 2, 7: 1}[kernel]


@compiled()
def dense_weight_gradient(w: Writer, kernel: int, stride: int) -> None:
    """Adds to the gradient of a dense convolution's weights.

    Arguments: map of the input with its padding; map of the output's gradient; weights' gradient (output
    tile, ky, input, kx, output of the tile); inputs; height and width of the output; how many output tiles
    have `gradient_outputs` channels, one fewer, ... and 1.
    """
    most_outputs = gradient_outputs(kernel)
    source, gradient = MapPointer(w), MapPointer(w)
    target, inputs, height, width = (w.argument() for _ in range(4))

    def write_tile(channel: Int, outputs: int, first_input: Int, unroll: int, ky: Int) -> None:
        """Of so many outputs and of ``unroll`` inputs."""
        sums = {key: w.variable() for key in product(range(unroll), range(kernel), range(outputs))}
        with w.loop(height) as row:
            lines = [source.at(first_input + extra, row * stride + ky) for extra in range(unroll)]
            gradient_lines = [gradient.at(channel + output, row) for output in range(outputs)]
            for pixel, pixels in w.unrolled_loops(width, (2, 1)):
                start = pixel * (stride * w.lanes)
                for i in range(pixels):
                    d = [gradient.load(line + (pixel + i) * gradient.pixel_stride) for line in gradient_lines]
                    for extra, kx in product(range(unroll), range(kernel)):
                        x = source.load(lines[extra] + start + (i * stride + kx) * w.lanes)
                        for output in range(outputs):
                            sums[extra, kx, output].add(x * d[output])
        tile_weights = channel * inputs * kernel**2
        for (extra, kx, output), total in sums.items():
            at = tile_weights + (ky * inputs + (first_input + extra)) * (kernel * outputs)
            w.reduce_into(total.get(), target, at + (kx * outputs + output))

    first_channel: Int = 0
    for outputs in range(most_outputs, 0, -1):
        tiles = w.argument()
        with w.loop(tiles) as tile:
            channel = first_channel + tile * outputs
            with w.loop(kernel) as ky:
                for input_, unroll in w.unrolled_loops(inputs, (2, 1) if kernel == 1 else (1,)):
                    write_tile(channel, outputs, input_, unroll, ky)
        first_channel = first_channel + tiles * outputs


@compiled()
def depthwise_weight_gradient(w: Writer, kernel: int, stride: int) -> None:
    """Adds to the gradient of a depthwise convolution's weights.

    Arguments: map of the input with its padding; map of the output's gradient; per block weights' gradient
    (C, ky, kx); C; height and width of the output.
    """
    source, gradient = MapPointer(w), MapPointer(w)
    target, channels, height, width = w.per_block_ptr(), w.argument(), w.argument(), w.argument()
    with w.parallel_for(channels, kernel) as (channel, ky):
        sums = [w.variable() for _ in range(kernel)]
        with w.rows(height) as row:
            line = source.at(channel, row * stride + ky)
            gradient_line = gradient.at(channel, row)
            for pixel, pixels in w.unrolled_loops(width, _DEPTHWISE_PIXELS):
                start = line + pixel * (stride * w.lanes)
                for i in range(pixels):
                    d = gradient.load(gradient_line + (pixel + i) * gradient.pixel_stride)
                    for kx in range(kernel):
                        sums[kx].add(source.load(start + (i * stride + kx) * w.lanes) * d)
        for kx, total in enumerate(sums):
            w.reduce_into(total.get(), target, (channel * kernel + ky) * kernel + kx)
