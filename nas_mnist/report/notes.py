"""What optuna-dashboard shows beside the numbers: notes in Markdown, and learning curves as pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import FrozenTrial, Trial

from ..core.compat import study_system_attrs, trial_id
from ..models.architecture import Architecture
from ..models.cost import COST_NAMES
from ..study.config import StudyConfig
from ..study.curve import curve_of
from ..study.given import ORIGIN
from ..study.objective import ARCHITECTURE
from ..study.race import Answer
from ..study.verdict import Verdict
from ..training.requirements import MIN_ACCURACY, required_accuracy
from .answers import TITLES, told_answers
from .layer_table import layer_table
from .progress import counted

# User attributes of a study: the answers as its note has them, and the trials whose notes name an answer.
ANSWERS_NOTE, MARKED = "answers_note", "answer_trials"
MAX_NOTES = 500  # of trials, beside those of the answers: the dashboard sends all with its first page
ANSWER_LINE = "**Answer of the search"  # how the first line of such a note begins


def write_study_note(study: optuna.Study, dashboard: str) -> None:
    """Write the study's note, unless it has one: users may edit it.

    ``dashboard`` is the command that opens the dashboard.
    """
    from optuna_dashboard import get_note, save_note

    if get_note(study):
        return
    metadata = study.user_attrs
    config = StudyConfig.from_metadata(metadata)
    values = f"value is its accuracy on the validation images after epoch {config.candidate_epochs}."
    if config.cost_metric is not None:
        values = (
            f"values are its accuracy on the validation images after its last epoch and its "
            f"{COST_NAMES[config.cost_metric]}: the search looks for the Pareto front of both."
        )
    is_mnist = required_accuracy(config.data) is not None
    required = f" {MIN_ACCURACY:.1%} of the test images are required." if is_mnist else ""
    save_note(
        study,
        f"""\
# At most {config.budget}

Goal: the {config.aim} within this budget, without a fully connected layer,
trained for {counted(config.epochs, "epoch")}.{required} The test images are read once for each answer.

A trial's {values} The user attribute `verdict` says how a trial ended.
Trials can be sorted by `n_params` and the other numbers.

The winner is named under "Answers", at the end of the search, and in the note of its trial. It is the best
of the finals. The mark "Best Trial" stands for the highest accuracy of a candidate, which is no result.

Data: {metadata["data"]}. {metadata["data_note"]}

Continue the search with

    {metadata["command"]}

Open the dashboard, with the learning curves, with

    {dashboard}
""",
    )


def add_answers(study: optuna.Study, lines: Sequence[str]) -> None:
    """Add the answers of a search to the study's note, instead of unchanged earlier ones."""
    from optuna_dashboard import get_note, save_note

    paragraphs = [line.replace("\n", "\n\n") for line in lines]  # the indented commands become code
    section, note = "\n\n".join(["## Answers", *paragraphs]), get_note(study) or ""
    earlier = str(study.user_attrs.get(ANSWERS_NOTE, ""))
    if earlier and earlier in note:
        save_note(study, note.replace(earlier, section))
    elif section not in note:
        save_note(study, f"{note}\n\n{section}\n")
    study.set_user_attr(ANSWERS_NOTE, section)


def mark_answers(study: optuna.Study, answers: Mapping[str, Answer]) -> None:
    """Begin the notes of the answers' trials with the answers' names, and drop earlier such lines."""
    from optuna_dashboard import get_note, save_note

    titles: dict[int, list[str]] = {}
    marked = study.user_attrs.get(MARKED, [])
    for name, answer in told_answers(answers):
        titles.setdefault(answer.trial, []).append(f"{TITLES[name].lower()} ({answer.name})")
    for trial in study.get_trials(deepcopy=False):
        handle = Trial(study, trial_id(trial))
        if trial.number in marked or trial.number in titles:
            note = get_note(handle) or trial_note(trial)
            first, _, rest = note.partition("\n\n")
            body = rest if first.startswith(ANSWER_LINE) else note
            line = f"{ANSWER_LINE}: {', '.join(titles.get(trial.number, []))}**\n\n"
            save_note(handle, line * (trial.number in titles) + body)
    study.set_user_attr(MARKED, sorted(titles))


def write_trial_note(study: optuna.Study, number: int) -> None:
    """Write the note of a trial that has ended, if it is one of the first `MAX_NOTES`."""
    from optuna_dashboard import save_note

    if number >= MAX_NOTES:
        return
    stored = study.get_trials(deepcopy=False)[number]
    save_note(Trial(study, trial_id(stored)), trial_note(stored))


def write_missing_notes(study: optuna.Study) -> None:
    """Write the notes of ended trials that have none: their process was killed before."""
    from ..core.compat import note_ver_key

    noted = study_system_attrs(study)
    for trial in study.get_trials(deepcopy=False)[:MAX_NOTES]:
        if trial.state.is_finished() and note_ver_key(trial_id(trial)) not in noted:
            write_trial_note(study, trial.number)


def trial_note(trial: FrozenTrial) -> str:
    """Verdict, cost, accuracy and layers of a trial; Markdown. A killed trial may lack any attribute."""
    attrs, curve = trial.user_attrs, curve_of(trial)
    reason = f": {attrs['reason']}" if attrs.get("reason") else ""
    parts = [f"**{attrs.get('verdict', Verdict.INTERRUPTED)}**{reason}"]
    if origin := attrs.get(ORIGIN):
        parts.append(f"Origin: {origin}")
    if {"n_params", "macs", "peak_memory"} <= set(attrs):
        counts = f"{attrs['n_params']:,} parameters, {attrs['macs']:,} multiply-adds"
        parts.append(f"{counts}, {attrs['peak_memory']:,} bytes of peak memory in float32")
    if {"flash", "ram"} <= set(attrs):
        parts.append(f"As int8: {attrs['flash']:,} bytes of flash, {attrs['ram']:,} bytes of RAM")
    if curve:
        last = max(curve)
        parts.append(f"Validation accuracy {curve[last].accuracy:.2%} after epoch {last}")
    if {"images", "seconds"} <= set(attrs):
        parts.append(f"Trained on {attrs['images']:,} images in {attrs['seconds']:,.1f} s")
    if architecture := trial.system_attrs.get(ARCHITECTURE, attrs.get("architecture")):
        parts.append(f"```text\n{layer_table(Architecture.make(architecture))}\n```")
    return "\n\n".join(parts)


def attach_curve(trial: Trial, artifacts: Path) -> None:
    """Attach the learning curve of a trial that is about to end, as an artifact in the folder ``artifacts``.

    A trial without an evaluated epoch gets none.
    """
    stored = trial.study.get_trials(deepcopy=False)[trial.number]
    accuracies = {epoch: point.accuracy for epoch, point in curve_of(stored).items()}
    if not accuracies:
        return
    from .study_plots import learning_curves
    from .style import png

    curve = {trial.number: accuracies}
    trained = [trial.number] if trial.user_attrs["verdict"] == Verdict.TRAINED else []
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"learning-curve-{trial.number}.png"
        path.write_bytes(png(learning_curves(curve, trained, max(accuracies))))
        store = FileSystemArtifactStore(artifacts)
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)
