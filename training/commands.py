"""What each command of `digits-train` does."""

import argparse
import sys
import tempfile
import time

import keras

from training import pipeline
from training.catalogue import catalogue
from training.dataset import DatasetError, load_mnist
from training.evaluate import evaluate
from training.export import ExportError
from training.recipes import RECIPES, Recipe
from training.report import ReportError, report
from training.studies import STUDIES, Study
from training.studies.darknet import DetectionError
from training.studies.workbench import Brought, Workbench
from training.verify import Exported, VerificationError, verify
from training.versions import VersionError


class UsageError(Exception):
    """The command line asks for what there is not; the message says what there is."""


def carry_out(options: argparse.Namespace) -> int:
    """Does what the command line asked for; returns the exit status."""
    actions = {
        "list": list_recipes,
        "run": run_recipe,
        "catalogue": run_catalogue,
        "verify": verify_version,
        "quantize": quantize_version,
        "report": report_version,
        "study": run_study,
    }
    try:
        return actions[options.action](options)
    except UsageError as error:
        print(f"digits-train: {error}", file=sys.stderr)
        return 2
    except (DatasetError, DetectionError, ExportError, ReportError, VerificationError, VersionError, OSError) as error:
        print(f"digits-train: {error}", file=sys.stderr)
        return 1


def list_recipes(options: argparse.Namespace) -> int:
    """Prints every recipe."""
    print(f"{'recipe':15} {'parameters':>10} {'epochs':>6}  {'expected':16} {'claimed':9} source")
    for recipe in RECIPES.values():
        low, high = recipe.expected
        print(
            f"{recipe.name:15} {recipe.network().count_params():>10,} {recipe.epochs:>6}  "
            f"{f'{low:g} to {high:g}':16} {recipe.claimed:9} {recipe.source}"
        )
    return 0


def run_recipe(options: argparse.Namespace) -> int:
    """Walks the whole road for one recipe and says where the new version lies."""
    [recipe] = _recipes([options.recipe])
    dataset = load_mnist(options.data, options.writers)
    directory, epochs = options.models / options.name, options.epochs or recipe.epochs
    published = pipeline.run(recipe, dataset, options.seed, epochs, directory, options.tensorboard)
    print(f"published  {published}")
    return 0


def run_catalogue(options: argparse.Namespace) -> int:
    """Runs all recipes, or those asked for, and prints their table."""
    asked = [recipe.name for recipe in _recipes(options.recipes or list(RECIPES))]
    dataset = load_mnist(options.data, options.writers)
    options.models.mkdir(parents=True, exist_ok=True)
    print(catalogue(RECIPES.values(), asked, dataset, options.seeds, options.models), end="")
    return 0


def _recipes(names: list[str]) -> list[Recipe]:
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise UsageError(f"no recipe {unknown[0]!r}; there are: {', '.join(RECIPES)}")
    return [RECIPES[name] for name in names]


def verify_version(options: argparse.Namespace) -> int:
    """Reports what a version's ONNX file reads right, and that it is what it says of itself and agrees with Keras."""
    exported = Exported(options.version / "model.onnx")
    try:
        network = keras.models.load_model(options.version / "model.keras")
        temperature, stated = (float(exported.metadata[name]) for name in ("temperature", "test_accuracy"))
    except (KeyError, ValueError) as error:
        raise VerificationError(f"{options.version} is no version that `digits-train run` made: {error}") from error
    test = load_mnist(options.data).test
    evaluation = evaluate(exported.answers(test.images, 100)[1], test.labels)
    print(f"test {evaluation}")
    if evaluation.accuracy != stated:
        raise VerificationError(f"{exported.path} says of itself that its test accuracy is {stated}")
    print(verify(exported, network, temperature, test.images))
    return 0


def quantize_version(options: argparse.Namespace) -> int:
    """Leaves a version in 8-bit integers beside the one in float32."""
    print(f"published  {pipeline.run_int8(options.version, load_mnist(options.data, options.writers))}")
    return 0


def report_version(options: argparse.Namespace) -> int:
    """Measures a version's robustness, and writes its model card and its page anew."""
    print(f"report     {report(options.version, load_mnist(options.data))}")
    return 0


def run_study(options: argparse.Namespace) -> int:
    """Carries out one study, or all of them, and says what each shows; without a name, lists them."""
    if options.study is None:
        for study in STUDIES.values():
            print(f"{study.name:16} {study.shows} ({study.source})")
        return 0
    chosen = (
        list(STUDIES.values()) if options.study == "all" else [STUDIES[options.study]] if options.study in STUDIES else []
    )
    mistake = _mistake(options, chosen)
    if mistake:
        raise UsageError(mistake)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()  # before hours are spent on what can't be written down
    except OSError as error:
        raise OSError(f"cannot write to {options.out}: {error.strerror}; name another directory with --out") from error
    bench = Workbench(
        lambda: load_mnist(options.data),
        options.out,
        options.seed,
        options.epochs,
        options.recipes,
        options.models,
        None
        if _missing(options, STUDIES["detection"])
        else Brought(options.photo, options.weights, options.names, options.cfg),
    )
    for study in chosen:
        missing = _missing(options, study)
        if missing:
            print(f"{study.name:16} left out: it needs {missing}", flush=True)
            continue
        bench.written, began = [], time.monotonic()
        line = study.carry_out(bench)
        print(f"{study.name:16} {line} ({time.monotonic() - began:.0f} s: {', '.join(map(str, bench.written))})", flush=True)
    return 0


def _mistake(options: argparse.Namespace, chosen: list[Study]) -> str:
    """What is wrong with a call of `digits-train study`; "" if nothing is."""
    if not chosen:
        return f"no study {options.study!r}; there are: {', '.join(STUDIES)}, and all"
    for option in ("epochs", "recipes", "models", "photo", "weights", "names", "cfg"):
        if getattr(options, option) and not any(option in study.options for study in chosen):
            return f"study {options.study} has no use for --{option}"
    missing = _missing(options, chosen[0])
    if missing and options.study != "all":
        return f"study {options.study} needs {missing}; see digits-train study --help"
    if options.models and not options.models.is_dir():
        return f"no directory {options.models} to take versions from"
    unknown = [name for name in options.recipes if name not in RECIPES]
    if unknown:
        return f"no recipe {unknown[0]!r}; there are: {', '.join(RECIPES)}"
    return ""


def _missing(options: argparse.Namespace, study: Study) -> str:
    """The options that `study` can't do without and that are not given."""
    return ", ".join(f"--{option}" for option in study.needs if getattr(options, option) is None)
