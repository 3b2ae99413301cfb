"""Costs: golden numbers by hand, and the same as the built network on five hundred candidates."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
from candidates import random_architectures
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_mnist import Architecture, Budget
from nas_mnist.models.cost import Cost, cost_of
from nas_mnist.models.network import Network
from nas_mnist.report.layer_table import table_rows

CANDIDATES = 500
IN_PLACE = (nn.BatchNorm2d, nn.Dropout2d, nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.GELU)


def conv(channels: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "conv", "channels": channels} | fields


POOL = {"kind": "pool"}

SUM = {"kind": "residual", "body": [conv(6, stride=2), conv(6, activation="none")], "activation": "relu"}
SEPARABLE_SUM = {"kind": "residual", "body": [{"kind": "separable", "channels": 6, "middle": True}]}
NARROW = {"kind": "separable", "channels": 4}
REPEAT = {"kind": "repeat"}
VALID = conv(16, padding="valid")

# Each number was worked out by hand from the layers, without this package.
GOLDEN = {
    # 28 -> 26 -> 13 -> 11 -> 5 -> 3, batch normalisation, a 1x1 head with bias
    "odd sizes": (
        {"blocks": [conv(8, padding="valid"), POOL, VALID, POOL, VALID]},
        [(8, 26, 26), (8, 13, 13), (16, 11, 11), (16, 5, 5), (16, 3, 3), (10, 3, 3), (10, 1, 1)],
        # 72 + 16, 1,152 + 32, 2,304 + 32, 160 + 10; 3 + 2 more, pool 1, 2 * 2, pool 2, 4 * 2
        (3_778, 72 * 676 + 1_152 * 121 + 2_304 * 9 + 160 * 9, 4 * (8 * 676 + 8 * 169), 18),
    ),
    # pooling first, then a 1x1 convolution without bias, as with an nn.AdaptiveAvgPool2d
    "pool, then convolution": (
        {
            "blocks": [conv(16, kernel=5, stride=2, bias=True, norm="none"), conv(32, norm="after")],
            "head": {"order": "pool_then_conv", "bias": False},
        },
        [(16, 14, 14), (32, 14, 14), (32, 1, 1), (10, 1, 1)],
        # 400 + 16, 4,608 + 64, 320
        (5_408, 400 * 196 + 4_608 * 196 + 320, 4 * (16 * 196 + 32 * 196), 9),
    ),
    # a residual block with a projection, then one without, on 27x27 -> 14x14
    "residual": (
        {"input_shape": [1, 27, 27], "blocks": [conv(4), SUM, SEPARABLE_SUM]},
        [(4, 27, 27), *[(6, 14, 14)] * 5, (10, 14, 14), (10, 1, 1)],
        # 36 + 8, 216 + 12, 324 + 12, projection 24, depthwise 54 + 12, pointwise 36 + 12, head 60 + 10
        (816, 36 * 729 + (216 + 324 + 24 + 54 + 36 + 60) * 196, 4 * (4 * 729 + 12 * 196), 3 + 2 + 4 + 4),
    ),
    # a separable block three times, once behind another pooling
    "repeated": (
        {"blocks": [conv(4), POOL, NARROW, REPEAT, POOL, REPEAT]},
        [(4, 28, 28), *[(4, 14, 14)] * 5, *[(4, 7, 7)] * 3, (10, 7, 7), (10, 1, 1)],
        # 36 + 8, depthwise 36, pointwise 16, three normalisations, head 40 + 10
        (170, 36 * 784 + 52 * (2 * 196 + 49) + 40 * 49, 4 * (784 + 4 * 784), 3 + 1 + 4 + 4 + 2 + 8),
    ),
}


def test_reference_has_19122_parameters_by_formula_by_module_and_by_its_rows(reference: Architecture) -> None:
    assert cost_of(reference).params == 19_122
    assert sum(parameter.numel() for parameter in Network(reference).parameters()) == 19_122
    assert sum(params for _, _, params in table_rows(reference)) == 19_122


def test_reference_costs_what_it_always_cost(reference: Architecture) -> None:
    # 16 and 32 maps of 28x28 live at one time; 3 + 2 + pool 1 + 2 * (2 + 2) + pool 2 + 4 * (2 + 2)
    macs = (144 + 4_608) * 784 + (256 + 1_152 + 4_608) * 196 + 512 * 49 + 4_608 * 25 + 2_880 * 9
    # int8: weights; 5 bytes a channel, 5 more where a normalisation is behind an activation; 56 a call
    flash = 18_768 + 5 * (162 + 96) + 56 * 10
    assert cost_of(reference) == Cost(19_122, macs, 4 * 784 * (16 + 32), 32, flash, 784 * (16 + 32))


@pytest.mark.parametrize("name", GOLDEN)
def test_published_kinds_of_network_cost_what_hand_calculation_says(name: str) -> None:
    data, shapes, cost = GOLDEN[name]
    architecture = Architecture.make(data)
    kept = ("Conv2d", "MaxPool2d", "AvgPool2d")
    assert [layer.out_shape for layer in architecture.layers if layer.kind in kept] == shapes
    assert astuple(cost_of(architecture))[:4] == cost


@pytest.mark.parametrize(("budget", "excess"), [(19_121, 1), (19_122, 0), (20_000, -878), (10, 19_112)])
def test_excess_is_what_is_over_the_budget(reference: Architecture, budget: int, excess: int) -> None:
    assert Budget(budget).excess(cost_of(reference)) == {"parameters": excess}
    assert Budget(budget).fits(cost_of(reference)) is (excess <= 0)


def test_every_limit_counts(reference: Architecture) -> None:
    cost = cost_of(reference)
    exactly = Budget(cost.params, cost.macs, cost.flash, cost.ram)
    assert exactly.excess(cost) == dict.fromkeys(exactly.limits, 0)
    assert exactly.fits(cost)
    assert not replace(exactly, max_macs=cost.macs - 1).fits(cost)
    assert not replace(exactly, max_flash=cost.flash - 1).fits(cost)
    assert not replace(exactly, max_ram=cost.ram - 1).fits(cost)
    limits = "19,122 parameters, 5,070,912 multiply-adds, 20,618 bytes of flash, 37,632 bytes of RAM"
    assert str(exactly) == limits
    assert Budget(1, max_memory=7).limits == {"parameters": 1, "bytes of peak memory": 7}  # of older studies
    assert exactly.with_share(0.5) == replace(exactly, max_params=9_561)


class Execution:
    """One forward pass, watched from outside: which module read which values and what it made.

    Every value is kept, so that its identity stays its own.
    """

    def __init__(self, model: Network, image: Tensor) -> None:
        self.steps: list[tuple[nn.Module, list[int], int]] = []  # module, values read, value made
        self.values = [image]
        self._number = {id(image): 0}
        hooks = [module.register_forward_hook(self._seen) for module in {*model.layers}]
        with torch.no_grad():
            self.result = model(image)
        for hook in hooks:
            hook.remove()

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        read = [self._number[id(value)] for value in inputs]
        self._number[id(output)] = len(self.values)
        self.values.append(output)
        self.steps.append((module, read, len(self.values) - 1))

    def peak_values(self) -> int:
        """The most values alive at one time: at each step, what is still to be read and what is made."""
        last_read = {value: step for step, (_, read, _) in enumerate(self.steps) for value in read}
        made = {0: -1} | {value: step for step, (_, _, value) in enumerate(self.steps)}
        sizes = [value.numel() for value in self.values]
        peak = sizes[0]
        for step, (module, read, value) in enumerate(self.steps):
            alive = sum(sizes[v] for v, last in last_read.items() if made[v] < step <= last)
            reusable = isinstance(module, IN_PLACE) or len(read) == 2
            overwrites = reusable and any(last_read[v] == step for v in read)
            peak = max(peak, alive + (0 if overwrites else sizes[value]))
        return peak


@pytest.fixture(scope="module")
def executed() -> list[tuple[Architecture, Network, Execution, int]]:
    """Random candidates of every kind, each built and run once, with the flops that torch counted."""
    torch.manual_seed(0)
    ran = []
    for architecture in random_architectures(CANDIDATES, seed=0):
        model = Network(architecture).eval()
        with FlopCounterMode(display=False) as counter:
            execution = Execution(model, torch.rand(1, *architecture.input_shape))
        ran.append((architecture, model, execution, counter.get_total_flops()))
    return ran


def test_random_candidates_are_of_every_kind(executed: list) -> None:
    seen = set()
    for architecture, _, _, _ in executed:
        blocks = list(architecture.blocks)
        seen.add(architecture.head.order)
        for block in blocks + [part for sum_ in blocks if sum_.kind == "residual" for part in sum_.body]:
            fields = block.model_dump(exclude={"channels", "body", "dropout"})
            seen |= {(block.kind, name, value) for name, value in fields.items()}
        seen |= {"projection" for layer in architecture.layers if layer.path.endswith(".shortcut")}
    wanted = {"conv_then_pool", "pool_then_conv", "projection"}
    wanted |= {("separable", "middle", middle) for middle in (True, False)}
    wanted |= {("pool", "method", method) for method in ("max", "average")}
    wanted |= {("repeat", "kind", "repeat")}
    for kind in ("conv", "separable"):
        wanted |= {(kind, "kernel", kernel) for kernel in (1, 3, 5, 7)}
        wanted |= {(kind, "stride", stride) for stride in (1, 2, 3, 4)}
        wanted |= {(kind, "padding", padding) for padding in ("same", "valid")}
        wanted |= {(kind, "norm", norm) for norm in ("none", "before", "after")}
    assert wanted <= seen


def test_costs_are_those_of_the_built_network(executed: list) -> None:
    """Parameters; multiply-adds, which torch counts as two; and the memory of the values alive in a run."""
    for architecture, model, execution, flops in executed:
        built, cost = sum(parameter.numel() for parameter in model.parameters()), cost_of(architecture)
        found = built, flops / 2, 4 * execution.peak_values()
        assert (cost.params, cost.macs, cost.peak_memory) == found, architecture.to_json()


def test_every_layer_reads_and_makes_the_maps_that_were_worked_out(executed: list) -> None:
    for architecture, _, execution, _ in executed:
        made = [tuple(execution.values[value].shape[1:]) for _, _, value in execution.steps]
        assert made == [layer.out_shape for layer in architecture.layers], architecture.to_json()
        read = [tuple(value - 1 for value in values) for _, values, _ in execution.steps]  # 0 is the image
        assert read == [layer.inputs for layer in architecture.layers], architecture.to_json()
        assert execution.result.shape == (1, architecture.classes)


def test_receptive_field_is_the_patch_through_which_a_broken_pixel_is_seen() -> None:
    """A row of pixels that are not numbers breaks every value that looks at it."""
    checked, side = 0, 64
    for small in random_architectures(300, seed=4):
        data = small.model_dump(mode="json") | {"input_shape": [1, side, side]}
        architecture = Architecture.make(data | {"blocks": data["blocks"][:3]})
        averages = [
            position
            for position, layer in enumerate(architecture.layers)
            if layer.kind == "AvgPool2d" and layer.out_shape[1:] == (1, 1)
        ]
        field = cost_of(architecture).receptive_field
        if not averages or field > side // 3 or architecture.layers[averages[0]].in_shape[1] < 4:
            continue  # no patch that surely lies within the image
        images = torch.zeros(side, 1, side, side)
        rows = torch.arange(side)
        images[rows, 0, rows] = torch.nan  # image i is broken in row i
        maps = Execution(Network(architecture).eval(), images).values[averages[0]]  # what is averaged
        broken = maps.isnan().any(1).any(-1)  # (row of the image, row of the map)
        seen = [torch.nonzero(column).flatten() for column in broken.T]
        assert field == max(int(rows[-1] - rows[0]) + 1 for rows in seen), architecture.to_json()
        checked += 1
        if checked == 60:
            return
    raise AssertionError(f"only {checked} candidates had a patch to measure")


@pytest.mark.parametrize(
    ("blocks", "pixels"),
    [
        ([{"kind": "pool", "method": "average", "kernel": 28}], 30),  # all of the image and its frame
        ([{"kind": "pool", "method": "max", "kernel": 28}], 30),
        (
            [{"kind": "pool", "method": "average", "kernel": 28}, {"kind": "conv", "channels": 2}],
            34,
        ),  # by its stride of 2
        ([{"kind": "pool", "method": "average", "kernel": 14, "stride": 14}, {"kind": "pool"}], 30),
        ([], 3),  # the head's average does not count
    ],
)
def test_a_global_average_as_a_block_is_part_of_the_receptive_field(blocks: list, pixels: int) -> None:
    architecture = Architecture.make({"blocks": [{"kind": "conv", "channels": 2}, *blocks]})
    assert cost_of(architecture).receptive_field == pixels
