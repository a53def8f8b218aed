"""The plots, questions and claims of the seed notebooks: `digits-train study NAME` looks into one of them.

    study        what a study is, and all there are
    workbench    the data, networks that are trained once for all studies, the directory for results
    images       samples, balance
    convolutions filters, stride-padding, max-pooling
    networks     gallery, curves, confusion, parameters
    comparisons  batch-size, optimiser, local-vs-global
    label_noise  label-noise
    detection    detection, with the network that darknet builds of what darknet_cfg reads; yolov3 is the notebook's

A study takes the workbench, leaves pictures (PNG) and numbers (CSV), and returns one line of what they show.
"""
