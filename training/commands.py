"""What each command of `digits-train` does."""

import argparse
import os
import sys

from training import pipeline
from training.captured_images import load_captured
from training.catalogue import catalogue
from training.compare import certified_thresholds, compare, table
from training.dataset import DatasetError, load_mnist
from training.export import ExportError
from training.files import require_writable
from training.recipes import RECIPES, Recipe
from training.report import ReportError, report
from training.studies.study import STUDIES, StudyError, choose
from training.studies.workbench import Brought, DetectionError, Workbench
from training.verify import Exported, VerificationError, verify_version
from training.version_directory import VersionError

WORSE = 3  # the exit status of `compare`


class UsageError(Exception):
    """The command line asks for what there is not; the message says what there is."""


def carry_out(options: argparse.Namespace) -> int:
    """Does what the command line asked for; returns the exit status."""
    actions = {
        "list": list_recipes,
        "run": run_recipe,
        "catalogue": run_catalogue,
        "verify": check_version,
        "compare": compare_versions,
        "export": remake_version,
        "quantize": remake_version,
        "report": report_version,
        "study": run_study,
    }
    try:
        status = actions[options.action](options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `digits-train list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes, at the end
        return 1
    except (UsageError, StudyError) as error:
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
    captured = None if options.captured is None else load_captured(options.captured)
    dataset = load_mnist(options.data, options.writers)
    directory, epochs = options.models / options.name, options.epochs or recipe.epochs
    published = pipeline.run(recipe, dataset, options.seed, epochs, directory, options.tensorboard, captured)
    print(f"published  {published}")
    return 0


def run_catalogue(options: argparse.Namespace) -> int:
    """Runs all recipes, or those asked for, and prints their table."""
    asked = [recipe.name for recipe in _recipes(options.recipes or list(RECIPES))]
    dataset = load_mnist(options.data, options.writers)
    require_writable(options.models)
    print(catalogue(RECIPES.values(), asked, dataset, options.seeds, options.models), end="")
    return 0


def _recipes(names: list[str]) -> list[Recipe]:
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise UsageError(f"no recipe {unknown[0]!r}; there are: {', '.join(RECIPES)}")
    return [RECIPES[name] for name in names]


def check_version(options: argparse.Namespace) -> int:
    """Reports what a version's ONNX file reads right, and that it is what it says of itself and agrees with Keras."""
    evaluation, verification = verify_version(options.version, load_mnist(options.data).test)
    print(f"test {evaluation}\n{verification}")
    return 0


def compare_versions(options: argparse.Namespace) -> int:
    """Says which of two versions reads the test images better, and which the captured images that are held out."""
    sets = {"MNIST's test images": load_mnist(options.data).test}
    if options.captured is not None:
        captured = load_captured(options.captured)
        if not len(captured.held_out):
            raise DatasetError(
                f"by their answers' ids none of the {len(captured.train)} captured images is held out: capture more"
            )
        sets["captured images, held out"] = captured.held_out
    old, new = (Exported(version / "model.onnx") for version in (options.old, options.new))
    thresholds = certified_thresholds(old), certified_thresholds(new)
    status = 0
    for name, examples in sets.items():
        answers = old.answers(examples.images)[1], new.answers(examples.images)[1]
        comparison = compare(answers, thresholds, examples.labels)
        print(f"{name}: {comparison}\n\n{table(comparison)}", flush=True)
        status = WORSE if comparison.worse else status
    return status


def remake_version(options: argparse.Namespace) -> int:
    """Leaves a version's network beside it as a new version, exported again or in 8-bit integers."""
    precision = "int8" if options.action == "quantize" else "fp32"
    print(f"published  {pipeline.remake(options.version, load_mnist(options.data, options.writers), precision)}")
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
    chosen = choose(options.study, vars(options))
    _recipes(options.recipes)
    if options.models and not options.models.is_dir():
        raise UsageError(f"no directory {options.models} to take versions from")
    require_writable(options.out)  # before hours are spent on what can't be written down
    brought = None
    if options.photo and options.weights and options.names:
        brought = Brought(options.photo, options.weights, options.names, options.cfg)
    bench = Workbench(
        lambda: load_mnist(options.data, options.writers),
        options.out,
        options.seed,
        options.epochs,
        options.recipes,
        options.models,
        brought,
    )
    for study in chosen:
        print(f"{study.name:16} {study.run(bench)}", flush=True)
    return 0
