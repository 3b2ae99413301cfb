"""What optuna-dashboard shows beside the numbers: notes, and learning curves as pictures."""

from __future__ import annotations

import json
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import FrozenTrial, Trial

from ..models.architecture import Architecture
from ..models.cost import COST_NAMES, weighed_against
from ..study.objective import ARCHITECTURE, Verdict
from ..study.results import budget_of, candidate_epochs
from .layers import layer_table


def note_study(study: optuna.Study, dashboard: str) -> None:
    """Write the study's note, unless it has one: somebody may have written into it."""
    from optuna_dashboard import get_note, save_note

    if not get_note(study):
        save_note(study, study_note(study.user_attrs, dashboard))


def study_note(facts: dict[str, Any], dashboard: str) -> str:
    """What is looked for, in what, how the search goes on and how it is looked at; Markdown."""
    identity = facts["identity"]
    return f"""\
# At most {budget_of(identity)}

The best all-convolutional network, without a fully connected layer, in at most 20 epochs. (Of MNIST it is
asked that it classifies 99.4 % of the test images, with fewer than 20,000 parameters.) {_values(facts)}
The test images are read once, for the winner. The user attribute `verdict` says how a trial ended; `n_params`
and the other numbers sort.

Data: {facts["data"]}. {facts["data_note"]}

Continue with

    {facts["command"]}

Look at it, with its pictures, with

    {dashboard}

Search space:

```json
{_in_lines(facts["space"])}
```
"""


def _in_lines(space: dict[str, Any]) -> str:
    """A space as JSON, a line or a few for every key and for every stage: a long one would widen the page."""
    stages = ",\n  ".join(_folded(stage, "   ") for stage in space["stages"])
    lines = {name: _folded(value, "  ") for name, value in space.items()}
    lines["stages"] = f"[\n  {stages}\n ]"
    return "{\n" + ",\n".join(f' "{name}": {value}' for name, value in lines.items()) + "\n}"


def _folded(value: Any, indent: str) -> str:
    """JSON, broken at its spaces."""
    return textwrap.fill(
        json.dumps(value), 90, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _values(facts: dict[str, Any]) -> str:
    """What a trial's values are."""
    against = weighed_against(facts["identity"].get("objective"))
    if against is None:
        last = candidate_epochs(facts)
        return f"A trial's value is its accuracy on the validation images after epoch {last}."
    return (
        f"A trial's values are its accuracy on the validation images after its last epoch and its "
        f"{COST_NAMES[against]}: looked for is the most accurate network for every such cost."
    )


def note_trial(study: optuna.Study, number: int) -> None:
    """Write the note of a trial that has ended."""
    from optuna_dashboard import save_note

    stored = study.get_trials(deepcopy=False)[number]
    save_note(Trial(study, stored._trial_id), trial_note(stored))


def note_interrupted(study: optuna.Study) -> None:
    """Write the notes of the trials whose process could not write them."""
    from optuna_dashboard._note import note_ver_key

    noted = study._storage.get_study_system_attrs(study._study_id)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and note_ver_key(trial._trial_id) not in noted:
            note_trial(study, trial.number)


def picture_trial(trial: Trial, artifacts: Path) -> None:
    """Give a trial that is about to end, if it was scored, its learning curve as an artifact."""
    stored = trial.study.get_trials(deepcopy=False)[trial.number]
    if not stored.intermediate_values:
        return
    from . import plots
    from . import style as canvas

    curve = {trial.number: stored.intermediate_values}
    trained = [trial.number] if trial.user_attrs["verdict"] == Verdict.TRAINED else []
    picture = canvas.png(plots.learning_curves(curve, trained, max(stored.intermediate_values)))
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"learning-curve-{trial.number}.png"
        path.write_bytes(picture)
        store = FileSystemArtifactStore(artifacts)
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def trial_note(trial: FrozenTrial) -> str:
    """How the trial ended, what the candidate costs, and its layers; Markdown."""
    attrs, accuracies = trial.user_attrs, trial.intermediate_values
    reason = f": {attrs['reason']}" if attrs.get("reason") else ""
    lines = [f"**{attrs.get('verdict', Verdict.INTERRUPTED)}**{reason}", ""]
    if {"n_params", "macs", "peak_memory"} <= set(attrs):  # a process may die at any moment
        lines += [
            f"{attrs['n_params']:,} parameters, {attrs['macs']:,} multiply-adds, "
            f"{attrs['peak_memory']:,} bytes of activations at most",
            "",
        ]
    if accuracies:
        last = max(accuracies)
        lines += [f"{accuracies[last]:.2%} of the validation images after epoch {last}", ""]
    if {"images", "seconds"} <= set(attrs):
        lines += [f"{attrs['images']:,} images trained on in {attrs['seconds']:,.1f} s", ""]
    if architecture := trial.system_attrs.get(ARCHITECTURE, attrs.get("architecture")):
        table = layer_table(Architecture.make(architecture))
        lines += ["```text", table, "```"]
    return "\n".join(lines)
