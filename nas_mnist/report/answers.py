"""The answers of a search in words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from ..core.defaults import ANSWERS
from ..models import zoo
from ..models.cost import cost_of
from ..study.race import Answer
from ..study.results import FINAL_IMAGES, StudyResults, best_rows, retrained_of
from ..training.run_store import RESULT
from .progress import counted

TITLES = {
    "most_accurate": "Best (lowest loss)",
    "smaller": "As good, smaller",
    "smallest": "Smallest that meets the target",
}
BESIDE = "beside_answers"  # user attribute of a study: the lines of `beside_lines`


def told_answers(answers: Mapping[str, Answer]) -> list[tuple[str, Answer]]:
    """The answers with their names, without a smaller one that is the best one itself."""
    best = answers.get("most_accurate")
    return [
        (name, answer)
        for name, answer in answers.items()
        if name != "smaller" or best is None or answer.key != best.key
    ]


def command(name: str, *words: object) -> str:
    """The command line of ``python -m nas_mnist.NAME``."""
    return shlex.join(["python", "-m", f"nas_mnist.{name}", *map(str, words)])


def reproduce_commands(study: StudyResults) -> dict[str, str]:
    """By name, the command line that trains an answer over seeds; before the finals that of the best."""
    stored = study.metadata.get("reproduce") or command(
        "reproduce", "best", "--seeds", 3, "--study", study.name
    )
    words = {name: word for word, name in ANSWERS.items()}
    names = [name for name, _ in told_answers(study.answers)] or ["most_accurate"]
    return {name: re.sub(r"(nas_mnist\.reproduce )\w+", rf"\g<1>{words[name]}", stored) for name in names}


def retrained_accuracies(study: StudyResults) -> dict[str, float]:
    """By key, the test accuracies (0 to 1) of the answers that were retrained, one seed each."""
    retrained = {one.key: retrained_of(study.metadata, one.key) for one in study.answers.values()}
    return {key: float(stored["test_accuracy"]) for key, stored in retrained.items() if stored}


def answer_lines(study: StudyResults) -> list[str]:
    """Each answer of a search in words, and below it the command that trains it again."""
    answers, commands, tested = study.answers, reproduce_commands(study), retrained_accuracies(study)
    told, lines = dict(told_answers(answers)), []
    for name in answers:
        if (answer := told.get(name)) is None:
            lines.append(f"{TITLES[name]}: none of those tried")
            continue
        test = f", test {tested[answer.key]:.2%} (one seed)" if answer.key in tested else ""
        lines.append(f"{_in_words(name, answer)}{test}\n    {commands[name]}")
    if export := export_command(study):
        lines.append(f"As a file for other programs (c, python, onnx, torch):\n    {export}")
    return lines


def export_command(study: StudyResults) -> str:
    """The command line that exports the answer that the search is about; empty without trained weights."""
    asked = study.asked_for
    stored = retrained_of(study.metadata, asked[1].key) if asked else None
    if asked is None or stored is None or not (Path(stored["folder"]) / RESULT).is_file():
        return ""
    again = reproduce_commands(study)[asked[0]]
    return re.sub(r"nas_mnist\.reproduce (\w+) --seeds 3", r"nas_mnist.export \1 --to c", again)


def _in_words(name: str, answer: Answer) -> str:
    scored = counted(answer.seeds, "fresh seed") if answer.seeds else "as a candidate"
    error = "" if answer.standard_error is None else f" ± {100 * answer.standard_error:.2f}"
    margin = "" if answer.margin is None else f", {100 * answer.margin:+.2f} points from the target"
    return (
        f"{TITLES[name]}: {answer.name} ({answer.origin}), {answer.n_params:,} parameters, "
        f"validation {answer.validation_accuracy:.2%}{error} ({scored}){margin}, "
        f"loss {answer.validation_loss:.4f}"
    )


def beside_lines(study: StudyResults, target: float | None) -> list[str]:
    """What stands beside the answers: where the best comes from, the zoo's network, a target that was missed.

    ``target``: an accuracy from 0 to 1.
    """
    answers, lines = study.answers, []
    best = answers["most_accurate"]
    if target is not None and "smallest" not in answers and len(answers) > 1:
        few = study.metadata.get(FINAL_IMAGES)
        why = f"; they trained on {few:,} images (--effort normal in a new study: on all)" if few else ""
        lines.append(f"No finalist reaches {100 * target:g}% of the validation images{why}.")
    if best.origin == "found":
        lines.append("The search found the best one: it was not given.")
    elif best.name != f"trial-{best.trial}":
        lines.append(f"The best one is a narrowed copy of a network that was {best.origin}.")
    else:
        rows = best_rows(study.rows, len(study.rows))
        found = next((row for row in rows if row.origin == "found"), None)
        beside = "no candidate of its own was trained to the end"
        if found:
            raced = study.finals.get(found.key or "", {}).values()
            accuracy = fmean(raced) if raced else found.validation_accuracy or 0.0
            beside = f"the best one it found is trial {found.trial} with {accuracy:.2%}"
        lines.append(f"The best one was {best.origin}; {beside}.")
    fitting = [zoo.load(name) for name in zoo.names()] if study.dataset == "mnist" else []
    budget = study.config.budget
    fitting = [one for one in fitting if one.test_accuracies and budget.fits(cost_of(one.architecture))]
    if fitting:
        entry = max(fitting, key=lambda one: fmean(one.test_accuracies))
        lines.append(
            f"Beside it, the zoo's best for this budget: {entry.name}, "
            f"{cost_of(entry.architecture).params:,} parameters, test {fmean(entry.test_accuracies):.2%} "
            f"({counted(len(entry.test_accuracies), 'seed')})."
        )
    return lines


def stored_beside(study: StudyResults) -> list[str]:
    """`beside_lines` as the search stored them; worked out for a study of an earlier version with answers."""
    target = study.config.target
    lines = study.metadata.get(BESIDE, [])
    return lines or (beside_lines(study, None if target is None else target / 100) if study.answers else [])
