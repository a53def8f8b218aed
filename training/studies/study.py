"""All studies by name, what each heeds and needs, and the choice among them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.studies import comparisons, convolutions, detection, images, label_noise, networks
from training.studies.workbench import Workbench


@dataclass(frozen=True)
class Study:
    """One plot, question or claim of the seed notebooks.

    Attributes:
        name: what the command line calls it.
        source: where the question comes from.
        shows: what it is about, in a line.
        carry_out: writes the results, and says in a line what they show.
        options: those of the command line that it heeds.
        needs: options that it can't do without; `all` leaves it out where they are missing.
    """

    name: str
    source: str
    shows: str
    carry_out: Callable[[Workbench], str]
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def lacks(self, given: Mapping[str, Any]) -> str:
        """The options that it can't do without and that are not `given`, as they are written; "" if there are all."""
        return ", ".join(f"--{option}" for option in self.needs if given[option] is None)

    def run(self, bench: Workbench) -> str:
        """Carries it out; returns what it shows, how long it took and what it has written."""
        bench.written, began = [], time.monotonic()
        shown = self.carry_out(bench)
        return f"{shown} ({time.monotonic() - began:.0f} s: {', '.join(map(str, bench.written))})"


STUDIES = {
    study.name: study
    for study in (
        Study(
            "samples",
            "seed notebooks 000, 001, 003, 004",
            "random digits, one of each, and one as its 28x28 numbers",
            images.samples,
        ),
        Study("balance", "seed notebook 004", "images of each class, and the sizes of the sets", images.balance),
        Study(
            "filters",
            "seed notebook 004",
            "five 3x3 filters over one of each digit and a plus sign",
            convolutions.filters,
        ),
        Study(
            "stride-padding",
            "seed notebooks 002, 004",
            "the sizes that stride and padding leave, and the formula for them",
            convolutions.stride_padding,
        ),
        Study(
            "max-pooling",
            "seed notebooks 002, 004",
            "what 2x2 pooling leaves of digits, sizes before and after",
            convolutions.max_pooling,
        ),
        Study(
            "gallery",
            "seed notebook 001",
            "nine digits that fcn512 reads right and nine that it reads wrong",
            networks.gallery,
            ("epochs", "models"),
        ),
        Study(
            "curves",
            "seed notebook 003",
            "loss and accuracy of cnn6k by epoch, and where validation loss rises",
            networks.curves,
            ("epochs",),
        ),
        Study(
            "confusion",
            "seed notebook 004",
            f"which digits are taken for which, by recipe (by default {', '.join(networks.QUICK)})",
            networks.confusion,
            ("epochs", "recipes", "models"),
        ),
        Study(
            "parameters",
            "seed notebook 004",
            "parameters of every layer by formula beside Keras' count",
            networks.parameters,
        ),
        Study(
            "batch-size",
            "seed notebook 001",
            "accuracy and training time of fcn512 at 32, 128 and 10,000 images a batch",
            comparisons.batch_size,
            ("epochs", "models"),
        ),
        Study(
            "optimiser",
            "seed notebook 004",
            "Adadelta against Adam on lenet5 and cnn3264 (half an hour, less with --epochs)",
            comparisons.optimiser,
            ("epochs", "models"),
        ),
        Study(
            "local-vs-global",
            "seed notebook 002",
            "a dense and a convolutional network on test images shifted by 0 to 4 pixels",
            comparisons.local_vs_global,
            ("epochs", "models"),
        ),
        Study(
            "label-noise",
            "seed notebook 001, after Rolnick et al. 2017",
            "what networks learn when each right label is joined by up to 100 random ones (ten minutes)",
            label_noise.label_noise,
            options=("epochs",),
        ),
        Study(
            "detection",
            "seed notebook 003",
            "cars, buses and other things in a photo, found by a YOLO network; both are yours to bring",
            detection.detection,
            options=("photo", "weights", "names", "cfg"),
            needs=("photo", "weights", "names"),
        ),
    )
}

OPTIONS = sorted({option for study in STUDIES.values() for option in study.options})


class StudyError(Exception):
    """A study was asked for wrongly; the message says what there is."""


def choose(name: str, given: Mapping[str, Any]) -> list[Study]:
    """The study called `name`, or `all` that lack no option; the others are told of, and left out.

    Args:
        name: as on the command line.
        given: the value of every option of `OPTIONS` by its name, false where it was not given.

    Raises:
        StudyError: there is no such study, it has no use for an option that was given, or it lacks one.
    """
    if name == "all":
        for study in STUDIES.values():
            if study.lacks(given):
                print(f"{study.name:16} left out: it needs {study.lacks(given)}", flush=True)
        return [study for study in STUDIES.values() if not study.lacks(given)]
    if name not in STUDIES:
        raise StudyError(f"no study {name!r}; there are: {', '.join(STUDIES)}, and all")
    study = STUDIES[name]
    for option in OPTIONS:
        if given[option] and option not in study.options:
            raise StudyError(f"study {name} has no use for --{option}")
    if study.lacks(given):
        raise StudyError(f"study {name} needs {study.lacks(given)}; see digits-train study --help")
    return [study]
