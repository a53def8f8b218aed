"""Lists all studies with their options, and selects the ones to run."""

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
        name: name on the command line.
        source: origin of the question.
        shows: its subject, in one line.
        function: writes the results and returns the finding in one line.
        options: command-line options that it uses.
        needs: options that it requires; `all` skips the study if one is missing.
    """

    name: str
    source: str
    shows: str
    function: Callable[[Workbench], str]
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def missing(self, given: Mapping[str, Any]) -> str:
        """Returns the required options that are not `given`, in command-line form; "" if all are given."""
        return ", ".join(f"--{option}" for option in self.needs if given[option] is None)

    def run(self, bench: Workbench) -> str:
        """Runs the study; returns its finding, its duration and the files that it wrote."""
        bench.written, began = [], time.monotonic()
        finding = self.function(bench)
        return f"{finding} ({time.monotonic() - began:.0f} s: {', '.join(map(str, bench.written))})"


STUDIES = {
    study.name: study
    for study in (
        Study(
            "samples",
            "seed notebooks 000, 001, 003, 004",
            "random digits, one of each digit, and one image as its 28x28 numbers",
            images.samples,
        ),
        Study("balance", "seed notebook 004", "images of each class, and the sizes of the sets", images.balance),
        Study(
            "filters",
            "seed notebook 004",
            "five 3x3 filters applied to one of each digit and a plus sign",
            convolutions.filters,
        ),
        Study(
            "stride-padding",
            "seed notebooks 002, 004",
            "output sizes under stride and padding, and their formula",
            convolutions.stride_padding,
        ),
        Study(
            "max-pooling",
            "seed notebooks 002, 004",
            "digits after 2x2 pooling, with the sizes before and after",
            convolutions.max_pooling,
        ),
        Study(
            "gallery",
            "seed notebook 001",
            "nine digits that fcn512 classifies correctly and nine that it gets wrong",
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
            f"confusion matrices by recipe (by default {', '.join(networks.QUICK)})",
            networks.confusion,
            ("epochs", "recipes", "models"),
        ),
        Study(
            "parameters",
            "seed notebook 004",
            "parameters of every layer by formula and by Keras' count",
            networks.parameters,
        ),
        Study(
            "batch-size",
            "seed notebook 001",
            "accuracy and training time of fcn512 at 32, 128 and 10,000 images per batch",
            comparisons.batch_size,
            ("epochs", "models"),
        ),
        Study(
            "optimiser",
            "seed notebook 004",
            "Adadelta compared with Adam on lenet5 and cnn3264 (half an hour, less with --epochs)",
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
            "accuracy when every right label comes with up to 100 random ones (ten minutes)",
            label_noise.label_noise,
            options=("epochs",),
        ),
        Study(
            "detection",
            "seed notebook 003",
            "cars, buses and other objects in a photo, detected by a YOLO network; bring both files",
            detection.detection,
            options=("photo", "weights", "names", "cfg"),
            needs=("photo", "weights", "names"),
        ),
    )
}

OPTIONS = sorted({option for study in STUDIES.values() for option in study.options})


class StudyError(Exception):
    """The study's name or options are invalid; the message lists the valid ones."""


def choose(name: str, given: Mapping[str, Any]) -> list[Study]:
    """Returns the study called `name`, or, for `all`, every study whose required options are given; prints the skipped ones.

    Args:
        name: as on the command line.
        given: the value of every option of `OPTIONS` by its name, false if it was not given.

    Raises:
        StudyError: the study does not exist, does not use an option that was given, or lacks a required one.
    """
    if name == "all":
        for study in STUDIES.values():
            if study.missing(given):
                print(f"{study.name:16} skipped: it needs {study.missing(given)}", flush=True)
        return [study for study in STUDIES.values() if not study.missing(given)]
    if name not in STUDIES:
        raise StudyError(f"no study is named {name!r}; the studies are: {', '.join(STUDIES)}, and all")
    study = STUDIES[name]
    for option in OPTIONS:
        if given[option] and option not in study.options:
            raise StudyError(f"study {name} does not use --{option}")
    if study.missing(given):
        raise StudyError(f"study {name} needs {study.missing(given)}; see digits-train study --help")
    return [study]
