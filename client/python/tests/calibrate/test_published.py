"""TriAttention's own .pt files become calibrations; what does not fit is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvern

torch = pytest.importorskip("torch")
for needed in ("transformers", "tqdm", "matplotlib"):
    pytest.importorskip(needed)

from kvern import program  # noqa: E402
from kvern.calibrate.published import load_published  # noqa: E402

LAYERS, HEADS, BANDS = 3, 4, 8


def published(seed: int = 0) -> dict[str, Any]:
    """As the authors write them, with numbers of our own."""
    numbers = np.random.default_rng(seed).standard_normal((LAYERS, HEADS, 2, BANDS))
    stats = {}
    for layer in range(LAYERS):
        for head in range(HEADS):
            real, imaginary = (torch.tensor(part).float() for part in numbers[layer, head])
            stats[f"layer{layer:02d}_head{head:02d}"] = {
                "q_mean_real": real,
                "q_mean_imag": imaginary,
                "q_abs_mean": 1.25 * torch.hypot(real, imaginary),
            }
    heads = [[layer, head] for layer in range(LAYERS) for head in range(HEADS)]
    about = {"head_dim": 2 * BANDS, "rope_style": "half", "sampled_heads": heads}
    return {"metadata": about | {"model_name": "toy"}, "stats": stats}


def test_statistics_arrive_at_the_server(tmp_path: Path, client: kvern.Client) -> None:
    whole = published()
    torch.save(whole, tmp_path / "toy.pt")
    out = tmp_path / "toy.safetensors"
    words = ["calibrate", "--from-pt", str(tmp_path / "toy.pt"), "--out", str(out)]
    assert program.main(words) == 0
    file = kvern.Safetensors.open(out)
    assert file.metadata["model_name"] == "toy"
    assert file.metadata["rope_layout"] == "half"
    names = {"q_mean_re": "q_mean_real", "q_mean_im": "q_mean_imag", "q_abs_mean": "q_abs_mean"}
    for ours, theirs in names.items():
        for layer in range(LAYERS):
            for head in range(HEADS):
                want = whole["stats"][f"layer{layer:02d}_head{head:02d}"][theirs]
                np.testing.assert_array_equal(file.tensors[ours][layer, head], want)
    artifact = client.import_calibration(out)
    assert (artifact.layers, artifact.q_heads) == (LAYERS, HEADS)
    assert not artifact.has_layer_sensitivity


def drop_head(whole: dict[str, Any]) -> None:
    del whole["stats"]["layer01_head02"]


def rename_head(whole: dict[str, Any]) -> None:
    whole["stats"]["layer1head2"] = whole["stats"].pop("layer01_head02")


def shorten(whole: dict[str, Any]) -> None:
    whole["stats"]["layer01_head02"]["q_mean_real"] = torch.zeros(BANDS - 1)


def shrink(whole: dict[str, Any]) -> None:
    whole["stats"]["layer01_head02"]["q_abs_mean"] *= 0.5


def spoil(whole: dict[str, Any]) -> None:
    whole["stats"]["layer02_head03"]["q_mean_imag"][1] = float("nan")


def restyle(whole: dict[str, Any]) -> None:
    whole["metadata"]["rope_style"] = "spiral"


def empty(whole: dict[str, Any]) -> None:
    whole["stats"].clear()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_head, "1 heads are missing: layer 1, head 2"),
        (rename_head, "layerLL_headHH"),
        (shorten, "layer01_head02.q_mean_real"),
        (shrink, "less than |q_mean| in layer 1, head 2"),
        (spoil, "not finite in layer 2, head 3, band 1"),
        (restyle, "spiral"),
        (empty, "missing"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    whole = published()
    damage(whole)
    torch.save(whole, tmp_path / "bad.pt")
    with pytest.raises(kvern.KvernError) as refused:
        load_published(tmp_path / "bad.pt")
    assert message in str(refused.value)


class Hostile:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.target),)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Hostile(str(target))))
    with pytest.raises(kvern.KvernError, match="not a file of tensors"):
        load_published(tmp_path / "evil.pt")
    assert not target.exists()
