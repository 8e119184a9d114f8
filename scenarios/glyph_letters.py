"""Letters in fonts held out of the mini CLIP's pre-training; a probe, or 13 tasks of 2.

Training images are drawn in the pre-training fonts, test images in the held-out ones.
"""

import torch

from cl_clipfit import DataRequest, ImageSet, Options, Source, glyphs

NAME = "glyph-letters"
CLASSES = 26
TASKS = 13
IMAGES = "1,040 + 1,040"
DOWNLOAD = "none"
LICENCE = "MIT"
MODEL = "mini"
CLASS_ORDER = "natural"
DATA_SEED = 200
IMAGES_PER_CLASS = 40


def load(options: Options, request: DataRequest) -> Source:
    """Draw the letters; always the same ones."""

    def draw_set(fonts: tuple[str, ...], seed: int) -> ImageSet:
        generator = torch.Generator().manual_seed(seed)
        names = list(glyphs.LETTER_NAMES) * IMAGES_PER_CLASS
        labels = torch.arange(len(names)) % len(glyphs.LETTER_NAMES)
        return ImageSet(glyphs.sample_glyphs(names, generator, fonts), labels)

    test = draw_set(glyphs.HELD_OUT_FONTS, DATA_SEED + 1)
    train = test.none() if request.test_only else draw_set(glyphs.TRAIN_FONTS, DATA_SEED)
    return Source(glyphs.LETTER_NAMES, ("a photo of the letter {}.",), train, test)
