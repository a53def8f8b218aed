"""The plots, questions and claims of the seed notebooks: `digits-train study NAME` looks into one of them.

    workbench    the data, networks that are trained once for all studies, the directory for results
    images       samples, balance
    label_noise  label-noise
    detection    detection, with the network that darknet reads; yolov3 is the notebook's

A study takes the workbench, leaves pictures (PNG) and numbers (CSV), and returns one line of what they show.
"""

from collections.abc import Callable
from dataclasses import dataclass

from training.studies import detection, images, label_noise
from training.studies.workbench import Workbench


@dataclass(frozen=True)
class Study:
    """One plot, question or claim of the seed notebooks.

    Attributes:
        name: what the command line calls it.
        source: where the question comes from.
        shows: what it is about, in a line.
        carry_out: writes the results, and says in a line what they show.
        options: those of `epochs`, `recipes`, `models` that it heeds.
        needs: options that it can't do without; `all` leaves it out where they are missing.
    """

    name: str
    source: str
    shows: str
    carry_out: Callable[[Workbench], str]
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


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
            "label-noise",
            "seed notebook 001, after Rolnick et al. 2017",
            "what networks learn when each right label is joined by up to 100 random ones",
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
