"""Reports: the page, its figures, the tables, the live displays and the notes of the dashboard."""

from __future__ import annotations

import copy
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import STUDY_FACTS, TRIALS, Ended, Runner
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import FancyArrowPatch
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note
from rich.console import Console

from nas_mnist import Architecture
from nas_mnist.data.class_names import class_names
from nas_mnist.models import zoo
from nas_mnist.models.cost import Cost
from nas_mnist.report import result_plots, study_plots
from nas_mnist.report.diagram import diagram_rows, draw_network
from nas_mnist.report.figures import evenly_spread
from nas_mnist.report.items import item_of_result, item_of_study, requirements_of
from nas_mnist.report.notes import space_json, trial_note
from nas_mnist.report.progress import Pace
from nas_mnist.report.search_display import SearchDisplay
from nas_mnist.report.sections import sections_of
from nas_mnist.report.tables import zoo_table
from nas_mnist.report.write import study_folder
from nas_mnist.space.space import SearchSpace
from nas_mnist.study.importance import param_importances
from nas_mnist.study.results import TrialRow, pareto_front, trial_rows, winner_of
from nas_mnist.study.study import load_study
from nas_mnist.study.verdict import Verdict
from nas_mnist.training.evaluate import Score
from nas_mnist.training.loop import EpochResult
from nas_mnist.training.run_store import read_result

VOID = {"meta", "br", "img", "link", "hr"}
SECTIONS = [
    "Requirements", "Results by seed", "Network", "Search", "Test errors", "Best candidates", "Reproduction",
]  # fmt: skip


class Page(HTMLParser):
    """Headings, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text()
    return text, Page(text)


def test_the_page_has_every_section_and_asks_no_network(finished: tuple[Path, Ended]) -> None:
    text, page = read(finished[0] / "reports" / "nas_mnist" / "report.html")
    assert page.open == []
    assert page.headings == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", text)
    for figure in ("network", "learning-curves", "accuracy-parameters", "spending", "confusion", "mistakes"):
        assert f'<figure data-figure="{figure}">' in text
    assert "NOT FULL MNIST" in text
    assert "python -m nas_mnist.search --dataset mnist-5k" in text


@pytest.mark.parametrize("number", [0, 1, 59, 60, 61, 500])
def test_mistakes_that_are_shown_are_spread_over_all(number: int) -> None:
    shown = evenly_spread(number, 60)
    assert len(shown) == len(set(shown)) == min(number, 60)
    assert all(0 <= position < number for position in shown)
    assert not shown or number - max(shown) <= -(-number // 60)


def test_tables_of_a_study_have_stable_names_and_every_trial(finished: tuple[Path, Ended]) -> None:
    folder = finished[0] / "reports" / "nas_mnist"
    study = optuna.load_study(study_name="nas_mnist", storage=f"sqlite:///{finished[0]}/studies/nas_mnist.db")
    rows = trial_rows(study)
    table = pd.read_csv(folder / "trials.csv")
    assert list(table.columns) == [
        name for name in TrialRow.__slots__ if name not in ("architecture", "recipe")
    ]
    assert list(table["trial"]) == [row.trial for row in rows]
    summary = json.loads((folder / "summary.json").read_text())
    assert sum(summary["trials"].values()) == len(rows)
    assert summary["images"] == table["images"].sum() > 0
    assert summary["winner"]["validation_accuracy"] == table["validation_accuracy"].max()
    assert set(summary) == {
        "study", "trials", "epochs", "images", "seconds", "winner", "finals", "front", "test_accuracy",
        "requirements", "importances", "identity", "seed", "recipe", "space", "data", "device", "versions",
    }  # fmt: skip


def test_classes_are_called_by_their_names_where_they_have_some() -> None:
    names = class_names("fashion-mnist", 10)
    assert (names[0], names[9]) == ("T-shirt", "ankle boot")
    assert class_names("emnist-letters", 26)[25] == "Z"
    assert class_names("mnist", 10) == class_names("fashion-mnist", 10)[:0] + tuple("0123456789")
    assert class_names("fashion-mnist", 3) == ("0", "1", "2")
    figure = result_plots.confusion([[5] * 10] * 10, names)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == list(names)
    found = [{"label": 9, "predicted": 7, "confidence": 0.8, "image": 3}]
    figure = result_plots.misclassified(np.zeros((1, 28, 28), dtype=np.uint8), found, names)
    assert [text.get_text() for text in figure.axes[0].texts] == ["ankle boot\nas sneaker\n80% sure"]


def test_the_zoo_stands_beside_what_others_have_published(work: Path, invoke: Runner) -> None:
    ended = invoke("report", "zoo")
    assert (ended.code, ended.err) == (0, "")
    assert "Written: reports/zoo/report.html" in ended.out
    page = (work / "reports" / "zoo" / "report.html").read_text()
    assert all(name in page for name in zoo.names())
    assert (
        "published, one seed: last epoch"
        in (work / "reports" / "zoo" / "plots" / "comparison.svg").read_text()
    )
    alone = result_plots.comparison(["a"], [5], [{"mean": 0.9, "interval": None}])
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["a"]


def test_no_mistake_at_all_is_drawn_as_no_error() -> None:
    figure = study_plots.learning_curves({0: {1: 0.9, 2: 1.0}, 1: {1: 1.0}}, [0], 2)
    (axes,) = figure.axes
    assert min(min(line.get_ydata(), default=1) for line in axes.lines) == 0
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "linear"
    assert -high / 20 < low < 0  # the line at zero is seen whole


def test_the_shortcut_of_a_residual_block_is_drawn_within_the_figure() -> None:
    block = {"kind": "residual", "body": [{"kind": "conv", "channels": 8, "stride": 2}]}
    figure = draw_network(Architecture.make({"blocks": [{"kind": "conv", "channels": 4}, block]}))
    figure.draw_without_rendering()
    (arrow,) = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    inside, drawn = figure.axes[0].get_window_extent(), arrow.get_window_extent()
    assert inside.x0 <= drawn.x0 < drawn.x1 <= inside.x1
    assert drawn.height > 10


def test_a_studys_own_budget_is_among_the_requirements(finished: tuple[Path, Ended]) -> None:
    study = load_study(f"sqlite:///{finished[0]}/studies/nas_mnist.db", "nas_mnist")
    item = item_of_study(study, None)
    assert item.study is not None
    limits = {"max_params": 5, "max_macs": 10**9, "max_memory": 7}
    metadata = {**item.study.metadata, "identity": item.study.metadata["identity"] | limits}
    small = replace(item, study=replace(item.study, metadata=metadata))
    met = {one["what"]: one["met"] for one in requirements_of(small)}
    assert met["parameters <= 5, the budget"] is False
    assert met["multiply-adds <= 1,000,000,000, the budget"] is True
    assert met["bytes of peak memory <= 7, the budget"] is False


def test_figures_come_as_png_and_svg(finished: tuple[Path, Ended]) -> None:
    files = list((finished[0] / "reports" / "nas_mnist" / "plots").iterdir())
    assert {path.stem for path in files if path.suffix == ".png"} == {
        path.stem for path in files if path.suffix == ".svg"
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files if path.suffix == ".png")
    assert all(b"<svg" in path.read_bytes() for path in files if path.suffix == ".svg")


def test_a_report_is_made_anew_in_its_place_and_touches_nothing_else(copied: Path, invoke: Runner) -> None:
    before = {
        path: path.read_bytes()
        for path in copied.rglob("*")
        if path.is_file() and "studies" not in path.parts
    }
    (copied / "reports" / "nas_mnist" / "report.html").unlink()
    ended = invoke("report")
    assert (ended.code, ended.err) == (0, "")
    assert "Best candidates" in ended.out
    assert "Written: reports/nas_mnist/report.html" in ended.out
    after = {
        path: path.read_bytes()
        for path in copied.rglob("*")
        if path.is_file() and "studies" not in path.parts
    }
    assert set(before) == set(after)
    assert {path for path, content in before.items() if after[path] != content} <= {
        copied / "reports" / "nas_mnist" / "report.html"
    }


def test_several_items_stand_side_by_side(copied: Path, invoke: Runner) -> None:
    result = next((copied / "reports" / "nas_mnist").glob("trial-*"))
    ended = invoke("report", "reference", result.relative_to(copied), "--study", "nas_mnist")
    assert (ended.code, ended.err) == (0, "")
    name = f"reference-and-{result.name}-and-nas_mnist"
    text, page = read(copied / "reports" / name / "report.html")
    assert page.open == []
    assert "<h1>Comparison</h1>" in text
    table = text[: text.index("</table>")]
    assert "19,122" in table
    assert table.count('<tr><td class="name">') == 3


def test_the_same_result_twice_has_two_names_and_a_picture_that_compares(
    copied: Path, invoke: Runner
) -> None:
    result = next((copied / "reports" / "nas_mnist").glob("trial-*")).relative_to(copied)
    ended = invoke("report", result, result)
    assert (ended.code, ended.err) == (0, "")
    folder = copied / "reports" / f"{result.name}-and-{result.name}"
    drawn = {path.name for path in (folder / "plots").iterdir()}
    assert {f"{result.name}-network.png", f"{result.name} (2)-network.png", "comparison.svg"} <= drawn
    assert 'data-figure="comparison"' in (folder / "report.html").read_text()


def test_a_winner_that_was_scored_once_has_no_best_epoch(finished: tuple[Path, Ended]) -> None:
    (folder,) = (finished[0] / "reports" / "nas_mnist").glob("trial-*")
    (run,) = json.loads((folder / "result.json").read_text())["runs"]
    assert [epoch["test_accuracy"] is not None for epoch in run["epochs"]] == [False, True]
    assert run["best_epoch_chosen_on_test"] is None
    assert "chosen on the test images" not in (folder.parent / "report.html").read_text()


def test_the_live_display_fits_into_80_columns_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=80, force_terminal=True, record=True)
    candidate = Cost(params=19_999, macs=1, peak_memory=1, receptive_field=1)
    display = SearchDisplay(console, 100, 20, [])
    display.candidate(123, candidate)
    score = Score(loss=0.1, correct=9_963, count=10_000)
    display.epoch(123, EpochResult(20, 0.1, 0.1, 1.0, 2_468, score))
    with monkeypatch.context() as later:
        later.setattr("time.monotonic", lambda: display.pace.started + 4_000)
        console.print(*display.progress.get_renderables())
    lines = console.export_text().splitlines()
    assert len(lines) == 3
    assert "1:06:40 elapsed" in lines[0]
    assert lines[-1].endswith("99.63%, 2,468 images/s")


def test_time_left_counts_down_while_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = Pace()
    assert (pace.left(3), pace.fraction()) == (None, 0.0)
    now[0] = 110.0
    pace.step()
    assert (pace.left(3), pace.fraction()) == (30.0, 0.0)
    now[0] = 114.0
    assert (pace.left(3), pace.fraction()) == (26.0, 0.4)
    now[0] = 200.0  # the step takes longer than the others
    assert (pace.left(3), pace.fraction()) == (0.0, 0.95)
    pace.step()
    assert pace.left(2) == 100.0


def test_without_a_terminal_every_line_has_the_time_and_the_best_candidate() -> None:
    console = Console(file=io.StringIO(), width=200)
    display = SearchDisplay(console, 5, 20, [])
    row = TrialRow(
        trial=3, verdict=Verdict.TRAINED, reason="", n_params=900, excess=-100, macs=1, peak_memory=1,
        epochs=20, images=9, validation_accuracy=0.9912, validation_loss=0.1, seconds=1.0, key="k",
        architecture=None, recipe=None,
    )  # fmt: skip
    display.ended(row)
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line.endswith("trained  (0:00 elapsed, best 99.12% (900 parameters))")


def test_the_space_in_a_studys_note_is_json_in_few_lines() -> None:
    space = SearchSpace.load("filled").model_dump(mode="json")
    text = space_json(space)
    assert json.loads(text) == space
    assert text.count("\n") < 40
    assert max(map(len, text.splitlines())) <= 100  # longer ones would widen the dashboard


def test_a_study_without_a_winner_says_so(work: Path, invoke: Runner) -> None:
    study = optuna.create_study(study_name="empty", storage=f"sqlite:///{work}/empty.db")
    for name, value in (STUDY_FACTS | {"recipe": {"epochs": 2}, "versions": {}, "command": "search"}).items():
        study.set_user_attr(name, value)
    ended = invoke("report", "--study", "empty", "--storage", f"sqlite:///{work}/empty.db")
    assert (ended.code, ended.err) == (0, "")
    assert "no winner yet" in (work / "reports" / "empty" / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is not JSON"), ("[]", "lacks"), ('{"name": "x"}', "lacks architecture"), ("\x00", "is not JSON")],
)
def test_a_strange_result_is_refused_in_one_line(work: Path, invoke: Runner, content: str, says: str) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "result.json").write_text(content)
    ended = invoke("report", "mine")
    assert ended.code == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert {path.name for path in (work / "mine").iterdir()} == {"result.json"}


def test_the_diagram_has_every_block_and_all_parameters(reference: Architecture) -> None:
    rows = diagram_rows(reference)
    assert sum(row.params for row in rows) == 19_122
    assert len(rows) == len(reference.blocks) + 2
    assert rows[0].shape == (1, 28, 28)
    assert rows[-1].shape == (10, 1, 1)
    assert "no fully connected layer" in rows[-1].details


def test_an_older_result_with_runs_of_several_machines_is_shown(finished: tuple[Path, Ended]) -> None:
    (folder,) = (finished[0] / "reports" / "nas_mnist").glob("trial-*")
    result = read_result(folder / "result.json")
    run = result["runs"][0]
    added = run | {"seed": 1, "by": {"device": "cuda", "versions": {"torch": "1"}, "command": "x"}}
    (section,) = sections_of([item_of_result(result | {"runs": [run, added]}, "old", None)])
    assert section.metadata["seeds"] == "0, 1"


def test_the_best_of_a_study_is_reported_with_the_study(work: Path, invoke: Runner) -> None:
    ended = invoke("report", "best")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "--study" in ended.err
    assert list(work.iterdir()) == []


def row(trial: int, n_params: int, accuracy: float) -> TrialRow:
    return TrialRow(trial, Verdict.TRAINED, "", n_params, 0, 0, 0, 1, 1, accuracy, 0.0, 0.0, None, None, None)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=30))
def test_nothing_beats_the_pareto_front(points: list[tuple[int, float]]) -> None:
    rows = [row(trial, *point) for trial, point in enumerate(points)]
    front = pareto_front(rows)
    assert bool(front) == bool(rows)
    for one in front:
        assert not any(
            other.n_params <= one.n_params
            and other.validation_accuracy >= one.validation_accuracy
            and (other.n_params, other.validation_accuracy) != (one.n_params, one.validation_accuracy)
            for other in rows
        )
    for one in rows:
        assert any(
            best.n_params <= one.n_params and best.validation_accuracy >= one.validation_accuracy
            for best in front
        )


def test_the_winner_is_the_best_mean_among_those_with_the_most_seeds() -> None:
    lucky, steady, small, late = (
        replace(row(number, params, accuracy), key=key)
        for number, params, accuracy, key in [
            (0, 90, 0.997, "lucky"),
            (1, 80, 0.996, "steady"),
            (2, 70, 0.996, "small"),
            (3, 60, 0.999, "late"),
        ]
    )
    rows = [lucky, steady, small]
    finals = {"lucky": {"1": 0.991}, "steady": {"1": 0.996}}
    assert winner_of([], {}) is None
    assert winner_of(rows, {}) is lucky
    assert winner_of(rows, finals) is steady
    assert winner_of([*rows, late], finals) is steady
    assert winner_of(rows, finals | {"small": {"1": 0.996}}) is small
    assert winner_of(rows, {"lucky": {"1": 0.99}, "steady": {"1": 0.9901}}, low_fidelity=True) is steady
    assert winner_of(rows, {"lucky": {"1": 0.99}}, low_fidelity=True) is lucky
    assert winner_of(rows, {}, low_fidelity=True) is lucky


def test_importances_find_the_choice_that_matters() -> None:
    study = optuna.create_study(direction="maximize")
    for number in range(40):
        trial = study.ask()
        matters = trial.suggest_int("matters", 0, 9)
        trial.suggest_int("does_not", 0, 9)
        if number % 2:
            trial.report(1 - (matters - 3) ** 2 / 100, 2)  # after a tenth of 20 epochs
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    shares = param_importances(study, 20)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.__getitem__) == "matters"


def test_the_dashboard_finds_notes_and_learning_curves(finished: tuple[Path, Ended]) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{finished[0]}/studies/nas_mnist.db")
    study = optuna.load_study(study_name="nas_mnist", storage=storage)
    note = get_note(study)
    assert "At most 20,000 parameters" in note
    assert "python -m nas_mnist.search --dataset mnist-5k" in note
    counted = 0
    for trial in study.trials:
        note = get_note(optuna.trial.Trial(study, trial._trial_id))
        assert f"**{trial.user_attrs['verdict']}**" in note
        assert f"{trial.user_attrs['n_params']:,} parameters" in note
        pictures = get_all_artifact_meta(trial, storage=storage)
        assert len(pictures) == bool(trial.intermediate_values)
        for picture in pictures:
            assert picture.mimetype == "image/png"
            file = finished[0] / "studies" / "artifacts" / picture.artifact_id
            assert file.read_bytes().startswith(b"\x89PNG")
        counted += Verdict(trial.user_attrs["verdict"]).counts
    assert counted == TRIALS


def test_the_zoo_is_a_table_that_says_what_was_measured(invoke: Runner) -> None:
    ended = invoke("reproduce", "--list")
    assert (ended.code, ended.err) == (0, "")
    (line,) = (line for line in ended.out.splitlines() if line.strip().startswith("reference"))
    assert line.split() == [
        "reference",
        "19,122",
        "5,070,912",
        "published",
        "5",
        "99.420",
        "0.098",
        "99.298-99.542",
    ]
    entries = [zoo.load(name) for name in zoo.names()]
    narrow = Console(width=80, file=io.StringIO())
    narrow.print(zoo_table(entries))
    shown = narrow.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert {line.split()[0] for line in shown.splitlines()[3:]} == set(zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_the_accuracies_of_the_zoo_are_those_of_the_committed_results(name: str) -> None:
    folder = {"reference": "reference-published"}.get(name, name)
    entry = zoo.load(name)
    result = json.loads((Path(__file__).parents[1] / "reports" / folder / "result.json").read_text())
    assert [run["test_accuracy"] for run in result["runs"]] == list(entry.test_accuracies)
    assert result["key"] == entry.architecture.key


def test_a_stored_folder_outside_of_the_reports_is_not_used(tmp_path: Path) -> None:
    parent = tmp_path / "reports"
    study = optuna.create_study(study_name="s")
    study.set_user_attr("identity", {"space": "a"})
    for stored in (
        str(tmp_path / "victim"),
        "../victim",
        str(parent / ".." / "victim"),
        "/",
        "",
        str(parent),
    ):
        study.set_user_attr("reports", stored)
        folder = study_folder(parent, study)
        assert folder.parent == parent
        assert study.user_attrs["reports"] == str(folder)
    assert study_folder(parent, study) == folder  # its own is kept
    (folder / "summary.json").write_text(json.dumps({"study": "s", "identity": {"space": "a"}}))
    assert study_folder(parent, study) == folder
    (folder / "summary.json").write_text(json.dumps({"study": "s", "identity": {"space": "b"}}))
    assert study_folder(parent, study) != folder  # another study's report is not replaced


def test_every_verdict_has_a_colour() -> None:
    assert {verdict for verdict, _, _ in study_plots.VERDICT_STYLES} == set(Verdict)


def test_a_trial_whose_process_died_at_any_moment_has_a_note(finished: tuple[Path, Ended]) -> None:
    study = optuna.load_study(study_name="nas_mnist", storage=f"sqlite:///{finished[0]}/studies/nas_mnist.db")
    whole = study.trials[0]
    for known in range(len(whole.user_attrs)):
        partly = copy.deepcopy(whole)
        partly.user_attrs = dict(list(whole.user_attrs.items())[:known])
        note = trial_note(partly)
        assert note.startswith("**")
        assert "Total params:" in note
        partly.system_attrs = {}
        assert "Total params:" not in trial_note(partly)
