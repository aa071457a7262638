"""What "Try a picture" says of a threshold, and of the training images that it looked through."""

import pytest

from calift_core.schema.wire.answers import KeptAt, TrainingPictures, TriedPicture
from frontend.text import kept_words, training_words


@pytest.mark.parametrize(
    ("threshold", "kept", "said"),
    [
        (0.83, True, "kept: above the 83.0\u00a0% threshold"),
        (0.83, False, "abstains: below the 83.0\u00a0% threshold"),
        (0.0, True, "kept, as every answer is: that makes at most 5.0\u00a0% errors"),
        (0.25, True, "kept, as every answer is: that makes at most 5.0\u00a0% errors"),
        (None, None, "abstains: at most 5.0\u00a0% errors cannot be promised"),
    ],
)
def test_verdict__says_what_a_threshold_does(threshold, kept, said):
    at = KeptAt(risk=0.05, threshold=threshold, kept=kept)
    assert kept_words(TriedPicture.model_construct(n_classes=4, kept=[at]), 0.05) == said


def test_verdict__without_a_validation_part_there_is_no_threshold():
    answer = kept_words(TriedPicture.model_construct(n_classes=4, kept=[]), 0.05)
    assert answer == "no threshold: no ID validation part"


@pytest.mark.parametrize(
    ("n", "of", "method", "said"),
    [
        (1600, 1600, "flyp", "among all 1,600 images of my pets/train."),
        (20_000, 45_000, "flyp", "among 20,000 of the 45,000 images, the same for every run, of"),
        (16, 16, "zero_shot", "This run was not trained."),
    ],
)
def test_training__says_among_which_images(n, of, method, said):
    trained = TrainingPictures(dataset="my_pets/train", n=n, of=of, nearest=[])
    answer = training_words(trained, method)
    assert said in answer
    assert ("not trained" in answer) == (method == "zero_shot")
