"""kvern eval on tiny models: its statistics, its masks, its bytes, and the whole way."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvern

torch = pytest.importorskip("torch")
for needed in ("transformers", "tqdm", "matplotlib"):
    pytest.importorskip(needed)
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "with_transformers"))

import tiny  # noqa: E402

from kvern import program  # noqa: E402
from kvern.calibrate import program as calibrate_program  # noqa: E402
from kvern.calibrate.masked import prefill  # noqa: E402
from kvern.evaluate import make_items, mean_interval, parse_policies  # noqa: E402
from kvern.evaluate import program as eval_program  # noqa: E402
from kvern.evaluate.arms import Arm, Compressor  # noqa: E402
from kvern.evaluate.bootstrap import Interval  # noqa: E402
from kvern.evaluate.items import Shape  # noqa: E402
from kvern.evaluate.measure import Row  # noqa: E402
from kvern.evaluate.peers import Peers  # noqa: E402
from kvern.evaluate.report import summarize, table, verdict  # noqa: E402
from kvern.evaluate.smoke import encode, texts, tiny_model  # noqa: E402
from kvern.transformers import model_spec  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[4]


def ids(tokens: int, seed: int = 1) -> list[int]:
    return [int(token) for token in tiny.text(tokens, seed)[0]]


def test_intervals_of_means() -> None:
    assert mean_interval([2.0] * 5) == Interval(2.0, 2.0, 2.0)
    values = list(np.random.default_rng(1).normal(3, 1, 400))
    found = mean_interval(values, seed=7)
    assert found == mean_interval(values, seed=7)
    half = 1.96 * np.std(values) / 20
    assert found.mean == pytest.approx(np.mean(values))
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)


def test_policies_in_one_word_each() -> None:
    words = "balanced,balanced/expected_attention:rank=8,log=true,evict/snapkv:window=32,tiny"
    arms = parse_policies(words, ["calibrations/x"])
    assert [arm.name for arm in arms] == [
        "balanced",
        "balanced/expected_attention:rank=8,log=true",
        "evict/snapkv:window=32",
        "tiny",
    ]
    assert [arm.policy.preset for arm in arms] == ["balanced", "balanced", "", "tiny"]
    assert arms[1].policy.scorer == "expected_attention:rank=8,log=true"
    assert arms[2].policy.calibrations == ["calibrations/x"]
    for bad in ("evict", "balanced/", "/keydiff"):
        with pytest.raises(kvern.KvernError, match="PRESET/SCORER"):
            parse_policies(bad, [])


def test_a_window_holds_its_needle_and_nothing_of_what_follows() -> None:
    shape = Shape(context=320, after=17, windows=3, seed=4)
    items = make_items(texts(), encode, shape)
    assert [(item.text, item.window) for item in items[:3]] == [
        ("chance0", 0),
        ("chance1", 0),
        ("chance0", 1),
    ]
    for item in items:
        assert len(item.context) == 320
        assert len(item.after) == 18
        whole = bytes(item.context)
        said = bytes(item.question).strip() + bytes(item.answer)
        at = whole.index(said)
        assert abs(at / 320 - item.depth) < 0.2
        text = bytes(texts()[int(item.text[-1])].ids)
        begin = text.index(whole[:20])
        body = 320 - len(said) - 5  # line breaks around it, and a full stop
        assert text[begin + body : begin + body + 18] == bytes(item.after)
    assert make_items(texts(), encode, shape) == items
    with pytest.raises(kvern.KvernError, match="chance0"):
        make_items(texts(size=300), encode, shape)


def test_masks_keep_what_presses_keep() -> None:
    kvpress = pytest.importorskip("kvpress")
    of = tiny.make("llama")
    names = {
        "knorm": kvpress.KnormPress,
        "snapkv": kvpress.SnapKVPress,
        "streaming_llm": kvpress.StreamingLLMPress,
    }
    tokens = ids(120)
    peers = Peers(list(names), [0.5, 0.25])
    with peers.watching(of):
        full = prefill(of, tokens).sight
    masks = peers.sights(full)
    assert len(masks) == 6
    for (name, share), sight in masks.items():
        with names[name](compression_ratio=1 - share)(of):
            cache = tiny.fill(of, torch.tensor([tokens]))
        for layer in range(2):
            kept = tiny.keys(cache, layer)[0]
            for head in range(2):
                ours = full.k[layer, head][sight.keep[layer, head]]
                theirs = {tuple(row.tolist()) for row in kept[head]}
                assert {tuple(row.tolist()) for row in ours} == theirs, (name, share)


def test_an_unknown_press_is_refused() -> None:
    with pytest.raises(kvern.KvernError, match="streaming_llm"):
        Peers(["magic"], [0.5])


def test_what_a_server_kept_is_back_in_its_place(client: kvern.Client) -> None:
    of = tiny_model()
    prompt = prefill(of, list(texts()[0].ids[:320]), torch.bfloat16)
    compressor = Compressor(client, model_spec(of), torch.bfloat16)
    arm = parse_policies("evict/keydiff", [])[0]
    made = compressor.compress(prompt, arm, 0.25)
    full = prompt.sight
    assert made.share <= 0.25
    assert made.share == pytest.approx(made.sight.keep.float().mean().item(), abs=0.01)
    held = made.sight.keep
    torch.testing.assert_close(made.sight.k[held], full.k[held], rtol=0, atol=0)
    torch.testing.assert_close(made.sight.v[held], full.v[held], rtol=0, atol=0)
    assert held[:, :, :4].all()
    whole = compressor.compress(prompt, Arm("safe", kvern.Policy("safe")), 1.0)
    assert whole.sight.keep.all()
    error = (whole.sight.k - full.k).norm() / full.k.norm()
    assert 0 <= error < 0.02


def row(arm: str, kl: float, window: int, nll: float = 2.0, share: float = 0.25) -> Row:
    return Row(arm, share, share, "t", window, kl, nll, 0.5, -1.0, True, "")


def rows(*arms: tuple[str, float]) -> list[Row]:
    found = []
    for window in range(8):
        found.append(row("full", 0.0, window, 2.0, 1.0))
        found += [row(arm, kl + 0.1 * window, window, 2.5) for arm, kl in arms]
    return found


def test_differences_are_paired_by_window() -> None:
    found = {of.arm: of for of in summarize(rows(("balanced", 0.2), ("balanced/x", 0.1)), 0)}
    against = found["balanced/x"].against
    assert against is not None
    assert (against.low, against.high) == pytest.approx((-0.1, -0.1))
    assert found["balanced"].kl.low < 0.4 < found["balanced"].kl.high
    assert found["balanced"].nll.mean == pytest.approx(0.5)
    assert "| balanced/x | 25.00% |" in table(list(found.values()))


def test_a_default_that_loses_is_named() -> None:
    lost = summarize(rows(("balanced", 0.2), ("balanced/x", 0.1)), 0)
    assert "significantly worse in KL than `balanced/x` at 25.0%" in verdict(lost)
    won = summarize(rows(("balanced", 0.1), ("balanced/x", 0.2)), 0)
    assert "nowhere" in verdict(won)
    assert "No arm" in verdict(summarize(rows(("balanced", 0.1)), 0))


def test_other_bytes_are_not_compared() -> None:
    given = rows(("balanced", 0.2), ("balanced/x", 0.1))
    fewer = [
        Row(**{**vars(of), "bytes_share": 0.2}) if of.arm == "balanced" else of for of in given
    ]
    assert [of.against for of in summarize(fewer, 0)] == [None, None, None]


def smoke(directory: Path, *more: str) -> dict[str, Any]:
    words = ["eval", "--smoke", "--kvernd", os.environ["KVERND"], "--out", str(directory)]
    assert program.main([*words, *more]) == 0
    found: dict[str, Any] = json.loads((directory / "quality.json").read_text())
    return found


def test_the_whole_way_and_again(tmp_path: Path) -> None:
    runs = [smoke(tmp_path / name, "--bytes", "0.5,0.3") for name in "ab"]
    assert runs[0]["rows"] == runs[1]["rows"]
    by_arm = {(of["arm"], of["share"]): of for of in runs[0]["rows"]}
    assert by_arm["full", 1.0]["kl"] == 0
    for (arm, share), of in by_arm.items():
        assert of["bytes_share"] <= share
        assert of["kl"] >= 0
        if arm.startswith("evict/") and share == 0.3:
            assert of["kl"] > by_arm["balanced", 0.3]["kl"]
    assert len(runs[0]["rows"]) == 4 * (1 + 4 * 2)
    assert set(runs[0]["about"]["texts"]) == {"chance0", "chance1"}
    assert (tmp_path / "a" / "quality.svg").read_text().lstrip().startswith("<?xml")
    drawn = [(tmp_path / name / "quality.svg").read_bytes() for name in "ab"]
    assert drawn[0] == drawn[1]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "--smoke": ["--out", str(tmp_path)],
        "want shares": ["--out", str(tmp_path), "--smoke", "--bytes", "0,2"],
        "No such file": ["--out", str(tmp_path), "--smoke", "--kvernd", "/nonexistent"],
    }
    for message, words in cases.items():
        assert program.main(["eval", *words]) == 1
        assert message in capsys.readouterr().err


def test_the_manuals_commands_are_understood() -> None:
    parsers = {"calibrate": calibrate_program.parser(), "eval": eval_program.parser()}
    found = []
    for page in ("calibration.md", "quality.md"):
        text = (REPOSITORY / "docs" / page).read_text().replace("\\\n", " ")
        for verb, words in re.findall(r"^ *kvern (calibrate|eval) (.*)$", text, re.M):
            parsers[verb].parse_args(shlex.split(words, comments=True))
            found.append(verb)
    assert {"calibrate", "eval"} <= set(found)
