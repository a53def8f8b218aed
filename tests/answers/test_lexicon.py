from itertools import product
from pathlib import Path

import numpy as np
import pytest

from serving.answers.lexicon import UNLISTED, Lexicon, LexiconError, read_lexicons


def lexicon(tmp_path: Path, *codes: str) -> Lexicon:
    file = tmp_path / "codes.txt"
    file.write_text("\n".join(codes))
    return Lexicon.from_file(file)


def sure(text: str, confidence: float = 0.999) -> np.ndarray:
    """Returns (n, 10) probabilities that put `confidence` on each digit of `text`, and the rest evenly on the others."""
    probabilities = np.full((len(text), 10), (1 - confidence) / 9)
    probabilities[range(len(text)), [int(digit) for digit in text]] = confidence
    return probabilities


def test_codes_of_any_length_keep_leading_zeros_and_count_once(tmp_path: Path) -> None:
    codes = lexicon(tmp_path, "00501", "90210", "", "0501", "90210", "123456789012345678", "5\r", "")
    assert len(codes) == 5
    for code in ("00501", "0501", "123456789012345678", "5"):
        digits, confidence, unlisted = codes.lookup(sure(code, 0.9999))
        assert "".join(map(str, digits)) == code
        assert confidence > 0.9
        assert unlisted < 0.1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"123\n12a\n", "line 2: '12a' is not a code"),
        (b"123\n\n12 \n", "line 3: '12 ' is not a code"),
        (b"1" * 19, "line 1: '1111111111111111111' is not a code, expected 1 to 18 digits"),
        (b"-12", "'-12' is not a code"),
        ("\u0663".encode(), "is not a code"),
    ],
)
def test_an_invalid_lexicon_is_refused_with_its_file_and_line(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "codes.txt").write_bytes(content)
    with pytest.raises(LexiconError) as refusal:
        read_lexicons(tmp_path)
    assert reason in str(refusal.value)
    assert "codes.txt" in str(refusal.value)


def test_lexicons_are_named_after_their_files(tmp_path: Path) -> None:
    (tmp_path / "us.txt").write_text("90210")
    (tmp_path / "README.md").write_text("not a lexicon")
    assert list(read_lexicons(tmp_path)) == ["us"]
    with pytest.raises(LexiconError, match=r"the directory of lexicons .*none does not exist"):
        read_lexicons(tmp_path / "none")
    with pytest.raises(LexiconError, match=r"cannot read the lexicon .*: Is a directory"):
        Lexicon.from_file(tmp_path)


def test_the_lexicon_decides_a_doubtful_digit(tmp_path: Path) -> None:
    probabilities = sure("90215")
    probabilities[4] = [0.45, *[0] * 4, 0.55, *[0] * 4]
    digits, confidence, unlisted = lexicon(tmp_path, *(f"{code:05}" for code in range(0, 100_000, 10))).lookup(probabilities)
    assert "".join(map(str, digits)) == "90210"
    assert confidence > 0.97
    assert unlisted < 0.02


def test_a_confident_reading_that_is_not_a_code_is_unlisted(tmp_path: Path) -> None:
    every_tenth = lexicon(tmp_path, *(f"{code:05}" for code in range(0, 100_000, 10)))
    digits, confidence, unlisted = every_tenth.lookup(sure("90215", 0.9999))
    assert "".join(map(str, digits)) == "90215"
    assert confidence > 0.95
    assert unlisted > 0.95
    digits, confidence, unlisted = every_tenth.lookup(sure("9021"))
    assert ("".join(map(str, digits)), unlisted) == ("9021", 1.0), "there is not a code of four digits"
    assert confidence == pytest.approx(0.999**4)


def test_confidence_follows_bayes_rule(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    listed = {f"{code:03}" for code in random.choice(1000, 300, replace=False)}
    codes = lexicon(tmp_path, *sorted(listed))
    for _ in range(50):
        probabilities = random.dirichlet(np.full(10, 0.3), 3)
        prior = {True: (1 - UNLISTED) / 300, False: UNLISTED / 700}
        weights = {}
        for digits in product(range(10), repeat=3):
            code = "".join(map(str, digits))
            weights[code] = prior[code in listed] * float(
                np.prod([probabilities[i, digit] for i, digit in enumerate(digits)])
            )
        evidence = sum(weights.values())
        unlisted_share = sum(weights[code] for code in weights if code not in listed) / evidence
        best = "".join(map(str, probabilities.argmax(axis=1)))
        expected = max(listed, key=weights.__getitem__) if unlisted_share < 0.5 else best
        found, confidence, unlisted = codes.lookup(probabilities)
        assert "".join(map(str, found)) == expected
        assert confidence == pytest.approx(weights[expected] / evidence, abs=1e-3)
        assert unlisted == pytest.approx(unlisted_share, abs=1e-3)


def test_a_single_code_is_found_although_digits_are_misread(tmp_path: Path) -> None:
    only = lexicon(tmp_path, "123456789")
    probabilities = sure("923416785", 0.95)
    digits, confidence, unlisted = only.lookup(probabilities)
    assert "".join(map(str, digits)) == "123456789"
    right, wrong = 0.95, 0.05 / 9
    likelihood = right**6 * wrong**3
    assert confidence == pytest.approx(0.99 * likelihood / (0.99 * likelihood + 0.01 / 1e9 * (1 - likelihood)), rel=1e-6)
    assert unlisted == pytest.approx(1 - confidence)


def test_the_beam_search_for_many_codes_agrees_with_the_full_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    listed = [f"{code:05}" for code in random.choice(100_000, 5000, replace=False)]
    exact = lexicon(tmp_path, *listed)
    monkeypatch.setattr("serving.answers.lexicon._FEW", 100)
    searched = lexicon(tmp_path, *listed)
    for _ in range(50):
        probabilities = random.dirichlet(np.full(10, 0.1), 5)
        one, other = exact.lookup(probabilities), searched.lookup(probabilities)
        assert one[0].tolist() == other[0].tolist()
        assert one[1:] == pytest.approx(other[1:], abs=0.02)


def test_a_lexicon_of_every_number_changes_nothing(tmp_path: Path) -> None:
    codes = lexicon(tmp_path, *(f"{code:02}" for code in range(100)))
    probabilities = np.random.default_rng(1).dirichlet(np.full(10, 0.3), 2)
    digits, confidence, unlisted = codes.lookup(probabilities)
    assert digits.tolist() == probabilities.argmax(axis=1).tolist()
    assert confidence == pytest.approx(probabilities.max(axis=1).prod(), rel=1e-3)
    assert unlisted == pytest.approx(0, abs=1e-9)


def test_a_long_field_without_a_confident_digit_is_still_found(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.full(10, 2), 18)
    best = "".join(map(str, probabilities.argmax(axis=1)))
    digits, _, _ = lexicon(tmp_path, best, "9" * 18).lookup(probabilities)
    assert "".join(map(str, digits)) == best
