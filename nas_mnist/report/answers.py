"""The answers of a search in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ..models import zoo
from ..models.cost import Budget, cost_of
from ..study.race import Answer
from ..study.results import Finals, TrialRow
from .progress import counted

TITLES = {
    "most_accurate": "Most accurate",
    "smaller": "As good, smaller",
    "smallest": "Smallest that meets the target",
}


def told_answers(answers: Mapping[str, Answer]) -> list[tuple[str, Answer]]:
    """The answers with their names, without a smaller one that is the most accurate one itself."""
    best = answers.get("most_accurate")
    return [
        (name, answer)
        for name, answer in answers.items()
        if name != "smaller" or best is None or answer.key != best.key
    ]


def answer_line(name: str, answer: Answer) -> str:
    """One answer in words."""
    scored = counted(answer.seeds, "fresh seed") if answer.seeds else "as a candidate"
    margin = "" if answer.margin is None else f", {100 * answer.margin:+.2f} points from the target"
    return (
        f"{TITLES[name]}: {answer.name} ({answer.origin}), {answer.n_params:,} parameters, "
        f"validation {answer.validation_accuracy:.2%}{margin}, loss {answer.validation_loss:.4f} ({scored})"
    )


def comparison_lines(
    answers: Mapping[str, Answer], rows: Sequence[TrialRow], finals: Finals, budget: Budget, dataset: str
) -> list[str]:
    """What stands beside the most accurate answer: its origin, the best found one, the zoo's network."""
    best = answers["most_accurate"]
    lines = []
    if best.origin == "found":
        lines.append("The search found it: it was not given.")
    else:
        found = next((row for row in rows if row.origin == "found"), None)
        beside = "no candidate of its own was trained to the end"
        if found:
            raced = finals.get(found.key or "", {}).values()
            accuracy = fmean(raced) if raced else found.validation_accuracy or 0.0
            beside = f"the best one it found is trial {found.trial} with {accuracy:.2%}"
        lines.append(f"It was {best.origin}; {beside}.")
    fitting = [zoo.load(name) for name in zoo.names()] if dataset == "mnist" else []
    fitting = [one for one in fitting if one.test_accuracies and budget.fits(cost_of(one.architecture))]
    if fitting:
        entry = max(fitting, key=lambda one: fmean(one.test_accuracies))
        lines.append(
            f"Beside it, the zoo's best for this budget: {entry.name}, "
            f"{cost_of(entry.architecture).params:,} parameters, test {fmean(entry.test_accuracies):.2%} "
            f"({counted(len(entry.test_accuracies), 'seed')})"
        )
    return lines
