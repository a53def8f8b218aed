"""From images to a verified ONNX file. `python -m training --help` is the way in.

    dataset -> augmentation -> architectures -> fit -> calibrate -> evaluate -> export -> verify
               [ ........ recipes ......... ]
    [ ...................................... pipeline ...................................... ]

`captured` adds images from the service to those that are learnt from; `compare` says which of two versions reads better.
`robustness` reads the test images damaged, and a second source of digits, framed as MNIST's makers did.
`report` shows a finished version on one page, with `figures` and `model_card`.

A recipe names the data split, the distortions, the network, the optimiser and its schedule; the pipeline walks the road
from left to right and publishes a model version only when the last step has passed. The ONNX file and its metadata are all
that crosses to `serving`; neither package imports the other, but for `serving.imaging.framing`, which both must do alike.
`quantize` makes an 8-bit version of a version, which is judged and verified like the first. `studies` looks into plots,
questions and claims of the seed notebooks.
"""

import logging
import os

# ONNX Runtime reports its use to its makers unless it is told not to, before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Matplotlib announces that it builds its cache of fonts, and where it keeps it when there is no home.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
