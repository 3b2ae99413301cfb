"""Reports: the page, its figures, the tables, the live displays and the notes of the dashboard."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from conftest import COMMON, IDENTITY, STUDY_FACTS, Ended, Runner, best_folder, stored
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note, save_note
from rich.console import Console

from nas_mnist import Architecture
from nas_mnist.data.class_names import class_names
from nas_mnist.data.dataset import DataSet, Images
from nas_mnist.models import zoo
from nas_mnist.models.cost import Cost
from nas_mnist.recipes.recipe import Recipe
from nas_mnist.report import result_plots, study_plots
from nas_mnist.report.answers import beside_lines, reproduce_commands, retrained_accuracies
from nas_mnist.report.diagram import diagram_rows
from nas_mnist.report.items import (
    comparison_rows,
    item_of_name,
    item_of_result,
    item_of_study,
    mistaken_images,
    requirements_of,
)
from nas_mnist.report.notes import mark_answers, trial_note, write_missing_notes, write_trial_note
from nas_mnist.report.page import render_page
from nas_mnist.report.search_display import SearchDisplay
from nas_mnist.report.sections import sections_of
from nas_mnist.report.tables import comparison_table
from nas_mnist.report.write import study_folder, study_summary
from nas_mnist.study.importance import param_importances
from nas_mnist.study.race import Answer, Finalist
from nas_mnist.study.results import StudyResults, TrialRow, best_rows, pareto_front, trial_rows
from nas_mnist.study.verdict import Verdict
from nas_mnist.training.evaluate import Score
from nas_mnist.training.loop import EpochResult
from nas_mnist.training.run_store import read_result

SECTIONS = [
    "Answers", "Requirements", "Results by seed", "Network", "Search", "Test errors", "Best candidates",
    "Reproduction",
]  # fmt: skip


def test_the_page_has_every_section_and_asks_no_network(finished: tuple[Path, Ended]) -> None:
    folder = finished[0] / "reports" / "nas_mnist"
    page = (folder / "report.html").read_text()
    assert re.findall(r"<h2>([^<]+)", page) == SECTIONS
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 0
    links = re.findall(r'\b(?:src|href|srcset|action|data)="([^"]*)"', page)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", page)
    for figure in ("network", "learning-curves", "accuracy-parameters", "confusion", "mistakes"):
        assert f'<figure data-figure="{figure}">' in page
    assert "NOT FULL MNIST" in page
    assert "<p>The search found the best one: it was not given.</p>" in page
    study = StudyResults.read(stored(finished[0]))
    tested = retrained_accuracies(study)
    assert set(tested) == {answer.key for answer in study.answers.values()}
    for name, line in reproduce_commands(study).items():
        assert f'<td class="n">{tested[study.answers[name].key]:.2%}</td>' in page
        assert f"<pre>{line}</pre>" in page
    assert "<td>found</td>" in page
    assert "python -m nas_mnist.search --dataset mnist-5k" in page
    assert "chosen on the test images" not in page  # the winner was scored once
    begins = {".png": b"\x89PNG", ".svg": b"<?xml"}
    files = list((folder / "plots").iterdir())
    assert all(path.read_bytes().startswith(begins[path.suffix]) for path in files)
    assert len(files) == 2 * len({path.stem for path in files}) > 0


def test_tables_of_a_study_have_stable_names_and_every_trial(finished: tuple[Path, Ended]) -> None:
    folder = finished[0] / "reports" / "nas_mnist"
    rows = trial_rows(stored(finished[0]))
    table = pd.read_csv(folder / "trials.csv")
    assert list(table.columns) == [
        "trial", "verdict", "reason", "n_params", "excess", "macs", "flash", "ram", "peak_memory",
        "epochs", "images", "validation_accuracy", "validation_loss", "seconds", "origin", "key",
    ]  # fmt: skip
    assert list(table["trial"]) == [row.trial for row in rows]
    summary = json.loads((folder / "summary.json").read_text())
    assert sum(summary["trials"].values()) == len(rows)
    assert summary["images"] == table["images"].sum() > 0
    assert summary["winner"]["trial"] == summary["answers"]["most_accurate"]["trial"]
    assert set(summary) == {
        "study", "trials", "epochs", "images", "seconds", "answers", "winner", "leader", "finals", "front",
        "test_accuracy", "requirements", "importances", "identity", "seed", "recipe", "space", "data",
        "device", "versions",
    }  # fmt: skip


def test_classes_are_called_by_their_names_where_they_have_some() -> None:
    names = class_names("fashion-mnist", 10)
    assert (names[0], names[9]) == ("T-shirt", "ankle boot")
    assert class_names("emnist-letters", 26)[25] == "Z"
    assert class_names("fashion-mnist", 3) == ("0", "1", "2")
    figure = result_plots.confusion([[5] * 10] * 10, names)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(names)
    found = [{"label": 9, "predicted": 7, "confidence": 0.8, "image": 3}]
    for channels in (1, 3):  # grey, colour
        images = np.random.default_rng(0).integers(0, 256, (1, channels, 28, 20), dtype=np.uint8)
        figure = result_plots.misclassified(images, found, names)
        assert [text.get_text() for text in figure.axes[0].texts] == ["ankle boot\nas sneaker\n80% sure"]
        shown = figure.axes[0].images[0].get_array()
        assert (np.asarray(shown) == (images[0, 0] if channels == 1 else images[0].transpose(1, 2, 0))).all()


def test_the_zoo_stands_beside_what_others_have_published(work: Path, invoke: Runner) -> None:
    ended = invoke("report", "zoo")
    assert (ended.code, ended.err) == (0, "")
    assert "Written: reports/zoo/report.html" in ended.out
    folder = work / "reports" / "zoo"
    page = (folder / "report.html").read_text()
    assert all(name in page for name in zoo.names())
    assert "published, one seed: last epoch" in (folder / "plots" / "comparison.svg").read_text()


def test_no_mistake_at_all_is_drawn_as_no_error() -> None:
    (axes,) = study_plots.learning_curves({0: {1: 0.9, 2: 1.0}, 1: {1: 1.0}}, [0], 2).axes
    assert min(min(line.get_ydata(), default=1) for line in axes.lines) == 0
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] < 0  # the line at zero is seen whole


def test_a_studys_own_budget_is_among_the_requirements(copied: Path) -> None:
    study, limits = stored(copied), {"max_params": 5, "max_macs": 10**9, "max_memory": 7}
    study.set_user_attr("identity", study.user_attrs["identity"] | limits)
    met = {one.what: one.met for one in requirements_of(item_of_study(study, None))}
    assert met["parameters <= 5, the budget"] is False
    assert met["multiply-adds <= 1,000,000,000, the budget"] is True
    assert met["bytes of peak memory <= 7, the budget"] is False


def test_a_report_is_made_anew_in_its_place_and_touches_nothing_else(copied: Path, invoke: Runner) -> None:
    def contents() -> dict[Path, bytes]:
        files = (path for path in copied.rglob("*") if path.is_file() and "studies" not in path.parts)
        return {path: path.read_bytes() for path in files}

    page, before = copied / "reports" / "nas_mnist" / "report.html", contents()
    page.unlink()
    ended = invoke("report")
    assert (ended.code, ended.err) == (0, "")
    assert "Best candidates" in ended.out
    assert "Written: reports/nas_mnist/report.html" in ended.out
    assert page.exists()
    assert contents() | {page: b""} == before | {page: b""}


def test_several_items_stand_side_by_side(copied: Path, invoke: Runner) -> None:
    result = best_folder(copied).relative_to(copied)
    ended = invoke("report", result, result, "--study", "nas_mnist")
    assert (ended.code, ended.err) == (0, "")
    folder = copied / "reports" / f"{result.name}-and-{result.name}-and-nas_mnist"
    text = (folder / "report.html").read_text()
    assert "<h1>Comparison</h1>" in text
    assert 'data-figure="comparison"' in text
    table = text[: text.index("</table>")]
    assert table.count('<tr><td class="name">') == 3
    assert f"reproduce {result} " in text
    assert "reproduce '" not in text  # the title of the second one names nothing
    drawn = {path.name for path in (folder / "plots").iterdir()}
    assert {f"{result.name}-network.png", f"{result.name} (2)-network.png", "comparison.svg"} <= drawn


def test_the_live_display_fits_into_80_columns_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=80, force_terminal=True, record=True)
    display = SearchDisplay(console, 100, 20, [])
    display.candidate(123, Cost(params=19_999, macs=1, peak_memory=1, receptive_field=1, flash=1, ram=1))
    display.epoch(123, EpochResult(20, 0.1, 0.1, 1.0, 2_468, Score(0.1, 9_963, 10_000)))
    with monkeypatch.context() as later:
        later.setattr("time.monotonic", lambda: display.started + 4_000)
        console.print(*display.progress.get_renderables())
    lines = console.export_text().splitlines()
    assert len(lines) == 2
    assert "1:06:40 elapsed" in lines[0]
    assert lines[-1].rstrip().endswith("99.63%, 2,468 images/s")


def test_without_a_terminal_every_line_has_the_time_and_the_best_candidate() -> None:
    console = Console(file=io.StringIO(), width=200)
    SearchDisplay(console, 5, 20, []).ended(row(3, 900, 0.9912))
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line.endswith("trained  (0:00 elapsed, lowest loss: trial 3, 99.12%)")


def test_a_study_without_a_winner_says_so(work: Path, invoke: Runner) -> None:
    where = ["--study", "empty", "--storage", "sqlite:///empty.db"]
    study = optuna.create_study(study_name="empty", storage=f"sqlite:///{work}/empty.db")
    for name, value in (STUDY_FACTS | {"recipe": {"epochs": 2}, "versions": {}, "command": "search"}).items():
        study.set_user_attr(name, value)
    ended = invoke("report", *where)
    assert (ended.code, ended.err) == (0, "")
    assert "no winner yet" in (work / "reports" / "empty" / "report.html").read_text()
    ended = invoke("reproduce", "best", *COMMON, *where)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "study 'empty' has no candidate" in ended.err


def test_the_diagram_has_every_block_and_all_parameters(reference: Architecture) -> None:
    rows = diagram_rows(reference)
    assert sum(row.params for row in rows) == 19_122
    assert len(rows) == len(reference.blocks) + 2
    assert rows[0].shape == (1, 28, 28)
    assert rows[-1].shape == (10, 1, 1)
    assert "no fully connected layer" in rows[-1].details


def test_an_older_result_with_runs_of_several_machines_is_shown(finished: tuple[Path, Ended]) -> None:
    result = read_result(best_folder(finished[0]) / "result.json")
    run = result["runs"][0]
    added = run | {"seed": 1, "by": {"device": "cuda", "versions": {"torch": "1"}, "command": "x"}}
    (section,) = sections_of([item_of_result(result | {"runs": [run, added]}, "old", None)])
    assert section.metadata["seeds"] == "0, 1"


def test_mistakes_are_not_shown_from_a_test_part_that_has_changed(
    finished: tuple[Path, Ended], five_thousand: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = read_result(best_folder(finished[0]) / "result.json")
    images = mistaken_images(result, None)
    assert images is not None
    assert len(images) == len(result["runs"][0]["mistakes"]) > 0
    test = five_thousand.read_test()
    for changed in (test.take(torch.arange(100)), Images(test.images, (test.labels + 1) % 10)):
        other = replace(five_thousand, read_test=lambda changed=changed: changed)
        monkeypatch.setattr("nas_mnist.data.dataset.load", lambda *_, other=other: other)
        assert mistaken_images(result, None) is None


def test_the_page_of_a_search_for_the_smallest_network_is_about_that(copied: Path) -> None:
    study = stored(copied)
    study.set_user_attr("identity", study.user_attrs["identity"] | {"target": 99.5})
    answers = study.user_attrs["answers"]
    study.set_user_attr("answers", {name: one for name, one in answers.items() if name != "smallest"})
    study.set_user_attr("beside_answers", [])  # of an earlier version
    text = render_page(sections_of([item_of_study(study, None)]))
    assert "for the smallest all-convolutional network with 99.5% of the validation images, with" in text
    assert "No finalist reaches 99.5% of the validation images." in text
    study.set_user_attr("answers", answers | {"smallest": answers["most_accurate"]})
    study.set_user_attr("beside_answers", beside_lines(StudyResults.read(study), 0.995))
    assert "No finalist reaches" not in render_page(sections_of([item_of_study(study, None)]))


def test_the_page_of_a_search_for_the_smallest_network_shows_that_network(copied: Path) -> None:
    study = stored(copied)
    study.set_user_attr("identity", study.user_attrs["identity"] | {"target": 15.0})
    network = Architecture.make({"blocks": [{"kind": "conv", "channels": 2}]})
    smallest = Answer.of(Finalist("trial-2-99", "k", network, Recipe(), "found", 2), 0.16, 2.1, 1, 100, 0.01)
    study.set_user_attr("answers", study.user_attrs["answers"] | {"smallest": smallest.to_json()})
    (section,) = sections_of([item_of_study(study, None)])
    assert section.item.architecture == network
    assert section.headline == "16.00%"
    assert "Smallest that meets the target: trial-2-99." in section.sentence
    assert "Smallest that meets the target, by 1.00 points</td>" in render_page([section])
    assert "The test images are unused" in section.sentence  # those of the best one are another answer's
    study.set_user_attr("retrained", {"k": {"seed": 0, "test_accuracy": 0.149, "folder": "gone"}})
    (section,) = sections_of([item_of_study(study, None)])
    assert section.headline == "14.90%"
    (accuracy, *_) = section.requirements
    assert (accuracy.what, accuracy.got, accuracy.met) == ("accuracy >= 15%", "14.90%", False)
    assert not any("nas_mnist.export" in line for line in section.commands)  # its weights are gone
    there = best_folder(copied).relative_to(copied)
    study.set_user_attr("retrained", {"k": {"seed": 0, "test_accuracy": 0.149, "folder": str(there)}})
    item = item_of_study(study, None)
    (section,) = sections_of([item])
    assert any("nas_mnist.export smallest --to c" in line for line in section.commands)
    summary = study_summary(StudyResults.read(study), item)
    assert summary["requirements"] == [asdict(one) for one in section.requirements]
    assert summary["requirements"][0]["what"] == "accuracy >= 15%"


def test_a_test_accuracy_is_told_where_the_folder_of_the_result_is_not(copied: Path) -> None:
    result = read_result(best_folder(copied) / "result.json")
    shutil.rmtree(best_folder(copied))
    item = item_of_study(stored(copied), None)
    (section,) = sections_of([item])
    assert item.result is None
    assert section.headline == f"{result['test_accuracy']['mean']:.2%}"
    assert section.sentence.startswith("Accuracy on the test images of mnist-5k")
    assert "unread" not in render_page([section])
    assert section.requirements[0].got == section.headline


def row(trial: int, n_params: int, accuracy: float) -> TrialRow:
    return TrialRow(
        *(trial, Verdict.TRAINED, "", n_params, 0, 0, 0, 0, 0, 1, 1, accuracy, 0.0, 0.0, "found"),
        *(None, None, None),
    )


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=30))
def test_nothing_beats_the_pareto_front(points: list[tuple[int, float]]) -> None:
    def reaches(one: TrialRow, other: TrialRow) -> bool:
        return one.n_params <= other.n_params and one.validation_accuracy >= other.validation_accuracy

    rows = [row(trial, *point) for trial, point in enumerate(points)]
    front = pareto_front(rows)
    assert all(any(reaches(best, one) for best in front) for one in rows)
    for best in front:
        assert all(reaches(best, one) for one in rows if reaches(one, best))


def test_the_leader_has_the_lowest_loss_until_the_finals_name_the_winner() -> None:
    scored = ("a", 0.99, 0.03), ("b", 0.98, 0.02), ("c", 0.97, 0.02)
    rows = [
        replace(row(number, 100, accuracy), key=key, validation_loss=loss)
        for number, (key, accuracy, loss) in enumerate(scored)
    ]
    metadata: dict[str, object] = {"identity": IDENTITY}
    results = StudyResults("s", rows, {}, {}, metadata)
    assert results.winner is None
    assert (results.best, results.best_title) == (rows[1], "leader")  # of equal losses the more accurate
    metadata["finals"] = {"a": {"1": 0.98}, "c": {"1": 0.984}}  # of an earlier version: accuracies
    assert results.winner is rows[2]  # fresh seeds alone decide, not the 0.99 that made "a" a finalist
    assert results.validation_accuracy == 0.984
    metadata["winner"] = {"key": "a"}  # whatever was retrained was the winner
    assert (results.winner, results.best, results.best_title) == (rows[0], rows[0], "winner")
    network = Architecture.make({"blocks": [{"kind": "conv", "channels": 2}]})
    answer = Answer.of(
        Finalist("trial-2", "c", network, Recipe(), "found", 2), 0.97, 0.02, seeds=2, images=100
    )
    assert answer.standard_error == pytest.approx(0.01706, abs=1e-5)  # sqrt(0.97 * 0.03 / 100)
    metadata["answers"] = json.loads(json.dumps({"most_accurate": answer.to_json()}))
    assert results.winner is rows[2]
    assert results.answers == {"most_accurate": answer}


def test_importances_find_the_choice_that_matters() -> None:
    study = optuna.create_study(direction="maximize")
    for number in range(40):
        trial = study.ask()
        matters = trial.suggest_int("matters", 0, 9)
        trial.suggest_int("does_not", 0, 9)
        if number % 2:
            trial.report(1 - (matters - 3) ** 2 / 100, 10)  # after half of 20 epochs
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    shares = param_importances(study, 20)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.__getitem__) == "matters"


def test_the_dashboard_finds_notes_and_learning_curves(finished: tuple[Path, Ended]) -> None:
    study = stored(finished[0])
    note = get_note(study)
    assert "At most 15,000 parameters" in note
    assert "python -m nas_mnist.search --dataset mnist-5k" in note
    assert "## Answers" in note
    assert "\n\n    python -m nas_mnist.reproduce best --seeds 3" in note  # code in Markdown
    assert "\n\n    python -m nas_mnist.export best --to c" in note
    assert 'The mark "Best Trial" stands for the highest accuracy of a candidate' in note
    for trial in study.trials:
        note = get_note(optuna.trial.Trial(study, trial._trial_id))
        assert f"**{trial.user_attrs['verdict']}**" in note
        is_answer = trial.number in {one["trial"] for one in study.user_attrs["answers"].values()}
        assert note.startswith("**Answer of the search: ") == is_answer
        assert f"Origin: {trial.user_attrs['origin']}" in note
        assert f"{trial.user_attrs['n_params']:,} parameters" in note
        pictures = get_all_artifact_meta(trial, storage=study._storage)
        assert len(pictures) == bool(trial.intermediate_values)
        for picture in pictures:
            file = finished[0] / "studies" / "artifacts" / picture.artifact_id
            assert picture.mimetype == "image/png"
            assert file.read_bytes().startswith(b"\x89PNG")


def test_the_zoo_is_a_table_that_says_what_was_measured(invoke: Runner) -> None:
    ended = invoke("reproduce", "--list")
    assert (ended.code, ended.err) == (0, "")
    (line,) = (line for line in ended.out.splitlines() if line.strip().startswith("reference"))
    assert " ".join(line.split()) == "reference 19,122 5.07M 20.1K 36.8K default 5 99.622 99.555-99.689"
    narrow = Console(width=80, file=io.StringIO())
    narrow.print(comparison_table(comparison_rows([item_of_name(name, None) for name in zoo.names()])))
    shown = narrow.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert {line.split()[0] for line in shown.splitlines()[4:] if line.strip()} == set(zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_the_accuracies_of_the_zoo_are_those_of_the_committed_results(name: str) -> None:
    folder = {"reference": "reference-default"}.get(name, name)
    entry = zoo.load(name)
    result = json.loads((Path(__file__).parents[1] / "reports" / folder / "result.json").read_text())
    assert [run["test_accuracy"] for run in result["runs"]] == list(entry.test_accuracies)
    assert result["key"] == entry.architecture.key


def test_a_stored_folder_outside_of_the_reports_is_not_used(tmp_path: Path) -> None:
    parent = tmp_path / "reports"
    study = optuna.create_study(study_name="s")
    study.set_user_attr("identity", {"space": "a"})
    for path in (str(tmp_path / "victim"), "../victim", str(parent / ".." / "victim"), "/", "", str(parent)):
        study.set_user_attr("reports", path)
        folder = study_folder(parent, study)
        assert folder.parent == parent
        assert study.user_attrs["reports"] == str(folder)
    assert study_folder(parent, study) == folder  # its own is kept
    (folder / "summary.json").write_text(json.dumps({"study": "s", "identity": {"space": "a"}}))
    assert study_folder(parent, study) == folder
    (folder / "summary.json").write_text(json.dumps({"study": "s", "identity": {"space": "b"}}))
    assert study_folder(parent, study) != folder  # another study's report is not replaced


def test_a_trial_whose_process_died_at_any_moment_has_a_note(finished: tuple[Path, Ended]) -> None:
    trial = stored(finished[0]).trials[0]
    attributes = trial.user_attrs
    for known in range(len(attributes)):
        trial.user_attrs = dict(list(attributes.items())[:known])
        assert trial_note(trial).startswith("**")
        assert "Total params:" in trial_note(trial)
    trial.system_attrs = {}
    assert "Total params:" not in trial_note(trial)


def test_an_unfinished_study_has_a_leader_and_no_verdict(copied: Path, invoke: Runner) -> None:
    study = stored(copied)
    for name in ("answers", "retrained"):
        study.set_user_attr(name, {})
    item = item_of_study(study, None)
    leader = best_rows(trial_rows(study), 1)[0].trial
    assert item.study is not None
    assert (item.study.winner, item.study.best and item.study.best.trial) == (None, leader)
    assert requirements_of(item) == []
    (section,) = sections_of([item])
    assert f"the leader, trial {leader}" in section.sentence
    assert "no winner yet" in section.sentence
    (legend,) = section.figures["learning-curves"].legends
    assert f"leader: trial {leader}" in [text.get_text() for text in legend.get_texts()]
    said = f"This is leader of study 'nas_mnist', which has no winner yet: trial {leader}"
    assert said in invoke("describe", "best").out


def test_notes_name_the_answers_of_the_newest_finals_only() -> None:
    study = optuna.create_study(study_name="s")
    for _ in range(3):
        study.tell(study.ask(), 0.5)
    network = Architecture.make({"blocks": [{"kind": "conv", "channels": 2}]})

    def answer(number: int) -> Answer:
        finalist = Finalist(f"trial-{number}", "c", network, Recipe(), "found", number)
        return Answer.of(finalist, 0.9, 0.1, seeds=1, images=100)

    def notes() -> list[str]:
        return [get_note(optuna.trial.Trial(study, trial._trial_id)) or "" for trial in study.trials]

    save_note(optuna.trial.Trial(study, study.trials[1]._trial_id), "mine\n\nmore")
    mark_answers(study, {"most_accurate": answer(1), "smaller": answer(1)})
    # The smaller one is the same.
    first = "**Answer of the search: best (lowest loss) (trial-1)**\n\nmine\n\nmore"
    assert notes() == ["", first, ""]
    mark_answers(study, {"most_accurate": answer(2)})
    assert notes()[:2] == ["", "mine\n\nmore"]
    assert notes()[2].startswith("**Answer of the search: best (lowest loss) (trial-2)**")


def test_a_long_study_has_notes_of_its_first_trials_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_mnist.report.notes.MAX_NOTES", 2)
    study = optuna.create_study(study_name="s")
    for _ in range(3):
        study.tell(study.ask(), 0.5)
    write_missing_notes(study)
    write_trial_note(study, 2)
    noted = [bool(get_note(optuna.trial.Trial(study, trial._trial_id))) for trial in study.trials]
    assert noted == [True, True, False]


def test_of_many_curves_few_are_drawn() -> None:
    curves = {trial: {1: 0.5, 2: 0.6} for trial in range(1_000)}
    figure = study_plots.learning_curves(curves, list(range(400)), 2, title="winner")
    assert len(figure.axes[0].lines) <= 2 * study_plots.MOST_CURVES
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["stopped early (150 of 600 drawn)", "trained to the end", "winner: trial 0"]
