"""The search space: read from TOML or refused with the key, and drawn from."""

from __future__ import annotations

import random
from itertools import product
from statistics import median
from typing import Any

import optuna
import pytest
from conftest import TINY_SPACE

from nas_mnist import Architecture, Budget, SearchSpace
from nas_mnist.core.errors import InputError
from nas_mnist.models.cost import cost_of
from nas_mnist.models.width import fit_width_multiplier, scale_widths
from nas_mnist.space.sampling import FixedParams, RandomSampler

STAGE = "[[stages]]\nblocks = 1\nchannels = 4\n"
VARIED = """
[network]
bias = [true, false]
activation = ["relu", "gelu"]
middle = [true, false]

[[stages]]
transition = [0, 3]
blocks = { min = 0, max = 3 }
block = ["conv", "separable", "residual", "residual_separable"]
channels = { min = 2, max = 11, step = 3 }
kernel = [1, 3, 5, 7]
padding = ["same", "valid"]
downsample = ["none", "max", "average", "stride"]
norm = ["none", "before", "after"]
dropout = [0.0, 0.1]

[[stages]]
blocks = [1, 3]
channels = [7, 2]
kernel = 7
padding = "valid"
downsample = ["max", "stride"]

[head]
order = ["conv_then_pool", "pool_then_conv"]
kernel = [1, 3]
padding = ["same", "valid"]
bias = [true, false]
norm = [true, false]
"""
SPACES = {"classic": None, "tiny": TINY_SPACE, "varied": VARIED}
BUDGET = Budget(20_000)


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    text = SPACES[request.param]
    return SearchSpace.load(request.param) if text is None else SearchSpace.from_toml(text)


def drawn(space: SearchSpace, seed: int) -> tuple[Architecture | None, RandomSampler]:
    """A random draw that exists or None, and its draws."""
    sampler = RandomSampler(random.Random(seed))
    try:
        return space.draw(sampler, BUDGET), sampler
    except InputError:
        return None, sampler


def test_draws_are_architectures_or_bad_input_and_can_be_replayed(space: SearchSpace) -> None:
    made = 0
    for seed in range(300):
        architecture, sampler = drawn(space, seed)
        if architecture is not None:
            assert space.draw(FixedParams(sampler.params), BUDGET) == architecture
            made += 1
    assert made > 30


def test_live_trial_replay_and_random_draw_agree(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    agreed = 0
    for seed in range(25):
        architecture, sampler = drawn(space, seed)
        study.enqueue_trial(sampler.params)
        trial = study.ask()
        if architecture is None:
            with pytest.raises(InputError):
                space.draw(trial, BUDGET)
        else:
            assert space.draw(trial, BUDGET) == architecture
            assert trial.params == sampler.params
            assert space.draw(FixedParams(trial.params), BUDGET) == architecture
            assert space.draw(optuna.trial.FixedTrial(sampler.params), BUDGET) == architecture
            agreed += 1
        study.tell(trial, 0.0)
    assert agreed > 3


def test_everything_is_drawn_before_a_candidate_is_refused() -> None:
    """So that the sampler learns from the whole draw."""
    space, refused = SearchSpace.from_toml(VARIED), 0
    for seed in range(200):
        architecture, sampler = drawn(space, seed)
        refused += architecture is None
        assert {"head.order", "head.bias", "head.norm", "stage2.blocks"} <= set(sampler.params), architecture
    assert refused > 10


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("4", {4}),
        ("[4, 9]", {4, 9}),
        ("[9, 2, 5]", {2, 5, 9}),
        ("{ min = 3, max = 6 }", {3, 4, 5, 6}),
        ("{ min = 3, max = 10, step = 3 }", {3, 6, 9}),
        ("{ min = 5, max = 5 }", {5}),
    ],
)
def test_fixed_values_lists_and_ranges_allow_exactly_their_values(value: str, seen: set[int]) -> None:
    space = SearchSpace.from_toml(f"[[stages]]\nblocks = 1\nchannels = {value}\n")
    widths = {
        space.draw(RandomSampler(random.Random(seed)), BUDGET).blocks[0].channels for seed in range(100)
    }
    assert widths == seen


def test_a_single_value_is_no_draw() -> None:
    sampler = RandomSampler(random.Random(0))
    SearchSpace.from_toml(STAGE).draw(sampler, BUDGET)
    assert sampler.params == {}


def test_a_stage_says_otherwise_than_the_network() -> None:
    text = '[network]\nactivation = "gelu"\nbias = true\n' + STAGE * 2 + 'activation = "silu"\nbias = false\n'
    first, second = SearchSpace.from_toml(text).draw(RandomSampler(random.Random(0)), BUDGET).blocks
    assert (first.activation, first.bias) == ("gelu", True)
    assert (second.activation, second.bias) == ("silu", False)


REPEATING = (
    "[[stages]]\nblocks = [0, 1, 2]\nchannels = [3, 5]\nrepeats = { min = 0, max = 3 }\n"
    'block = ["separable", "residual"]\ndownsample = ["max", "stride"]\n'
)


def test_repeats_are_as_wide_as_what_they_read_and_share_weights() -> None:
    space = SearchSpace.from_toml(STAGE + REPEATING + REPEATING)
    seen = set()
    for seed in range(300):
        sampler = RandomSampler(random.Random(seed))
        architecture = space.draw(sampler, BUDGET)
        assert space.draw(FixedParams(sampler.params), BUDGET) == architecture
        drawn = [
            (int(sampler.params[f"stage{stage}.blocks"]), int(sampler.params[f"stage{stage}.repeats"]))
            for stage in (2, 3)
        ]
        kinds = [block.kind for block in architecture.blocks if block.kind != "pool"]
        assert len(kinds) == 1 + sum(map(sum, drawn))
        own = kinds.count("repeat")  # all but the first of a stage, if that one has weights of its own
        assert sum(repeats - 1 for _, repeats in drawn if repeats) <= own <= sum(many for _, many in drawn)
        again = [layer for layer in architecture.layers if layer.weights_of is not None]
        assert all(layer.in_shape[0] == layer.out_shape[0] and layer.stride == 1 for layer in again)
        seen.add(tuple(drawn))
    assert len(seen) > 60  # of 12 * 12 pairs


def test_repeats_of_a_stage_without_blocks_are_of_the_block_before() -> None:
    text = 'channels = 4\nblock = "separable"\ndownsample = "{}"\nblocks = '
    first, second = (text.format(down) for down in ("max", "stride"))
    for stage, repeats, kinds in (
        (first + "2\nrepeats = 1", 2, ["separable", "separable", "repeat", "pool", "repeat", "repeat"]),
        (first + "1", 2, ["separable", "pool", "separable", "repeat"]),  # the one before reads one channel
        (second + "2", 2, ["separable", "separable", "separable", "repeat"]),  # the one before has stride 2
    ):
        later = f"[[stages]]\nblocks = 0\nchannels = 9\nrepeats = {repeats}\nblock = 'separable'\n"
        space = SearchSpace.from_toml(f"[[stages]]\n{stage}\n{later}")
        architecture = space.draw(RandomSampler(random.Random(0)), BUDGET)
        assert [block.kind for block in architecture.blocks] == kinds


def test_a_filled_space_repeats_at_any_width() -> None:
    space = SearchSpace.from_toml("fill = 1.0\n" + STAGE + REPEATING)
    for seed in range(50):
        assert cost_of(space.draw(RandomSampler(random.Random(seed)), Budget(3_000))).params <= 3_000


def test_digest_ignores_comments_and_the_way_a_value_is_written() -> None:
    plain = SearchSpace.from_toml(STAGE + "kernel = [1, 3, 5]\n")
    other = SearchSpace.from_toml(
        "# my space\nclasses = 10\n[[stages]]  # stem\nkernel = {min = 1, max = 5, step = 2}\n"
        'channels = [4]\nblocks = [1]\npadding = "same"\n'
    )
    assert other == plain
    assert other.digest == plain.digest


@pytest.mark.parametrize(
    "change", ["kernel = 5", "kernel = [3, 5]", 'norm = "after"', "transition = 2", "repeats = 2"]
)
def test_digest_sees_every_change(change: str) -> None:
    assert SearchSpace.from_toml(STAGE + change).digest != SearchSpace.from_toml(STAGE).digest


def test_survey_counts_what_fits() -> None:
    space = SearchSpace.from_toml("[[stages]]\nblocks = 1\nchannels = [1, 2]\n")
    # 9 + 2 + 20 and 18 + 4 + 30 parameters
    assert space.survey(Budget(30), 200, random.Random(0)) == (200, 0, 0, {"parameters": 31})
    assert space.survey(Budget(52), 200, random.Random(0)) == (200, 200, 31, {"parameters": 31})
    least = {"parameters": 31, "multiply-adds": 14_896, "bytes of RAM": 1_568}
    assert space.survey(Budget(52, 1, max_ram=1), 200, random.Random(0)) == (200, 0, 0, least)
    half = space.survey(Budget(31), 200, random.Random(0))
    assert 60 < half.feasible < 140
    assert half.median_params == 31


@pytest.mark.parametrize(
    ("shape", "budget", "max_macs"),
    [
        ((1, 28, 28), Budget(20_000), 5_000_000),
        ((1, 16, 16), Budget(500), 5_000_000),
        ((3, 64, 64), Budget(20_000), 26_122_449),  # 5,000,000 * 64 * 64 / (28 * 28)
        ((1, 28, 28), Budget(200_000), 50_000_000),
        ((1, 28, 28), Budget(20_000, max_macs=1_000_000), 5_000_000),
        ((1, 28, 28), Budget(20_000, max_macs=6_000_000), None),  # the budget's own counts
    ],
)
def test_draws_fill_the_budget_for_larger_images_and_budgets(
    shape: tuple[int, int, int], budget: Budget, max_macs: int | None
) -> None:
    for name in ("default", "tiny"):
        space = SearchSpace.load_for(name, shape, 10, "own", budget)
        assert space.max_macs == max_macs
        survey = space.survey(budget, 10, random.Random(0))
        assert survey.feasible == 10
        if name == "default" and budget.max_macs is None:
            assert survey.median_params > 0.9 * budget.max_params
    assert SearchSpace.load_for("strided", shape, 10, "own", budget).max_macs is None


def channels(value: str) -> str:
    return f"[[stages]]\nblocks = 1\nchannels = {value}\n"


KERNELS = "1, 3, 5 or 7"
BAD = [  # a text, the key that the message begins with, and more of its words
    ("not toml", "not TOML", ""),
    ("x = " + "[" * 50_000, "not TOML", ""),
    ("", "stages: missing field", ""),
    ("stages = []", "stages: []", ""),
    ("stages = [1]", "stages[0]: 1", ""),
    (STAGE * 13, "stages: ", "at most 12"),
    ("[[stages]]\nblocks = 1\n", "stages[0].channels: missing field", ""),
    ("[[stages]]\nchannels = 4\n", "stages[0].blocks: missing field", ""),
    (STAGE + "colour = 3\n", "stages[0].colour: unknown field", ""),
    ("colour = 3\n" + STAGE, "colour: unknown field", ""),
    (STAGE + "kernel = [3, 4]\n", "stages[0].kernel[1]", f"4 (use {KERNELS})"),
    (STAGE + 'kernel = "3"\n', "stages[0].kernel", f"'3' (use {KERNELS})"),
    (STAGE + "kernel = []\n", "stages[0].kernel: []", "at least one value"),
    (STAGE + "kernel = [3, 3]\n", "stages[0].kernel: [3, 3]", "twice"),
    (STAGE + "dropout = [0, 0.0]\n", "stages[0].dropout: ", "twice"),
    (STAGE + 'bias = "yes"\n', "stages[0].bias", "'yes' ("),
    (STAGE + "dropout = 1.5\n", "stages[0].dropout", "1.5 ("),
    (STAGE + 'downsample = "half"\n', "stages[0].downsample", "'half' (use none, max, average or stride)"),
    (STAGE + 'block = "linear"\n', "stages[0].block", "'linear' (use conv, separable, "),
    ("[head]\nkernel = 2\n" + STAGE, "head.kernel", KERNELS),
    ('[head]\norder = "both"\n' + STAGE, "head.order", "'both' (use conv_then_pool or pool_then_conv)"),
    ("[[stages]]\nblocks = -1\nchannels = 4\n", "stages[0].blocks", "-1 ("),
    ("[[stages]]\nblocks = 17\nchannels = 4\n", "stages[0].blocks", "17 ("),
    (STAGE + "repeats = 17\n", "stages[0].repeats", "17 ("),
    (STAGE + "repeats = 1.0\n", "stages[0].repeats", "1.0 ("),
    (channels("[[4]]"), "stages[0].channels", "[4]"),
    (channels("{ min = 8, max = 4 }"), "stages[0].channels: {'min': 8, 'max': 4}", "empty"),
    (channels("{ min = 8 }"), "stages[0].channels: {'min': 8}", "min, max"),
    (channels("{ min = 8, max = 16, by = 2 }"), "stages[0].channels: ", "step"),
    (channels("{ min = 1, max = 8, step = 0 }"), "stages[0].channels: ", "step is at least 1"),
    (channels("{ min = 1.0, max = 8 }"), "stages[0].channels: ", "whole numbers"),
    (channels("{ min = 0, max = 8 }"), "stages[0].channels", "0 ("),
    (channels(f"{{ min = 1, max = {10**18} }}"), "stages[0].channels: ", "at most 1024 values"),
    ("fill = 0\n" + STAGE, "fill", "0 ("),
    ("fill = [0.5, 1.5]\n" + STAGE, "fill[1]", "1.5 ("),
    ("classes = 10.5\n" + STAGE, "classes: 10.5", ""),
    ("input_shape = 28\n" + STAGE, "input_shape: 28", ""),
]


@pytest.mark.parametrize(("text", "key", "says"), BAD, ids=[key.strip() for _, key, _ in BAD])
def test_bad_toml_is_refused_with_file_and_key(text: str, key: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        SearchSpace.from_toml(text, "my.toml")
    said = str(refused.value)
    assert said.startswith(f"my.toml: {key}")
    assert says in said
    assert "\n" not in said


def test_random_draws_keep_to_what_was_drawn_before() -> None:
    sampler = RandomSampler(random.Random(0))
    values: list[Any] = [sampler.suggest_int("a", 0, 1000, step=10) for _ in range(5)]
    assert len(set(values)) == 1
    assert values[0] % 10 == 0


@pytest.mark.parametrize(
    ("name", "params"),
    [*product(["default", "tiny"], [400, 500, 1_000, 4_000]), ("default", 20_000)],
)
def test_draws_of_a_filled_space_fit_and_fill_the_budget(name: str, params: int) -> None:
    space, budget = SearchSpace.load(name), Budget(params)
    fit, shares = 0, []
    for seed in range(100):
        sampler = RandomSampler(random.Random(seed))
        cost = cost_of(space.draw(sampler, budget))
        fit += budget.fits(cost)
        shares.append(cost.params / params / float(sampler.params.get("fill", 1.0)))
    assert fit >= 95
    assert max(shares) <= 1 or params < 500
    assert sorted(shares)[50] > 0.93


def test_a_network_is_scaled_to_the_widest_that_fits(reference: Architecture) -> None:
    counted = {cost_of(scale_widths(reference, factor / 1000)).params for factor in range(100, 3_000)}
    for params in (300, 1_000, 19_121, 19_122, 100_000):
        chosen = fit_width_multiplier(reference, Budget(params))
        assert cost_of(chosen).params <= params
        assert [type(block) for block in chosen.blocks] == [type(block) for block in reference.blocks]
        assert cost_of(chosen).params >= max((count for count in counted if count <= params), default=0)
    assert fit_width_multiplier(reference, Budget(19_122)) == reference
    assert fit_width_multiplier(reference, Budget(1)) == fit_width_multiplier(reference, Budget(2))
    assert cost_of(fit_width_multiplier(reference, Budget(1))) == cost_of(scale_widths(reference, 0))


def test_relative_widths_count_and_absolute_ones_do_not() -> None:
    texts = [f"fill = 1.0\n{channels(str(width))}{channels(str(2 * width))}" for width in (1, 10)]
    spaces, sampler = map(SearchSpace.from_toml, texts), RandomSampler(random.Random(0))
    one, ten = (space.draw(sampler, Budget(2_000)) for space in spaces)
    assert [block.channels for block in one.blocks] == [block.channels for block in ten.blocks]


@pytest.mark.parametrize("name", ["default", "tiny", "strided"])
def test_draws_for_a_device_fit_it_and_use_what_the_memory_leaves(name: str) -> None:
    budget = Budget(20_000, max_flash=32 << 10, max_ram=16 << 10)
    drawn = [
        cost_of(SearchSpace.load(name).draw(RandomSampler(random.Random(seed)), budget)) for seed in range(12)
    ]
    assert all(budget.fits(cost) for cost in drawn)
    assert median(cost.flash for cost in drawn) > 18_000  # one multiplier for all widths: half of that
