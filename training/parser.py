"""The commands of `digits-train`, their arguments and their help."""

import argparse
import os
from pathlib import Path

from training.argument_types import model_name, positive, probability, share, whole_number

OPTIMISERS = ("adadelta", "adam", "adamw", "lion", "nadam", "rmsprop", "sgd")  # Keras' names


def new_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands, which loads neither Keras nor TensorFlow."""
    parser = argparse.ArgumentParser(
        prog="digits-train",
        description="Trains digit classifiers on MNIST or on your own images, and exports them to verified ONNX files.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    transposed = argparse.ArgumentParser(add_help=False)
    transposed.add_argument(
        "--transposed",
        action="store_true",
        help="with --data: swap rows and columns of the images of an .npz or IDX file, as EMNIST's files need",
    )

    data = argparse.ArgumentParser(add_help=False, parents=[transposed])
    data.add_argument(
        "--data",
        metavar="DATA",
        default=os.environ.get("DIGITS_DATA") or None,
        help="labelled images: an .npz file, a folder of IDX files, a folder of pictures by digit (FOLDER/0 to 9), or "
        "the URL of a capture database; see 'Your own data' in training/README.md (default: $DIGITS_DATA, else MNIST from "
        "Keras' cache, else a download of MNIST)",
    )

    writers = argparse.ArgumentParser(add_help=False)
    writers.add_argument(
        "--writers",
        type=Path,
        default=os.environ.get("DIGITS_WRITERS") or None,
        help="npz file whose array `train` holds the writer's number for each training image; images are then held out by "
        "writer (default: $DIGITS_WRITERS; without a file, images are held out at random)",
    )

    captured = argparse.ArgumentParser(add_help=False)
    captured.add_argument(
        "--captured",
        metavar="URL",
        help="SQLAlchemy URL of the database that `digits serve --capture` writes; among its images with a reported truth, "
        "`run` also trains on those of four answers in five, and `compare` also evaluates on the rest",
    )

    schedule = argparse.ArgumentParser(add_help=False)
    schedule.add_argument(
        "--seed", type=whole_number(0, 2**31), default=0, help="seed of every random choice (default: %(default)s)"
    )
    schedule.add_argument(
        "--epochs", type=whole_number(1, 10_000), help="passes over the training images (default: the recipe's number)"
    )

    hold_out = argparse.ArgumentParser(add_help=False)
    hold_out.add_argument(
        "--hold-out",
        type=whole_number(0, 1_000_000),
        metavar="N",
        help="images to hold out of training, on which thresholds are certified; without any, a service accepts nothing "
        "(default: the recipe's number, often 0)",
    )

    risk = argparse.ArgumentParser(add_help=False)
    risk.add_argument(
        "--risk",
        type=probability,
        default=0.001,
        help="probability that the error of a certified threshold exceeds its target (default: %(default)s)",
    )

    replacement = argparse.ArgumentParser(add_help=False)
    replacement.add_argument(
        "--replace",
        action="store_true",
        help="publish a version that accepts no digit by default, even if the model's newest version accepts some",
    )

    listing = actions.add_parser("list", help="list the recipes: parameters, epochs, expected and claimed accuracy, source")
    listing.add_argument(
        "recipes",
        nargs="*",
        metavar="RECIPE",
        help="recipe name, or a Python file of yours: all its recipes (PATH.py) or one (PATH.py:NAME) (default: all bundled "
        "recipes)",
    )

    run = actions.add_parser(
        "run",
        parents=[data, writers, schedule, hold_out, captured, risk, replacement],
        help="train a recipe, export and verify the network, publish a new model version",
    )
    run.add_argument(
        "recipe",
        help="recipe name from `digits-train list`, or a Python file of yours that defines RECIPE (PATH.py) or RECIPES "
        "(PATH.py:NAME)",
    )
    run.add_argument(
        "--models",
        type=Path,
        default=Path("models"),
        help="model repository; the version is published as MODELS/NAME/VERSION (default: %(default)s)",
    )
    run.add_argument("--name", type=model_name, default="digits", help="model name in the repository (default: %(default)s)")
    run.add_argument(
        "--batch-size", type=whole_number(1, 1_000_000), help="images per update (default: the recipe's number)"
    )
    run.add_argument(
        "--learning-rate",
        type=positive,
        help="learning rate, or the highest rate of the recipe's schedule (default: the recipe's)",
    )
    run.add_argument(
        "--optimiser",
        choices=OPTIMISERS,
        help="Keras optimiser with Keras' settings and a constant rate, in place of the recipe's optimiser and schedule",
    )
    run.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        default=(),
        metavar="VERSION",
        help="version directories whose model.onnx files together teach a recipe that has a teacher (default: the newest "
        "bundled version of `digits-flagship`)",
    )
    run.add_argument("--tensorboard", type=Path, metavar="DIRECTORY", help="directory for TensorBoard logs")

    catalogue = actions.add_parser(
        "catalogue",
        parents=[data, writers, hold_out],
        help="run every recipe with several seeds and write one table of results",
    )
    catalogue.add_argument("--seeds", type=whole_number(1, 10_000), default=3, help="runs per recipe (default: %(default)s)")
    catalogue.add_argument(
        "--recipes",
        nargs="+",
        metavar="RECIPE",
        help="recipes to run: names, or Python files of yours, with all their recipes (PATH.py) or one (PATH.py:NAME) "
        "(default: all bundled recipes)",
    )
    catalogue.add_argument(
        "--models",
        type=Path,
        default=Path("catalogue"),
        help="model repository with one model per recipe; existing versions are reused (default: %(default)s)",
    )

    verify = actions.add_parser(
        "verify",
        parents=[data],
        help="evaluate a version's ONNX file on the test images and compare its outputs with its Keras network",
    )
    verify.add_argument("version", type=Path, help="version directory with model.onnx and model.keras")

    compare = actions.add_parser(
        "compare",
        parents=[data, captured],
        help="test two versions for a difference in accuracy, on the test images and on captured images",
        description="Compares the accuracies of versions OLD and NEW on the same images, by the 95 % interval of their "
        "difference. The exit status is 3 when NEW is significantly worse on any set of images.",
    )
    compare.add_argument("old", type=Path, metavar="OLD", help="version directory with model.onnx")
    compare.add_argument("new", type=Path, metavar="NEW", help="version directory with model.onnx")

    certify = actions.add_parser(
        "certify",
        parents=[transposed, risk, replacement],
        help="certify an existing version on your own mail; publish the same network with new thresholds beside it",
        description="Certifies the thresholds of VERSION on other images than those of its training: labelled images "
        "(--data), or mail that a service captured (--captured with --audit-rate). The new version has the same network. "
        "Its model card says what it was certified on.",
    )
    certify.add_argument("version", type=Path, metavar="VERSION", help="version directory with model.onnx and run.json")
    mail = certify.add_mutually_exclusive_group(required=True)
    mail.add_argument("--data", metavar="DATA", help="labelled images, in any form that `run` takes, except a database")
    mail.add_argument("--captured", metavar="URL", help="database that `digits serve --capture` writes")
    certify.add_argument(
        "--audit-rate",
        type=share,
        help="with --captured: the service's --audit-rate while it captured the images; rejected answers are thinned out to "
        "this share, so that the sample is one of all mail",
    )
    certify.add_argument(
        "--lexicon",
        type=Path,
        metavar="FILE",
        help="codes that fields show, one a line; the thresholds of fields then also hold for reading with this lexicon",
    )

    export = actions.add_parser(
        "export",
        parents=[data, writers, replacement],
        help="export a version's network again, recalibrate and certify it, publish a new version beside the first",
    )
    export.add_argument("version", type=Path, help="version directory that `digits-train run` published")

    quantize = actions.add_parser(
        "quantize",
        parents=[data, writers, replacement],
        help="quantise a version to 8-bit integers, recalibrate and certify it, publish a new version beside the first",
    )
    quantize.add_argument("version", type=Path, help="version directory that `digits-train run` published")

    cascade = actions.add_parser(
        "cascade",
        parents=[data, writers, risk, replacement],
        help="join two versions in one model: the second reads the images of which the first is not sure",
        description="Joins versions FIRST and SECOND of one model repository, with the same precision and held-out "
        "images. SECOND reads the images of which FIRST is not sure. FIRST must have an output `whole`; without one in "
        "SECOND, FIRST alone judges what shows no digit. The result is certified and published as a version of a model of "
        "its own.",
    )
    cascade.add_argument("first", type=Path, metavar="FIRST", help="version directory of the fast network")
    cascade.add_argument("second", type=Path, metavar="SECOND", help="version directory of the network for unsure images")
    cascade.add_argument(
        "--name", type=model_name, default="digits-cascade", help="model name in the repository (default: %(default)s)"
    )
    cascade.add_argument(
        "--sent-on",
        type=probability,
        metavar="SHARE",
        default=0.02,
        help="share of the held-out digits that SECOND reads (default: %(default)s)",
    )

    report = actions.add_parser(
        "report",
        parents=[data],
        help="measure a version on damaged images, digits of other sources and images without a digit; write the results to "
        "its run.json, MODEL_CARD.md and report.html",
    )
    report.add_argument("version", type=Path, help="version directory that `digits-train run` published")

    study = actions.add_parser(
        "study",
        parents=[data, writers, schedule],
        help="run a study of a plot, question or claim of the seed notebooks; without a name, list the studies",
    )
    study.add_argument("study", metavar="NAME", nargs="?", help="study name from the list, or `all`")
    study.add_argument(
        "--out",
        type=Path,
        default=Path("studies"),
        help="directory for pictures, tables and trained networks, which later studies reuse (default: %(default)s)",
    )
    study.add_argument(
        "--recipes", nargs="+", default=(), metavar="RECIPE", help="recipes to study (default: the study's choice)"
    )
    study.add_argument(
        "--models",
        type=Path,
        help="directory with versions that `run` or `catalogue` published; a network found there is not trained again",
    )
    detector = study.add_argument_group("detection", "Darknet files for the study `detection`, for example YOLOv3's.")
    detector.add_argument("--photo", type=Path, help="image file in which to detect objects")
    detector.add_argument("--weights", type=Path, help="the detector's .weights file")
    detector.add_argument("--names", type=Path, help="text file with the class names, one per line")
    detector.add_argument("--cfg", type=Path, help="the detector's .cfg file (default: the layers of YOLOv3)")
    return parser
