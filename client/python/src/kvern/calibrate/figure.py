"""What a calibration found, at a glance: how steady queries are, and which layers matter."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from kvern.calibrate.artifact import Centres

matplotlib.use("svg")
# The same bytes each time: no date, and ids that do not depend on chance.
matplotlib.rcParams["svg.hashsalt"] = "kvern"


def draw(centres: Centres, path: str | Path) -> None:
    """Writes an SVG: |mean| / mean |.| of the strongest band by layer and head, and sensitivity."""
    from matplotlib import pyplot

    strongest = centres.abs_mean.argmax(-1)[..., None]
    mean = np.hypot(centres.mean_re, centres.mean_im)
    steady = np.take_along_axis(mean, strongest, -1) / np.maximum(
        np.take_along_axis(centres.abs_mean, strongest, -1), 1e-12
    )
    sensitivity = centres.layer_sensitivity
    figure, axes = pyplot.subplots(
        1, 1 if sensitivity is None else 2, figsize=(9, 4), squeeze=False, layout="constrained"
    )
    image = axes[0, 0].imshow(steady[..., 0].T, aspect="auto", vmin=0, vmax=1, cmap="viridis")
    axes[0, 0].set(xlabel="layer", ylabel="query head", title="|mean q| / mean |q|, strongest band")
    figure.colorbar(image, ax=axes[0, 0])
    if sensitivity is not None:
        axes[0, 1].bar(range(len(sensitivity)), sensitivity)
        axes[0, 1].set(xlabel="layer", ylabel="KL when it alone is evicted", title="sensitivity")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
