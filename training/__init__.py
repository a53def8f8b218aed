"""From labelled images to a verified ONNX file. Start with `python -m training --help`.

    dataset -> augmentation -> architectures -> fit -> calibrate -> certify -> evaluate -> export -> verify
               [ ........ recipes ......... ]          [ ........ assess ......... ]
    [ ........................................ pipeline ........................................ ]

In: MNIST or your own images (`sources`), and images captured in service (`captured_images`, read by `capture_database`).
Out: a version directory (`version_directory`) with the ONNX file, the Keras network, the run record `run.json` and the model
card (`model_card`).

- `sources` reads labelled images in every form that `--data` takes, and refuses what is not images of digits.
- `assess` calibrates, certifies and evaluates one network, after a fit or a quantisation. `whole` fixes the threshold of a
  second head first; `certificates` certifies digits and fields of any `mail`.
- `synthesis` draws the images that MNIST lacks: digits of other hands and pens, and what is no digit. `batches` mixes them
  into epochs, `objective` is the loss of both heads, `teacher` finds the model that teaches, and `progress` keeps the state
  of a run.
- `recipes` names each combination of data split, augmentation, network, optimiser and schedule.
- `pipeline` runs the stages from left to right and publishes a version only after verification has passed; `make_version`
  has the stages from assessment on. `exported` runs an ONNX file.
- `recipe_file` loads a recipe from a file of yours, and `hyperparameters` changes a recipe for one run.
- `own_mail` certifies an existing version on mail of yours, also for fields with a lexicon. `sketch` recognises mail that
  the version was trained on.
- `quantize` makes an 8-bit version of a version, which is assessed and verified like the first.
- `combine` publishes a `cascade`: a fast network and a larger one, joined in one ONNX file.
- `catalogue` runs every recipe with several seeds. `compare` tests two versions for a difference in accuracy.
- `robustness` measures the accuracy under `damage` and lists digits of other sources. `non_digits` draws what is no digit
  and counts what a version accepts of it. `drift_reference` describes the images that a version was certified on.
- `parser` defines the commands of `digits-train`, `argument_types` checks their values, and `commands` carries them out.
  `files` writes files atomically.
- `report` shows a finished version on one HTML page, drawn by `figures`.
- `studies` answers the plots, questions and claims of the seed notebooks.

The ONNX file and its metadata are all that crosses to `serving`. Neither package imports the other, except for what both
must apply identically: the framing of digits and crops (`serving.imaging`), and the lookup of a field's digits in a lexicon
(`serving.answers.lexicon`).
"""

import logging
import os

# ONNX Runtime sends usage telemetry unless this is set before the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Matplotlib logs a message when it builds its font cache, and another when there is no home directory for the cache.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
