"""Calibration: what a model's queries look like before RoPE, measured once on any text.

`kvern calibrate` writes it; scorers `triattention` and `expected_attention` and the budgeter
`sensitivity` read it. Needs torch and transformers.
"""

from kvern.calibrate.artifact import Centres, Moments
from kvern.calibrate.sensitivity import layer_sensitivity
from kvern.calibrate.statistics import Statistics, collect
from kvern.calibrate.tap import Rotation, tapped

__all__ = [
    "Centres",
    "Moments",
    "Rotation",
    "Statistics",
    "collect",
    "layer_sensitivity",
    "tapped",
]
