"""Implements the commands of `digits-train`."""

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from training import pipeline
from training.captured_images import load_captured
from training.catalogue import catalogue
from training.combine import combine
from training.compare import certified_thresholds, compare, table
from training.dataset import Dataset, DatasetError
from training.export import ExportError
from training.exported import Exported, VerificationError
from training.files import require_writable
from training.hyperparameters import HyperparameterError, changed
from training.make_version import require_its_data
from training.own_mail import LexiconFile, captured_mail, mail_of, recertify, require_unseen, trained_at
from training.progress import DivergedError
from training.recipe_file import RecipeError, load_recipe, load_recipes, split_argument
from training.recipes import RECIPES, Recipe
from training.report import ReportError, report
from training.sources import load_dataset, names_a_database, require_every_digit
from training.studies.study import STUDIES, StudyError, choose
from training.studies.workbench import DetectionError, DetectorFiles, Workbench
from training.teacher import find_teacher
from training.verify import verify_version
from training.version_directory import VersionError, read_record

WORSE = 3  # the exit status of `compare`


class UsageError(Exception):
    """The command line names something that does not exist; the message lists the valid names."""


def run_command(options: argparse.Namespace) -> int:
    """Runs the command that the command line selects.

    Returns:
        The exit status: 0 success, 1 failure, 2 wrong usage, 3 for `compare` when NEW is worse.
    """
    actions = {
        "list": list_recipes,
        "run": run_recipe,
        "catalogue": run_catalogue,
        "verify": check_version,
        "compare": compare_versions,
        "export": remake_version,
        "quantize": remake_version,
        "cascade": combine_versions,
        "certify": certify_version,
        "report": report_version,
        "study": run_study,
    }
    try:
        status = actions[options.action](options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `digits-train list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's flush at exit would raise again
        return 1
    except (UsageError, StudyError, RecipeError, HyperparameterError) as error:
        print(f"digits-train: {error}", file=sys.stderr)
        return 2
    except (
        DatasetError,
        DetectionError,
        DivergedError,
        ExportError,
        OSError,
        ReportError,
        VerificationError,
        VersionError,
    ) as error:
        print(f"digits-train: {error}", file=sys.stderr)
        return 1


def list_recipes(options: argparse.Namespace) -> int:
    """Prints all bundled recipes, or the named ones."""
    recipes = _recipes(options.recipes or list(RECIPES))
    width = max(15, *(len(recipe.name) for recipe in recipes))
    print(f"{'recipe':{width}} {'parameters':>10} {'epochs':>6}  {'expected':16} {'claimed':9} source")
    for recipe in recipes:
        low, high = recipe.expected
        print(
            f"{recipe.name:{width}} {recipe.network().count_params():>10,} {recipe.epochs:>6}  "
            f"{f'{low:g} to {high:g}':16} {recipe.claimed:9} {recipe.source}"
        )
    return 0


def run_recipe(options: argparse.Namespace) -> int:
    """Trains one recipe and prints the path of the new version."""
    file = split_argument(options.recipe)
    recipe = load_recipe(*file) if file else _bundled(options.recipe)
    recipe = _holding_out(options.hold_out, [recipe])[0]
    recipe = changed(recipe, options.batch_size, options.learning_rate, options.optimiser)
    captured = None if options.captured is None else load_captured(options.captured)
    dataset = _dataset(options, options.writers)
    directory, epochs = options.models / options.name, options.epochs or recipe.epochs
    published = pipeline.run(
        recipe,
        dataset,
        options.seed,
        epochs,
        directory,
        options.tensorboard,
        captured,
        risk=options.risk,
        replace=options.replace,
        teacher=find_teacher(recipe, options.teacher),
    )
    print(f"published  {published}")
    return 0


def run_catalogue(options: argparse.Namespace) -> int:
    """Runs all or the selected recipes and prints their table."""
    selected = {recipe.name: recipe for recipe in _recipes(options.recipes or list(RECIPES))}
    dataset = _dataset(options, options.writers)
    require_writable(options.models)
    recipes = _holding_out(options.hold_out, (RECIPES | selected).values())
    print(catalogue(recipes, selected, dataset, options.seeds, options.models), end="")
    return 0


def _dataset(options: argparse.Namespace, writers: Path | None = None) -> Dataset:
    """Loads the data to train on, with the writers in a file of theirs, for commands that hold images out."""
    dataset = load_dataset(options.data, writers, options.transposed)
    require_every_digit(dataset)
    return dataset


def _recipes(texts: Iterable[str]) -> list[Recipe]:
    """Returns the recipes that the texts name: bundled ones by name, and those of files, PATH.py or PATH.py:NAME."""
    recipes: dict[str, Recipe] = {}
    for text in texts:
        file = split_argument(text)
        for recipe in load_recipes(*file) if file else [_bundled(text)]:
            if recipes.setdefault(recipe.name, recipe).file != recipe.file:
                raise UsageError(f"two files define a recipe named {recipe.name!r}; rename one of them")
    return list(recipes.values())


def _bundled(name: str) -> Recipe:
    if name not in RECIPES:
        raise UsageError(f"no recipe is named {name!r}; the recipes are: {', '.join(RECIPES)}")
    return RECIPES[name]


def _holding_out(images: int | None, recipes: Iterable[Recipe]) -> list[Recipe]:
    """Returns the recipes with this number of images held out; None leaves each recipe's own number."""
    return [recipe if images is None else replace(recipe, validation_images=images) for recipe in recipes]


def check_version(options: argparse.Namespace) -> int:
    """Verifies a version's ONNX file against its own metadata and its Keras network, and prints the results."""
    dataset = _dataset(options)
    require_its_data(options.version, read_record(options.version), dataset)
    evaluation, verification = verify_version(options.version, dataset.test)
    print(f"test {evaluation}\n{verification}")
    return 0


def compare_versions(options: argparse.Namespace) -> int:
    """Compares two versions on MNIST's test images and on held-out captured images."""
    dataset = _dataset(options)
    sets = {f"{'MNIST' if dataset.kind == 'mnist' else dataset.name}'s test images": dataset.test}
    if options.captured is not None:
        captured = load_captured(options.captured)
        if not len(captured.held_out):
            raise DatasetError(
                f"no captured image (of {len(captured.train)}) is held out by its answer's id; capture more images first"
            )
        sets["captured images, held out"] = captured.held_out
    old, new = (Exported(version / "model.onnx") for version in (options.old, options.new))
    thresholds = certified_thresholds(old), certified_thresholds(new)
    status = 0
    for name, examples in sets.items():
        decisions = old.decisions(examples.images), new.decisions(examples.images)
        comparison = compare(decisions, thresholds, examples.labels)
        print(f"{name}: {comparison}\n\n{table(comparison)}", flush=True)
        status = WORSE if comparison.worse else status
    return status


def remake_version(options: argparse.Namespace) -> int:
    """Publishes a version's network as a new version, exported again or quantised to 8-bit integers."""
    precision = "int8" if options.action == "quantize" else "fp32"
    print(f"published  {pipeline.remake(options.version, _dataset(options, options.writers), precision, options.replace)}")
    return 0


def combine_versions(options: argparse.Namespace) -> int:
    """Publishes a cascade of two versions."""
    stages, settings = (options.first, options.second), (options.name, options.sent_on, options.risk, options.replace)
    print(f"published  {combine(*stages, _dataset(options, options.writers), *settings)}")
    return 0


def certify_version(options: argparse.Namespace) -> int:
    """Certifies a version on other mail and publishes it with the new thresholds."""
    if (options.audit_rate is None) != (options.captured is None):
        raise UsageError(
            "--captured needs --audit-rate, and --data does not: accepted answers are captured at this rate only, and the "
            "sample is biased until rejected answers are thinned out to the same rate"
        )
    if options.transposed and options.captured is not None:
        raise UsageError("--transposed is for --data: captured images are as the service read them")
    lexicon = LexiconFile.read(options.lexicon) if options.lexicon else None
    record = read_record(options.version)
    if options.captured is not None:
        mail = captured_mail(options.captured, options.audit_rate, trained_at(record))
    elif names_a_database(options.data):
        raise UsageError("to certify on a capture database, use --captured with --audit-rate: it needs an unbiased sample")
    else:
        mail = mail_of(load_dataset(options.data, None, options.transposed))
    require_unseen(mail, options.version, record)
    print(f"published  {recertify(options.version, mail, options.risk, lexicon, options.replace)}")
    return 0


def report_version(options: argparse.Namespace) -> int:
    """Measures a version's robustness and rewrites its model card and HTML page."""
    print(f"report     {report(options.version, _dataset(options))}")
    return 0


def run_study(options: argparse.Namespace) -> int:
    """Runs one study or all of them and prints their findings; without a name, lists them."""
    if options.study is None:
        for study in STUDIES.values():
            print(f"{study.name:16} {study.shows} ({study.source})")
        return 0
    chosen = choose(options.study, vars(options))
    for name in options.recipes:
        _bundled(name)  # raises UsageError
    if options.models and not options.models.is_dir():
        raise UsageError(f"--models {options.models} is not a directory; expected a directory with versions")
    require_writable(options.out)  # fails before hours of training whose results could not be saved
    detector = None
    if options.photo and options.weights and options.names:
        detector = DetectorFiles(options.photo, options.weights, options.names, options.cfg)
    bench = Workbench(
        lambda: _dataset(options, options.writers),
        options.out,
        options.seed,
        options.epochs,
        options.recipes,
        options.models,
        detector,
    )
    for study in chosen:
        print(f"{study.name:16} {study.run(bench)}", flush=True)
    return 0
