"""The plots, questions and claims of the seed notebooks: `digits-train study NAME` looks into one of them.

    workbench    the data, networks that are trained once for all studies, the directory for results
    images       samples, balance
    convolutions filters, stride-padding, max-pooling
    networks     gallery, curves, confusion, parameters
    comparisons  batch-size, optimiser, local-vs-global
    label_noise  label-noise
    detection    detection, with the network that darknet reads; yolov3 is the notebook's

A study takes the workbench, leaves pictures (PNG) and numbers (CSV), and returns one line of what they show.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
