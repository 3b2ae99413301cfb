"""Distillation: the loss, the teacher's training, and the commands that know of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Runner
from torch.nn import functional as F

from nas_mnist import Architecture
from nas_mnist.core.errors import InputError
from nas_mnist.data.dataset import DataSet
from nas_mnist.models.network import Network, build, side_by_side
from nas_mnist.models.zoo import Entry
from nas_mnist.recipes.recipe import Augmentation, Distillation, Recipe, load_recipe, make_recipe
from nas_mnist.training import teaching
from nas_mnist.training.evaluate import Normalizer
from nas_mnist.training.loop import train
from nas_mnist.training.step import Lessons, Step
from nas_mnist.training.teaching import Teacher, teacher_of, train_teacher

SMALL = Architecture.make({"blocks": [{"kind": "conv", "channels": 4, "stride": 2}, {"kind": "pool"}]})
WIDE = Architecture.make({"blocks": [{"kind": "conv", "channels": 12, "stride": 2}, {"kind": "pool"}]})
PLAIN = Recipe(epochs=2, batch_size=50, learning_rate=0.05)
TAUGHT = PLAIN.model_copy(
    update={"distillation": Distillation(teacher="mnist-1k", share=0.6, temperature=2.0)}
)


def test_a_teacher_s_share_of_the_loss_is_the_one_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, known = (torch.randn(7, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.arange(7)
    losses = F.cross_entropy(scores, labels, reduction="none")

    class Knows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return known

    lessons = Lessons(Knows(), TAUGHT.distillation, plain=True)  # type: ignore[arg-type]
    found = lessons(losses, scores, torch.zeros(7, 1, 2, 2))
    wanted = known.div(2).exp() / known.div(2).exp().sum(1, keepdim=True)
    log = scores.div(2) - scores.div(2).exp().sum(1, keepdim=True).log()
    expected = 0.4 * losses - 0.6 * 4 * (wanted * log).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def learned(recipe: Recipe, data: DataSet, teacher: Network | None, **options: Any) -> list[float]:
    model = build(SMALL, 1)
    return [
        epoch.train_loss for epoch in train(model, data.train, recipe, seed=1, teacher=teacher, **options)
    ]


def test_the_engine_learns_from_a_teacher_what_a_plain_loop_learns(tiny_data: DataSet) -> None:
    teacher = build(WIDE, 5).eval()
    model, normalize = build(SMALL, 1).train(), Normalizer.of(tiny_data.train.images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    recipe = TAUGHT.model_copy(update={"schedule": "constant", "epochs": 1})
    order = torch.randperm(len(tiny_data.train), generator=torch.Generator().manual_seed(1))
    losses = []
    for picked in order.split(50):
        if len(picked) < 50:
            continue
        images, labels = normalize(tiny_data.train.images[picked]), tiny_data.train.labels[picked]
        scores = model(images)
        with torch.no_grad():
            wanted = (teacher(images) / 2).softmax(1)
        loss = 0.4 * F.cross_entropy(scores, labels) + 0.6 * 4 * F.cross_entropy(scores / 2, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    (found,) = learned(recipe, tiny_data, teacher)
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    (plainly,) = learned(recipe, tiny_data, teacher, plain=True)
    assert plainly == pytest.approx(found, rel=1e-4)
    (other,) = learned(recipe, tiny_data, build(WIDE, 6).eval())
    assert abs(other - found) > 1e-3


def test_seeds_side_by_side_hear_the_teacher_on_their_own_images(tiny_data: DataSet) -> None:
    """As apart, with augmentation: every copy's images are augmented in its own way."""
    recipe = TAUGHT.model_copy(update={"augmentation": Augmentation(rotate=10, translate=0.1)})
    teacher = build(WIDE, 5).eval()

    def losses(seeds: list[int]) -> list[float]:
        model = side_by_side([build(SMALL, seed) for seed in seeds])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        step = Step(model, tiny_data.train, recipe, generators, teacher=teacher)
        step.begin_epoch()
        step.run(3)
        found: list[float] = step.loss.tolist()
        return found

    assert losses([1, 2]) == pytest.approx(losses([1]) + losses([2]), rel=1e-4)


def test_a_recipe_and_its_teacher_come_together(tiny_data: DataSet) -> None:
    with pytest.raises(ValueError, match="teacher"):
        learned(TAUGHT, tiny_data, None)
    with pytest.raises(ValueError, match="teacher"):
        learned(PLAIN, tiny_data, build(WIDE, 5))


def test_a_teacher_is_trained_by_its_own_recipe_on_the_images_of_the_student(
    tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "load", lambda name: Entry(name, "", WIDE, "seed"))
    named = teacher_of(TAUGHT)
    assert named == (WIDE, load_recipe("seed").with_epochs(2))
    assert teacher_of(PLAIN) is None
    assert train_teacher(PLAIN, tiny_data.train) is None
    heard: list[tuple[str, int]] = []
    teacher = train_teacher(TAUGHT, tiny_data.train, lambda name, result: heard.append((name, result.epoch)))
    assert teacher is not None
    assert heard == [("teacher mnist-1k", 1), ("teacher mnist-1k", 2)]
    expected = build(WIDE, teaching.SEED)
    list(train(expected, tiny_data.train, named[1], seed=teaching.SEED))
    network = teacher.network(torch.device("cpu"))
    assert not network.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_a_teacher_s_own_teacher_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = "seed:distillation.teacher=mnist-2k"
    monkeypatch.setattr(teaching, "load", lambda name: Entry(name, "", WIDE, recipe))
    named = teacher_of(TAUGHT)
    assert named is not None
    assert named[1] == load_recipe("seed").with_epochs(2)


def test_recipes_without_a_teacher_are_stored_as_before_there_were_teachers() -> None:
    assert "distillation" not in PLAIN.model_dump()
    assert "distillation" not in json.loads(load_recipe("tiny:distillation.share=0.2").model_dump_json())
    assert make_recipe(TAUGHT.model_dump(mode="json"), "") == TAUGHT
    assert load_recipe("default").digest == "7c57add8451ebdf7"
    assert PLAIN.digest == PLAIN.model_copy(update={"distillation": Distillation(share=0.2)}).digest
    assert TAUGHT.digest != PLAIN.digest
    changed = TAUGHT.distillation.model_copy(update={"share": 0.2})
    assert TAUGHT.model_copy(update={"distillation": changed}).digest != TAUGHT.digest


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"teacher": "nobody"}, "distillation.teacher: 'nobody' (use mnist-10k, "),
        ({"teacher": "mnist-1k", "share": 0}, "distillation.share: 0"),
        ({"teacher": "mnist-1k", "share": 1.1}, "distillation.share: 1.1"),
        ({"teacher": "mnist-1k", "temperature": 0}, "distillation.temperature: 0"),
        ({"pupil": 1}, "distillation.pupil"),
    ],
)
def test_bad_teaching_is_said(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        make_recipe({"distillation": fields}, "r.toml")
    assert said in str(error.value)


@pytest.mark.parametrize("command", ["search --trials 1", "bench record"])
def test_candidates_have_no_teacher(command: str, work: Path, invoke: Runner) -> None:
    words = command.split()
    name, options = (command, []) if words[0] == "bench" else (words[0], words[1:])
    recipe = "tiny:distillation.teacher=mnist-1k"
    ended = invoke(name, *options, "--recipe", recipe, "--dataset", "mnist-5k")
    assert ended.code == 2
    assert "distillation.teacher 'mnist-1k'" in ended.err
    assert list(work.iterdir()) == []


@pytest.mark.usefixtures("one_process")
def test_reproduce_and_recipes_train_the_teacher_first(
    work: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "net.json").write_text(SMALL.to_json())
    monkeypatch.setattr(teaching, "load", lambda name: Entry(name, "", WIDE, "seed"))
    recipe = "seed:epochs=1,distillation.teacher=mnist-1k"
    common = ["--dataset", "mnist-5k", "--seeds", 2, "--workers", 1]
    ended = invoke("reproduce", "net.json", "--recipe", recipe, *common)
    assert (ended.code, ended.err) == (0, "")
    assert "teacher mnist-1k  epoch  1/1" in ended.out
    (file,) = (work / "reports").glob("net*/result.json")
    result = json.loads(file.read_text())
    assert result["recipe"]["distillation"]["teacher"] == "mnist-1k"
    assert "teacher" in (file.parent / "report.html").read_text()
    ended = invoke("bench recipes", "net.json", recipe, "seed:epochs=1", "--table", "r.csv", *common)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("teacher mnist-1k  epoch  1/1") == 1
    assert len((work / "r.csv").read_text().splitlines()) == 5


@pytest.mark.usefixtures("one_process")
def test_a_teacher_that_does_not_take_the_images_is_said(work: Path, invoke: Runner, monkeypatch) -> None:
    colour = Architecture.make({"input_shape": [3, 28, 28], "blocks": [{"kind": "conv", "channels": 4}]})
    monkeypatch.setattr(teaching, "load", lambda name: Entry(name, "", colour, "seed"))
    (work / "net.json").write_text(SMALL.to_json())
    recipe = "seed:epochs=1,distillation.teacher=mnist-1k"
    ended = invoke("reproduce", "net.json", "--recipe", recipe, "--dataset", "mnist-5k")
    assert ended.code == 2
    assert ended.err.startswith("error: teacher mnist-1k: input_shape 3 x 28 x 28")


def test_a_teacher_goes_to_other_processes_as_plain_data() -> None:
    import pickle

    network = build(WIDE, 3)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    again = pickle.loads(pickle.dumps(Teacher(WIDE, weights))).network(torch.device("cpu"))
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(again(images), network.eval()(images))
