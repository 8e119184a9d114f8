"""Zero-shot CLIP without any training: the baseline."""

from cl_clipfit import CLIPStrategy

NAME = "zero-shot"
GROUP = "reference points"
PAPER = "Radford et al. 2021, arXiv 2103.00020; on streams: Thengane et al. 2022, arXiv 2210.03114"
NEEDS = "no training"


class ZeroShot(CLIPStrategy):
    """Compare image features with the text features of the classes, using pretrained weights."""

    learning = "none"
    towers = ()
