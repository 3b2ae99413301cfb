"""Kernels for CUDA alone: convolutions in other tiles than a CPU's, and the rest of a training step.

Output tiles have equal sizes. Where they do not fit, the last two overlap, and both compute the same numbers
there. The terms of the docstrings are those of `engine.kernels`.
"""

from __future__ import annotations

from itertools import product
from math import e, log, log2

from ..kernels.affine import EDGE, bilinear
from ..kernels.compile import compiled
from ..kernels.convolution import row_of_pixels
from ..kernels.values import Index, Int, IntVector, Vector
from ..kernels.writer import MapPointer, Writer
from .writer import BlockWriter


def equal_tiles(count: int, most: int) -> tuple[int, int]:
    """The size of tiles of at most ``most``, and their number."""
    tiles = -(-count // most)
    return -(-count // tiles), tiles


def _tile_start(w: Writer, number: Index, size: int, count: Index) -> Index:
    return w.minimum(number * size, count - size)


@compiled()
def gather_pointers(w: Writer) -> None:
    """Numbers from anywhere.

    Arguments: pointers (vectors, lanes), int64; target (vectors, lanes); vectors.
    """
    pointers, target, vectors = (w.argument() for _ in range(3))
    with w.parallel_for(vectors) as (vector,):
        at = vector * w.lanes
        w.store(w.gather_pointers(pointers, at), target, at)


@compiled()
def dense(w: Writer, kernel: int, stride: int, outputs: int, pixels: int) -> None:
    """A convolution of all channels, in tiles of ``outputs`` channels (at most four) and ``pixels``.

    Arguments: map with its padding; map of the output; per model weights (tile, input, ky, kx, 4); per model
    bias (outputs,); inputs; outputs; height and width of the output; tiles of channels; tiles of a row.
    """
    source, target = MapPointer(w), MapPointer(w)
    weights, bias = w.per_model_ptr(), w.per_model_ptr()
    inputs, channels, height, width, channel_tiles, pixel_tiles = (w.argument() for _ in range(6))
    with w.parallel_for(pixel_tiles, channel_tiles) as (pixel_tile, tile):
        channel = _tile_start(w, tile, outputs, channels)
        pixel = _tile_start(w, pixel_tile, pixels, width)
        start = [w.load_splat(bias, channel + output) for output in range(outputs)]
        with w.rows(height) as row:
            sums = [[w.variable(value) for _ in range(pixels)] for value in start]
            for first_input, unroll in w.unrolled_loops(inputs, (4, 1) if kernel == 1 else (1,)):
                for extra, ky in product(range(unroll), range(kernel)):
                    input_ = first_input + extra
                    line = source.at(input_, row * stride + ky, pixel * stride)
                    read = row_of_pixels(w, source, line, kernel, stride, pixels)
                    at = (tile * inputs + input_) * (4 * kernel**2)
                    for kx in range(kernel):
                        factors = w.load_four(weights, at + 4 * (ky * kernel + kx))
                        for output, i in product(range(outputs), range(pixels)):
                            sums[output][i].add(read[i * stride + kx] * factors[output])
            for output, i in product(range(outputs), range(pixels)):
                target.store(sums[output][i].get(), target.at(channel + output, row, pixel + i))


@compiled()
def dense_weight_gradient(w: Writer, kernel: int, stride: int, outputs: int, unroll: int) -> None:
    """A block's sums for the gradient of a dense convolution's weights.

    A warp sums for ``outputs`` by ``unroll`` inputs.

    Arguments: map of the input with its padding; map of the output's gradient; per block weights' gradient
    (outputs, inputs, ky, kx); inputs; outputs; height and width of the output; tiles of outputs; tiles of
    inputs.
    """
    source, gradient, target = MapPointer(w), MapPointer(w), w.per_block_ptr()
    inputs, channels, height, width, output_tiles, input_tiles = (w.argument() for _ in range(6))
    weights = list(product(range(outputs), range(unroll), range(kernel), range(kernel)))
    with w.parallel_for(output_tiles, input_tiles) as (tile, input_tile):
        channel = _tile_start(w, tile, outputs, channels)
        input_ = _tile_start(w, input_tile, unroll, inputs)
        sums = {weight: w.variable() for weight in weights}
        with w.rows(height) as row:
            for pixel, pixels in w.unrolled_loops(width, w.unroll):
                d = [
                    [gradient.load(gradient.at(channel + output, row, pixel + i)) for i in range(pixels)]
                    for output in range(outputs)
                ]
                for extra, ky in product(range(unroll), range(kernel)):
                    line = source.at(input_ + extra, row * stride + ky, pixel * stride)
                    read = row_of_pixels(w, source, line, kernel, stride, pixels)
                    for output, kx, i in product(range(outputs), range(kernel), range(pixels)):
                        sums[output, extra, ky, kx].add(read[i * stride + kx] * d[output][i])
        for (output, extra, ky, kx), total in sums.items():
            filter_ = (channel + output) * inputs + (input_ + extra)
            w.reduce_into(total.get(), target, filter_ * kernel**2 + (ky * kernel + kx))


@compiled(lanes=1)
def reduce_blocks(w: BlockWriter, adds: bool) -> None:
    """Writes the sums over all blocks to several gradients, a chunk each, or ``adds`` them.

    Arguments: a table (chunks, 5), int64. Its rows: pointer to the blocks' sums (models, blocks, N); pointer
    to the gradient (N,); bytes from model to model there; N; blocks of a model.
    """
    table = w.argument()
    sums, target, stride, count, blocks = (w.load_index(table, w.chunk * 5 + at) for at in range(5))
    target, first = target + w.model * stride, w.model * (blocks * count)
    with w.parallel_for(count) as (place,):
        total = w.sum_over(blocks, lambda block: w.load(sums, first + block * count + place))
        w.store(total + w.load(target, place) if adds else total, target, place)


@compiled()
def augmented_images(w: BlockWriter) -> None:
    """The images of a step, mapped and normalised: those of `PaddedImages`, an image a lane.

    A batch tile that is not full repeats its last image.

    Arguments: map of the result; images (N, C, H + 3, W + 3) with zeros behind, uint8; positions (B,), int64;
    lines (B, 3, 2), as `PaddedImages.prepare_maps` gives them; the two numbers factor and constant of a
    normalisation; C; H; W; count of a model's images. B is models * count.
    """
    target = MapPointer(w)
    images, positions, lines, normal = (w.argument() for _ in range(4))
    channels, height, width, count = (w.argument() for _ in range(4))
    full_width, full_height = width + EDGE, height + EDGE
    number = _image_numbers(w, count)
    start = w.gather_indices(positions, number) * (channels * (full_width * full_height))
    numbers = [w.gather(lines, number * 6 + place) for place in range(6)]
    first, right, down = numbers[:2], numbers[2:4], numbers[4:]
    factor, constant = w.load_splat(normal), w.load_splat(normal, 1)
    limits = [w.to_float(width - 1), w.to_float(height - 1)]
    with w.parallel_for(channels) as (channel,), w.rows(height) as y:
        line = [one + w.to_float(y) * by for one, by in zip(first, down, strict=True)]
        corner = start + channel * (full_width * full_height)

        def value(x: Int) -> Vector:
            places = [one + w.to_float(x) * by for one, by in zip(line, right, strict=True)]
            return bilinear(w, images, places, limits, full_width, corner) * factor + constant

        for first_pixel, pixels in w.unrolled_loops(width, w.unroll):
            xs = [first_pixel + i for i in range(pixels)]
            for x, pixel in [(x, value(x)) for x in xs]:
                target.store(pixel, target.at(channel, y, x))


def _image_numbers(w: BlockWriter, count: Int) -> IntVector:
    """The numbers of a batch tile's images among those of all models, of which each has ``count``."""
    return w.minimum(w.iota(w.model_tile * w.lanes), count - 1) + w.model * count


@compiled()
def cross_entropy(w: BlockWriter) -> None:
    """The mean loss of class scores, and the scores' gradient.

    Arguments: map of the scores (classes, 1, 1); map of their gradient; labels (models * count,), int64;
    classes; count of a model's images; three numbers: the target of every class, what the label's target has
    on top, and an image's share in the mean; image mask (tiles, lanes); per block the loss.
    """
    source, target = MapPointer(w), MapPointer(w)
    labels, classes, count, numbers, mask = (w.argument() for _ in range(5))
    losses = w.per_block_ptr()
    label = w.to_float(w.gather_indices(labels, _image_numbers(w, count)))
    every_class, label_extra, share = (w.load_splat(numbers, place) for place in range(3))
    share = share * w.load(mask, w.batch_tile * w.lanes)
    with w.parallel_for(1):
        largest = w.variable(source.load(source.at(0, 0)))
        with w.loop(classes) as number:
            largest.set(w.maximum(largest.get(), source.load(source.at(number, 0))))
        total, expected = w.variable(), w.variable()

        def terms(number: Index) -> tuple[Vector, Vector, Vector]:
            """A class's score less the largest, its exponential, and its target."""
            score = source.load(source.at(number, 0)) - largest.get()
            extra = w.select(label.equals(w.to_float(number)), label_extra, 0.0)
            return score, w.exp2(score * log2(e)), every_class + extra

        with w.loop(classes) as number:
            score, exponential, wanted = terms(number)
            total.add(exponential)
            expected.add(score * wanted)
        loss = w.log2(total.get()) * log(2) - expected.get()
        w.reduce_into(loss * share, losses)
        inverse = 1.0 / total.get()
        with w.loop(classes) as number:
            _, exponential, wanted = terms(number)
            target.store((exponential * inverse - wanted) * share, target.at(number, 0))


@compiled()
def sgd_step(w: Writer, nesterov: bool) -> None:
    """A step of `engine.sgd.SGD`.

    Arguments: weights; gradient; momentum buffer; weight decay (vectors, lanes) each; pointer to the
    momentum; learning rates of all steps; pointer to the step's index, int64; vectors.
    """
    weights, gradient, buffer, decay, momentum, lr_table, step_index, vectors = (
        w.argument() for _ in range(8)
    )
    factor, lr = w.load_splat(momentum), w.load_splat(lr_table, w.load_index(step_index))
    with w.parallel_for(vectors) as (vector,):
        at = vector * w.lanes
        weight = w.load(weights, at)
        d = w.load(gradient, at) + weight * w.load(decay, at)
        mean = w.load(buffer, at) * factor + d
        w.store(mean, buffer, at)
        w.store(weight - (d + mean * factor if nesterov else mean) * lr, weights, at)


@compiled()
def ema_update(w: Writer) -> None:
    """Moves an exponential moving average towards the newest numbers.

    Arguments: average; newest numbers (vectors, lanes) each; alphas of all steps; pointer to the step's
    index, int64; vectors.
    """
    ema, newest, alphas, step_index, vectors = (w.argument() for _ in range(5))
    alpha = w.load_splat(alphas, w.load_index(step_index))
    with w.parallel_for(vectors) as (vector,):
        at = vector * w.lanes
        value = w.load(ema, at)
        w.store(value + (w.load(newest, at) - value) * alpha, ema, at)
