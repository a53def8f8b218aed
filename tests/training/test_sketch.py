import numpy as np

from tests.support.drawings import draw_many
from training.sketch import SIZE, found_in, sketch


def test_a_sketch_finds_a_part_of_its_images_among_others() -> None:
    images, _ = draw_many(1500, seed=1)
    others, _ = draw_many(300, seed=2)
    sketched = sketch(images)
    assert len(sketched) == SIZE
    assert sketched == sketch(np.random.default_rng(0).permutation(np.concatenate([images, images[:9]])))
    assert found_in(others, sketched) == 0
    assert 140 <= found_in(np.concatenate([others, images[:300]]), sketched) <= 260, "200 of 300 are expected"
    assert found_in(others, []) == 0
