"""YOLOv3 (Redmon & Farhadi 2018, arXiv 1804.02767), the network of seed notebook 003, generated from its structure."""

ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"  # from the paper, for a 416x416 input


def cfg() -> str:
    """Returns YOLOv3 as a Darknet .cfg for the 80 classes of COCO: 62,001,757 parameters, moving averages included.

    Photos keep their proportions between grey bars, as in Redmon's Darknet.
    """
    backbone = [_convolution(32, 3)]
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):  # Darknet-53: each stage halves the map
        backbone.append(_convolution(filters, 3, stride=2))
        for _ in range(blocks):
            backbone += [_convolution(filters // 2, 1), _convolution(filters, 3), "[shortcut]\nfrom=-3\nactivation=linear"]
    return "\n".join(
        [
            "[net]\nwidth=416\nheight=416\nchannels=3\nletter_box=1",
            *backbone,
            *_head(512, "6,7,8"),
            *_finer(256, onto=61),
            *_head(256, "3,4,5"),
            *_finer(128, onto=36),
            *_head(128, "0,1,2"),
        ]
    )


def _convolution(filters: int, size: int, stride: int = 1) -> str:
    return f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation=leaky"


def _head(filters: int, mask: str) -> list[str]:
    """Returns six convolutions, alternating 1x1 and 3x3, then 85 numbers per anchor: box, objectness, 80 classes."""
    return [
        *[_convolution(filters, 1), _convolution(2 * filters, 3)] * 3,
        "[convolutional]\nfilters=255\nsize=1\nactivation=linear",
        f"[yolo]\nmask={mask}\nanchors={ANCHORS}\nclasses=80",
    ]


def _finer(filters: int, onto: int) -> list[str]:
    """Upsamples the head's fifth convolution twofold and concatenates the last backbone map of that size, layer `onto`."""
    return [
        "[route]\nlayers=-4",
        _convolution(filters, 1),
        "[upsample]\nstride=2",
        f"[route]\nlayers=-1,{onto}",
    ]
