"""BitFit and LN-Tune: the published numbers of parameters, and which ones they are."""

from typing import Any

import pytest
from torch import nn

from cl_clipfit.strategies.bitfit import BitFit, BitFitOptions
from cl_clipfit.strategies.ln_tune import LnTune, LnTuneOptions
from tests.support.published import chosen


@pytest.mark.parametrize(
    ("cls", "options", "count"),
    [
        # By hand, with w the width: biases of a block are 3w + w + 4w + w and 2w of LayerNorms.
        (BitFit, BitFitOptions(), (12 * 11 + 1) * 512 + (12 * 11 + 2) * 768),
        (BitFit, BitFitOptions(biases="text"), (12 * 11 + 1) * 512),
        (BitFit, BitFitOptions(biases="image"), (12 * 11 + 2) * 768),
        (LnTune, LnTuneOptions(), 65_536),
        (LnTune, LnTuneOptions(norms="text"), 2 * 25 * 512),
        (LnTune, LnTuneOptions(norms="image"), 2 * 26 * 768),
        (LnTune, LnTuneOptions(norms="pre"), 2 * 768),
    ],
)
@pytest.mark.parametrize("custom", [False, True])
def test_published_numbers_of_parameters(cls: Any, options: Any, count: int, custom: bool) -> None:
    names, clip = chosen(cls, options, custom)
    assert sum(clip.get_parameter(name).numel() for name in names) == count
    if options == BitFitOptions():
        assert count == 171_008
        every = {name for name, _ in clip.named_parameters() if name.endswith("bias")}
        assert set(names) == every
    elif options == LnTuneOptions():
        norms = {n for n, m in clip.named_modules() if isinstance(m, nn.LayerNorm)}
        assert set(names) == {f"{n}.{p}" for n in norms for p in ("weight", "bias")}
