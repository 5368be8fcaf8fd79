"""Which of the course's four cases a data set is, measured: large or small, similar or not.

    python experiments/transfer.py --data image_folder --source my_pictures --advise

A fifth of the training pictures is held out. On the rest a linear probe is trained on the frozen
features, and the last stage with the head; both are evaluated on what was held out. Where
the probe comes close to the tuned stage, the pretrained features already tell these classes apart:
the data is similar to what the network was pretrained on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from transfer_data import Dataset, held_out

LARGE = 1000
"""From so many training pictures a class on, a data set counts as large: about ImageNet's."""
SIMILAR = 0.9
"""From this share of the tuned stage's accuracy above chance on, the features count as similar."""
HELD_OUT = 0.2

CASES = {  # (large, similar): what the course advises, and why
    (True, True): (
        "last-stage",
        "the early layers already see what matters here, and there is enough data to adapt the "
        "last ones without overfitting",
    ),
    (True, False): (
        "all",
        "the pretrained features do not fit, and there is enough data to learn better ones; the "
        "pretrained weights are still a good start",
    ),
    (False, True): (
        "head",
        "the features fit as they are, and with so little data tuning more layers overfits",
    ),
    (False, False): (
        "last-stage",
        "the last features do not fit, but there is too little data to tune every layer; expect "
        "less of it, and augment or collect more",
    ),
}


@dataclass(frozen=True)
class Advice:
    """What was measured, and the strategy that follows."""

    pictures_per_class: float
    probe_accuracy: float
    tuned_accuracy: float
    chance: float
    large: bool
    similar: bool
    strategy: str
    reason: str

    @property
    def similarity(self) -> float:
        """The probe's accuracy above chance as a share of the tuned stage's."""
        return similarity(self.probe_accuracy, self.tuned_accuracy, self.chance)


def similarity(probe: float, tuned: float, chance: float) -> float:
    """Returns (probe - chance) / (tuned - chance), from 0 to 1; 0 where the probe is at chance."""
    if probe <= chance:
        return 0.0
    return min(1.0, (probe - chance) / max(tuned - chance, probe - chance))


def judge(pictures_per_class: float, probe: float, tuned: float, chance: float) -> Advice:
    """Returns the case of the four that the measurements say."""
    large = pictures_per_class >= LARGE
    similar = similarity(probe, tuned, chance) >= SIMILAR
    strategy, reason = CASES[large, similar]
    return Advice(pictures_per_class, probe, tuned, chance, large, similar, strategy, reason)


def advise(
    dataset: Dataset, seed: int, measure: Callable[[str, dict[str, Dataset]], float]
) -> dict[str, float]:
    """Measures, prints a table, the case and the strategy; returns the two accuracies.

    `measure(strategy, {"train", "val"})` trains and returns the validation accuracy.
    """
    rest, kept = held_out(dataset, HELD_OUT, seed)
    accuracies = {}
    for strategy in ("head", "last-stage"):
        print(f"--- {strategy}, held out: {len(kept):,} of {len(dataset):,} pictures")
        accuracies[strategy] = measure(strategy, {"train": rest, "val": kept})
    chance = float(np.bincount(kept.labels).max() / len(kept))
    per_class = len(dataset) / len(dataset.class_names)
    advice = judge(per_class, accuracies["head"], accuracies["last-stage"], chance)
    show(advice)
    return {"probe": advice.probe_accuracy, "tuned": advice.tuned_accuracy}


def show(advice: Advice) -> None:
    table = Table("measured", "", "so the data is")
    size = f"{advice.pictures_per_class:,.0f} (large from {LARGE:,})"
    table.add_row("training pictures a class", size, "large" if advice.large else "small")
    table.add_row("linear probe on frozen features", f"{advice.probe_accuracy:.1%} held out", "")
    table.add_row("last stage fine-tuned", f"{advice.tuned_accuracy:.1%} held out", "")
    table.add_row("the most frequent class alone", f"{advice.chance:.1%}", "")
    share = f"{advice.similarity:.0%} (similar from {SIMILAR:.0%})"
    similar = "similar" if advice.similar else "not similar"
    table.add_row("the probe's share of what tuning gains", share, similar)
    Console().print(table)
    size = "large" if advice.large else "small"
    print(f"this data is {size} and {similar} to the pretraining data")
    print(f"advice: --strategy {advice.strategy}, because {advice.reason}")
