"""Where labelled images come from. Each source gives a `Dataset`: 28x28 images, 0 paper, 255 ink, and digits 0 to 9.

--data   nothing         -> mnist      MNIST from Keras' cache, or a download
         FILE.npz        -> npz        arrays: MNIST's own file, or yours
         FOLDER          -> idx        files in MNIST's first format, also EMNIST's
         FOLDER          -> pictures   PNG and JPEG files in a folder per digit, framed as the service frames crops
         sqlite:///...   -> captured   images that a service captured, with their reported truth

`load` chooses the source. `plausible` and `orientation` refuse wrong sizes, labels, polarity and turned images, with the
remedy. A source without test images gets some by `partition`.
"""

from training.sources.load import load_dataset, names_a_database, require_every_digit

__all__ = ["load_dataset", "names_a_database", "require_every_digit"]
