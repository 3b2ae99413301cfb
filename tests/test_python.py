"""The package from Python: public names, a search with a sampler of one's own, scripts and notebooks."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from conftest import SEARCH, TINY_RECIPE, TINY_SPACE, Runner, empty_figure, furnish, run_in_one, run_python

import nas_mnist as nm
from nas_mnist.study.samplers import Tuning, make_sampler

FRESH = """
import sys, nas_mnist as nm
assert not {'torch', 'optuna', 'numpy', 'pandas'} & set(sys.modules), 'heavy'
assert dir(nm) == sorted(nm.__all__)
assert all(getattr(nm, name).__doc__ for name in dir(nm))
assert nm.__version__
"""
SCRIPT = """
from operator import methodcaller
from nas_mnist.core.process_pool import run_workers
print('once')
run_workers(methodcaller('next_job'), 2, 2, {})
"""


class Smallest(optuna.samplers.BaseSampler):
    """Always the least value; counts its calls."""

    def infer_relative_search_space(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:  # noqa: ARG002
        first = getattr(distribution, "choices", None)
        return first[trial.number % len(first)] if first else distribution.low + trial.number % 3


class EveryTrial(optuna.pruners.BasePruner):
    """Stops every trial but the first two."""

    def prune(self, study: Any, trial: Any) -> bool:  # noqa: ARG002
        return bool(trial.number > 1)


OPTIONS: dict[str, Any] = {
    "trials": 3,
    "dataset": "mnist-5k",
    "device": "cpu",
    "space": "space.toml",
    "recipe": "recipe.toml",
    "epochs": 2,
    "max_params": 15_000,
    "finalists": 1,
    "workers": 1,
    "quiet": True,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nm.Found]:
    folder = tmp_path_factory.mktemp("python")
    (folder / "space.toml").write_text(TINY_SPACE)
    (folder / "recipe.toml").write_text(TINY_RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module in ("search.pipeline", "search.finals", "training.jobs"):
            patch.setattr(f"nas_mnist.{module}.run_workers", run_in_one)
        patch.setattr("matplotlib.figure.Figure.savefig", empty_figure)
        yield nm.run_search(sampler=Smallest(), pruner=EveryTrial(), **OPTIONS)


def test_every_public_name_has_a_docstring_and_importing_them_is_light(tmp_path: Path) -> None:
    ended = run_python(["-c", FRESH], tmp_path)
    assert (ended.code, ended.err) == (0, "")


def test_a_script_needs_no_guard_around_its_main_part(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = run_python(["script.py"], tmp_path)
    assert (ended.code, ended.out, ended.err) == (0, "once\n", "")


def test_a_search_hands_over_what_it_found(found: nm.Found) -> None:
    winner = found.winner
    assert winner.cost == nm.cost_of(winner.architecture)
    assert winner.cost.params <= 15_000
    assert winner.test_accuracy is not None
    assert found.smallest is None
    with Path("reports/nas_mnist/trials.csv").open() as file:
        columns = next(csv.reader(file))
    assert [*found.trials.columns] == columns
    assert len(found.trials) == len(found.study.trials)
    costs = [one.cost.params for one in found.front]
    assert costs == sorted(costs)
    images = nm.load_data("mnist-5k").read_test()
    scores = winner.module()(images.images)
    right = float((scores.argmax(1) == images.labels).float().mean())
    assert right == pytest.approx(winner.test_accuracy)
    assert torch.equal(scores.argmax(1), winner.classifier()(images.images).argmax(1))
    winner.export("safetensors", "w.safetensors")
    assert nm.resolve("w.safetensors").architecture == winner.architecture
    assert found.report().name == "report.html"
    with pytest.raises(nm.NoResultError, match="has no weights"):
        found.front[0].module()


def test_a_sampler_and_a_pruner_of_ones_own_decide(found: nm.Found) -> None:
    trials = found.study.trials
    first = [name for name in trials[0].params if "channels" in name]
    assert first
    for trial in trials:
        low = {name: trial.distributions[name].low for name in first if name in trial.distributions}
        assert all(trial.params[name] == low[name] + trial.number % 3 for name in low)
    assert found.trials["verdict"].tolist().count("trained") == 2
    assert found.config.sampler == found.study.user_attrs["sampler"] == f"{__name__}:Smallest"


def test_the_study_keeps_the_call_that_continues_it(found: nm.Found) -> None:
    call = found.study.user_attrs["command"]
    assert call.startswith("nm.run_search(trials=3, max_params=15000, ")
    assert call.endswith("sampler=Smallest(...), pruner=EveryTrial(...))")
    assert "quiet" not in call
    assert repr(found).startswith("<study 'nas_mnist': most_accurate trial-")
    own = {"Smallest": Smallest, "EveryTrial": EveryTrial, "nm": SimpleNamespace(run_search=dict)}
    again = eval(call.replace("(...)", "()"), own)
    assert again.items() >= {name: OPTIONS[name] for name in OPTIONS if name != "quiet"}.items()


@pytest.mark.usefixtures("one_process")
def test_a_sampler_that_fails_is_told_with_its_line(work: Path, invoke: Runner) -> None:
    furnish(work)
    (work / "failing.py").write_text(
        "import optuna\n\n\nclass Failing(optuna.samplers.RandomSampler):\n"
        "    def sample_independent(self, *_):\n        raise KeyError('my choice')\n"
    )
    ended = invoke("search", *SEARCH, "--sampler", "failing:Failing", "--trials", 1, "--workers", 1)
    assert ended.code == 1
    assert "the sampler or pruner failed: KeyError: 'my choice'" in ended.err
    assert "failing.py, line 6)" in ended.err
    assert "Traceback" not in ended.out + ended.err


def test_a_search_from_python_refuses_what_cannot_be_used(work: Path) -> None:
    for options, says in [
        ({"max_parms": 3}, "max_parms"),
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"sampler": "nomodule:Nope"}, "--sampler: 'nomodule:Nope' cannot be imported"),
        ({"sampler": 3}, "sampler: 3"),
        ({"sampler": "json:JSONDecoder"}, "is no sampler"),
        ({"pruner": "median"}, "pruner: 'median'"),
        ({"pruner": EveryTrial}, r"use an object, as optuna.pruners.MedianPruner\(\)"),
        ({"config": "mnist"}, "config: 'mnist' "),
        ({"pruner": EveryTrial(), "objective": "macs"}, "one objective"),
    ]:
        with pytest.raises(nm.InputError, match=says):
            nm.run_search(**options)
    assert not any(work.iterdir())


def test_samplers_draw_by_their_seed() -> None:
    def drawn(what: Any, seed: int) -> list[float]:
        study = optuna.create_study(sampler=make_sampler(what, seed))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        return [trial.params["x"] for trial in study.trials]

    for what in ("tpe", "optuna.samplers:RandomSampler", optuna.samplers.QMCSampler):
        assert drawn(what, 1) == drawn(what, 1)
        assert drawn(what, 1) != drawn(what, 2)
    given = optuna.samplers.RandomSampler(seed=0)
    state = Tuning(given).pickled()
    assert drawn(given, 1) != drawn(given, 1)  # renewed: a continued study does not repeat its draws
    assert Tuning(given).pickled() == state


def test_a_class_of_ones_own_is_found_in_the_working_folder(work: Path) -> None:
    (work / "my_sampler.py").write_text(
        "import optuna\n\n\nclass Mine(optuna.samplers.RandomSampler):\n"
        "    def __init__(self, seed):\n        self.given = seed\n        super().__init__(seed=seed)\n"
    )
    assert nm.SearchConfig.make(sampler="my_sampler:Mine").sampler == "my_sampler:Mine"
    assert vars(make_sampler("my_sampler:Mine", 7))["given"] == 7
    with pytest.raises(nm.InputError, match="--trials: 0"):
        nm.SearchConfig.make(trials=0)


@pytest.mark.usefixtures("no_figures", "one_process")
def test_the_tutorial_runs(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The notebook's cells in order; the work of its worker process is done in this one."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("NAS_MNIST_ENGINE", "torch")  # compiles no kernels
    notebook = json.loads((Path(nm.__file__).parent / "tutorial.ipynb").read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    out = capsys.readouterr().out
    assert "bottleneck" in out
    assert "reports/tutorial/report.html" in out
    assert len(names["found"].study.trials) >= 3
    assert names["found"].winner.cost.params <= 1_500
    assert (work / "winner.safetensors").exists()


def test_the_console_script_is_the_command(tmp_path: Path) -> None:
    import tomllib

    scripts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["nas-mnist"].split(":")
    code = f"import sys; sys.argv[0] = 'nas-mnist'; from {module} import {function}; {function}()"
    ended = run_python(["-c", code, "describe", "mnist-500", "--json"], tmp_path)
    assert (ended.code, json.loads(ended.out)["cost"]["params"]) == (0, 498)
    ended = run_python(["-c", code, "--version"], tmp_path)
    assert (ended.code, ended.out.startswith("python 3.")) == (0, True)


def test_a_notebook_shows_one_bar_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    from nas_mnist.report.progress import LiveDisplay, make_console

    shown: list[str] = []
    cell = SimpleNamespace(update=lambda bars: shown.append(bars._repr_mimebundle_([], [])["text/plain"]))
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace(kernel=1), raising=False)
    monkeypatch.setattr(display, "display", lambda *_, **__: cell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with LiveDisplay(make_console(), "trials", 2) as bars:
        bars.step()
        bars.step()
    assert "1/2" in shown[0]
    assert "2/2" in shown[-1]
