import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.html_page import Page
from training.calibrate import softmax
from training.dataset import Dataset
from training.evaluate import evaluate
from training.model_card import model_card
from training.report import page


def test_page_and_card_mention_the_lack_of_held_out_images(
    record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    history = {name: record["history"][name] for name in ("loss", "accuracy")}
    record |= {"validation_images": 0, "validation": None, "thresholds": {}, "temperature": 1.0, "history": history}
    record |= {"certified_on": None, "fields": {}}
    text = Page(page(record, drawn.test, logits)).text
    assert "no validation curves" in text
    assert "No threshold is certified: no images were held out" in text
    card = model_card(record)
    assert "No images were held out." in card
    assert "no images to fit a temperature to or to certify a threshold on" in card
    assert "**It promises no error rate.** No images were held out to certify one on" in beginning(card)
    assert "Certified Thresholds" not in card


def test_a_digit_that_is_never_predicted_is_reported(
    record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    without_8 = logits.copy()
    without_8[:, 8] = -100
    record["test"] = asdict(evaluate(softmax(without_8, 1.25), drawn.test.labels))
    assert "never predicted" in Page(page(record, drawn.test, without_8)).text
    assert "| 8 | 0.00 % | never predicted |" in model_card(record)


def test_the_card_has_its_headings_and_the_limits_of_its_guarantee(record: dict[str, Any]) -> None:
    card = model_card(record)
    assert card.startswith("---\nlicense: apache-2.0\n")
    headings = re.findall(r"^##+ (.*)$", card, re.MULTILINE)
    assert headings[:3] == ["Model Details", "Uses", "Direct Use"]
    for heading in ("Out-of-Scope Use", "Training Data", "Training Procedure", "Evaluation", "Robustness", "Citation"):
        assert heading in headings
    assert "| 0.5 % | 1.23 % | 0.7500 | 91.00 % | 3 | 92.30 % | 1 | 0.400 % |" in card
    assert "| 0.1 % | | none can be certified | | | | | |" in card
    assert "| 5 | 5.0 % | 1.23 % | 0.7500 | 91.00 % | 92.30 % | 1 |" in card
    assert "| 5 | 2.0 % | | none | | | |" in card
    assert "| 5 | 40 | 97.50 % | 98.76 % |" in card
    assert "| shift 2 px | 65.43 % |" in card
    assert "The temperature was fitted to the same" in card
    assert "at most 0.001, separately for each threshold" in card
    assert 'The column "by writer" states an upper bound' in card
    assert "drawn at random; their writers may also have written training images" in card
    for found in record["thresholds"].values():
        if found:
            found["by_writer"] = None
    card = model_card(record)
    assert "| 0.5 % | unknown | 0.7500 |" in card
    assert "the writers of these images are unknown" in card
    assert "by writers of whom no image was trained on" in model_card(record | {"validation_writers": "other"})


def beginning(card: str) -> str:
    """The card's text before its first section, on one line."""
    return " ".join(card.split("## Model Details")[0].split())


def test_the_card_begins_with_the_mail_that_its_promise_holds_for(record: dict[str, Any]) -> None:
    text = beginning(model_card(record))
    assert "Each promise holds for mail like the images that it was certified on: 100 training images of MNIST" in text
    assert "promises at most 0.5 % errors, and accepts 91.00 % of such images" in text
    assert "| another hand | 1,234 | 45.67 % (40.00 % to 50.00 %) | 50.00 % | 123, 19.94 % |" in text
    assert "| thick pens | 100 | 98.00 % (93.00 % to 99.00 %) | 0.00 % | 0 |" in text
    record["thresholds"]["0.005"] = record["thresholds"]["0.002"] = None
    assert "default error rate of 0.5 % could be certified: **by default, a service accepts nothing.**" in beginning(
        model_card(record)
    )


def test_card_and_page_show_the_non_digits_accepted_by_kind(
    record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    assert "Expect letters, marks and several digits in one image to be accepted." in " ".join(model_card(record).split())
    assert "It was not measured" in page(record, drawn.test, logits)

    def row(kind: str, group: str, accepted: int) -> dict[str, Any]:
        counts = {"accepted": {"0.005": accepted}, "upper": {"0.005": 0.0456}}
        return {"kind": kind, "group": group, "images": 1_000, **counts, "refused_by_whole": 900}

    kinds = [row("noise", "trained", 2), row("ticks", "held_out", 100), row("<stars>", "held_out", 50)]
    record |= {"no_digit": kinds, "whole": {"threshold": 0.25, "held_out_lost": 0.001, "test_lost": 0.0012}}
    card = model_card(record)
    assert "| kinds that training never makes | images | refused by the second head | accepted at 0.5 % |" in card
    assert "| ticks | 1,000 | 90.0 % | 10.0 % (4.6 %) |\n| <stars> | 1,000 | 90.0 % | 5.0 % (4.6 %) |" in card
    assert "| **mean** | | | **7.5 %** |\n| **worst** | | | ticks |\n" in card
    assert "where it gives less than 0.250000" in card
    assert "loses 0.10 %. It refuses 0.12 % of the test images." in card
    assert "digit_shaped" not in card
    text = " ".join(Page(page(record, drawn.test, logits)).text.split())
    assert "ticks 1,000 90.0 % 10.0 % (4.6 %) <stars> 1,000 90.0 % 5.0 % (4.6 %) mean 7.5 % worst ticks" in text


def test_a_version_certified_on_other_mail_has_card_and_page(
    record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    found = {"threshold": 0.99999, "coverage": 0.9, "errors": 2, "by_writer": None}  # nothing about test images
    record |= {
        "mail": {"kind": "npz", "writers": None, "notes": []},
        "made_from": "20200101000000",
        "training_commit": "none",
    }
    record |= {"certified_on": "700 pieces of our mail", "thresholds": {"0.005": found}}
    record |= {"fields": {"4": {"fields": 175, "thresholds": {"0.05": found}}}}
    card = model_card(record)
    assert "certified on: 700 pieces of our mail. The digits are handwritten" in beginning(card)
    assert "| 0.5 % | unknown | 0.99999 | 90.00 % | 2 | | | |" in card
    assert "| 4 | 5.0 % | unknown | 0.99999 | 90.00 % | | |" in card
    assert "The temperature was fitted to the same" not in card
    assert "or for your mail" not in card
    text = " ".join(Page(page(record, drawn.test, logits)).text.split())
    assert "0.5 % unknown 0.99999 90.00 % \N{EN DASH} \N{EN DASH} \N{EN DASH}" in text
    record["fields"] = {}
    assert "A field, such as" not in model_card(record)


def test_the_card_names_other_data_than_mnist(record: dict[str, Any]) -> None:
    record["dataset"] = {"name": "our-mail", "training_images": 900}
    card = model_card(record)
    assert "test images of our-mail is" in beginning(card)
    assert "700 of the 900 training images of our-mail" in card
    assert "ylecun" not in card
    assert "100 were used for neither purpose" in card


def test_the_card_of_a_new_version_names_the_missing_report(made: Path) -> None:
    card = (made / "MODEL_CARD.md").read_text()
    assert "Not measured yet: `digits-train report VERSION_DIRECTORY` measures it" in card
    assert "- Adam, batch size 32, 2 epochs, seed 0." in card


def test_the_card_says_how_to_use_a_second_head_and_what_it_was_trained_with(record: dict[str, Any]) -> None:
    without = model_card(record)
    assert "one image, print, photographs and images with other framing were not in its training data" in without
    assert "output `whole`" not in without
    record |= {
        "whole": {"threshold": 0.25, "held_out_lost": 0.001, "test_lost": 0.0012},
        "mixture": {"glyphs": 0.12, "other_pens": 0.08, "rubbish": 0.25, "damaged": 0.35, "teacher": 0.5},
        "teacher_sha256": "a checksum",
    }
    card = model_card(record)
    assert "| output `whole` | float32 [N, 1], probability that the image shows one whole digit |" in card
    assert 'session.run(["probabilities", "whole"], {"images": images})' in card
    assert "whole[:, 0] >= 0.250000" in card
    assert "25 % images without a whole digit. 35 % of all were damaged" in " ".join(card.split())
    assert "The answers of teachers (SHA-256 a checksum) made 50 % of the targets" in " ".join(card.split())
    assert "were not in its training data" not in card


def test_the_card_of_a_version_trained_on_own_data_names_them_and_not_mnist(record: dict[str, Any]) -> None:
    assert "American census workers" in model_card(record)
    record["dataset"] = {"name": "pictures", "training_images": 200}
    card = model_card(record)
    assert "- mnist\n" not in card
    assert "American census workers" not in card
    assert "The network knows the handwriting, pens, scanners and framing of pictures." in card
