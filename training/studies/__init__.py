"""Studies of the plots, questions and claims in the seed notebooks: `digits-train study NAME` runs one.

    study         the definition of a study, and the list of all studies.
    workbench     the data, networks that all studies share, and the directory for results.
    images        samples, balance.
    convolutions  filters, stride-padding, max-pooling.
    networks      gallery, curves, confusion, parameters.
    comparisons   batch-size, optimiser, local-vs-global.
    label_noise   label-noise.
    detection     detection.
    darknet       builds the detector's network from a .cfg file, which `darknet_cfg` parses.
    yolov3        the .cfg of the notebook's detector.

A study takes the workbench, writes pictures (PNG) and numbers (CSV), and returns its finding in one line.
"""
