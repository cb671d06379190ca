"""kvern calibrate, on tiny models: the numbers, the files, what is refused."""

from __future__ import annotations

import hashlib
import re
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
from kvern.calibrate import collect, layer_sensitivity, tapped  # noqa: E402
from kvern.calibrate.artifact import Centres, Moments, pack  # noqa: E402
from kvern.calibrate.masked import Sight, prefill, resume  # noqa: E402
from kvern.calibrate.sensitivity import FUTURE, expected_attention, kept  # noqa: E402
from kvern.transformers import model_spec  # noqa: E402

KINDS = ("llama", "qwen2", "qwen3", "olmo2", "phi3", "glm", "cohere")


def ids(tokens: int, seed: int = 1) -> list[int]:
    return [int(token) for token in tiny.text(tokens, seed)[0]]


def reference(of: Any, tokens: list[int]) -> Any:
    """Queries before RoPE of layer 0 of a llama or qwen3, by hand: f64 [tokens, heads, dims]."""
    layer = of.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(of.model.embed_tokens(torch.tensor([tokens])))
        queries = layer.self_attn.q_proj(hidden).unflatten(-1, (6, 16))
        if hasattr(layer.self_attn, "q_norm"):
            queries = layer.self_attn.q_norm(queries)
    return queries[0].double().numpy()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_statistics_are_those_of_queries_before_rope_and_after_their_norm(kind: str) -> None:
    of = tiny.make(kind)
    with torch.no_grad():
        for name, weight in of.named_parameters():
            if "q_norm" in name:
                weight.copy_(torch.linspace(0.5, 2, weight.numel()))
    windows = [ids(40, 1), ids(40, 2)]
    found = collect(of, windows)
    queries = np.concatenate([reference(of, window) for window in windows])
    low, high = queries[..., :8], queries[..., 8:]
    centres = found.centres()
    np.testing.assert_allclose(centres.mean_re[0], low.mean(0), atol=1e-5)
    np.testing.assert_allclose(centres.mean_im[0], high.mean(0), atol=1e-5)
    np.testing.assert_allclose(centres.abs_mean[0], np.hypot(low, high).mean(0), atol=1e-5)
    later = np.concatenate([reference(of, window)[4:] for window in windows])
    moments = found.moments()
    np.testing.assert_allclose(moments.mean[0], later.mean(0), atol=1e-5)
    for head in range(6):
        want = np.cov(later[:, head].T, bias=True)
        np.testing.assert_allclose(moments.cov[0, head], want, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_tapped_where_it_rotates(kind: str) -> None:
    of = tiny.make(kind)
    found = collect(of, [ids(32)])
    wanted = model_spec(of).rope
    assert wanted is not None
    assert (found.layout, found.rotary_dim) == (wanted.layout, wanted.rotary_dim)
    assert found.centres().mean_re.shape == (2, 6, wanted.rotary_dim // 2)
    found.centres().check()


def test_a_closed_tap_leaves_the_model_as_it_was() -> None:
    of = tiny.make("llama")
    module = sys.modules[type(of.model.layers[0].self_attn).__module__]
    before = module.apply_rotary_pos_emb
    with pytest.raises(RuntimeError), tapped(of, lambda layer, rotation: None):
        assert module.apply_rotary_pos_emb is not before
        raise RuntimeError
    assert module.apply_rotary_pos_emb is before


def test_a_model_without_rope_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    of = GPT2LMHeadModel(config)
    with pytest.raises(kvern.KvernError, match="RoPE"):
        collect(of, [ids(8)])


def test_a_masked_token_is_as_good_as_dropped() -> None:
    of = tiny.make("qwen2")
    prompt = prefill(of, ids(24))
    keep = prompt.sight.keep.clone()
    keep[:, :, 5:15] = False
    spoilt = prompt.sight.k.clone()
    spoilt[:, :, 5:15] = 1e3
    full = prompt.sight
    sights = [full, Sight(full.k, full.v, keep), Sight(spoilt, full.v, keep)]
    answers = resume(of, sights, ids(6, 2))
    with torch.no_grad():
        plain = of(torch.tensor([ids(24) + ids(6, 2)])).logits[0, -6:]
    np.testing.assert_allclose(answers[0], plain, atol=2e-4)
    np.testing.assert_allclose(answers[1], answers[2], atol=1e-5)
    assert (answers[1] - answers[0]).abs().max() > 1e-3


def test_expected_attention_ranks_what_may_go_and_the_rest_stays() -> None:
    of = tiny.make("llama")
    prompt = prefill(of, ids(64))
    found = collect(of, [ids(64, seed) for seed in range(4)])
    scores = expected_attention(of, prompt, found.moments())
    assert scores.shape == (2, 2, 64)
    assert torch.isfinite(scores).all()
    assert (scores[:, :, :4] == 0).all()
    chosen = kept(scores[0], 24)
    assert (chosen.sum(-1) == 24).all()
    assert chosen[:, :4].all()
    assert chosen[:, -20:].all()


def test_sensitivity_is_of_the_layer_that_matters() -> None:
    of = tiny.make("llama", seed=3)
    with torch.no_grad():
        of.model.layers[1].self_attn.o_proj.weight.zero_()
    moments = collect(of, [ids(200)]).moments()
    found = layer_sensitivity(of, moments, [ids(200 + FUTURE, 5)])
    assert found.dtype == np.float32
    assert found[0] > 1e-4
    assert abs(found[1]) < found[0] / 100


def save_model(directory: Path) -> Path:
    """A tiny llama with a tokenizer of its own: one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(1024)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made: Any = PreTrainedTokenizerFast
    made(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(directory)
    tiny.make("llama").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def text_file(directory: Path, tokens: int = 400) -> Path:
    path = directory / "text.txt"
    path.write_text(" ".join(f"w{token}" for token in ids(tokens)))
    return path


def calibrate(model: Path, directory: Path, *more: str) -> Path:
    out = directory / "out.safetensors"
    words = ["calibrate", "--model", str(model), "--text", f"{text_file(directory)}@128"]
    words += ["--window", "64", "--out", str(out), "--threads", "1", *more]
    assert program.main(words) == 0
    return out


def test_the_command_writes_what_the_server_reads(
    model: Path, tmp_path: Path, client: kvern.Client
) -> None:
    out = calibrate(model, tmp_path)
    moments = tmp_path / "out-moments.safetensors"
    found = [client.import_calibration(path) for path in (out, moments)]
    assert [artifact.format for artifact in found] == [
        "kvern-calibration/1",
        "kvern-query-moments/1",
    ]
    assert found[0].has_layer_sensitivity
    assert (found[0].layers, found[0].q_heads) == (2, 6)
    metadata = kvern.Safetensors.open(out).metadata
    assert metadata["tokens"] == "128"
    assert metadata["text_source"] == "text.txt: 128 tokens"
    assert metadata["text_sha256"] == hashlib.sha256(text_file(tmp_path).read_bytes()).hexdigest()
    assert (tmp_path / "out.svg").read_text().lstrip().startswith("<?xml")
    spec = kvern.ModelSpec.from_config({**tiny.make("llama").config.to_dict(), "rope_theta": 1e4})
    k = np.random.default_rng(0).standard_normal((2, 2, 200, 16)).astype(np.float32)
    for scorer in ("triattention", "expected_attention:rank=8"):
        policy = kvern.Policy(
            budget_tokens=50,
            scorer=scorer,
            budgeter="sensitivity",
            calibrations=[artifact.name for artifact in found],
        )
        assert client.compress(k, k, policy, model=spec).kept_counts.sum() == 2 * 2 * 50


def test_the_command_writes_the_same_bytes_again(model: Path, tmp_path: Path) -> None:
    names = ("out.safetensors", "out-moments.safetensors", "out.svg")
    runs = []
    for _ in range(2):
        calibrate(model, tmp_path)
        runs.append([(tmp_path / name).read_bytes() for name in names])
    assert runs[0] == runs[1]


def test_what_is_refused_names_what_is_wanted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = str(text_file(tmp_path)), str(tmp_path / "x.safetensors")
    cases = {
        "want --model and --text": ["--text", text],
        "want a directory with config.json": ["--model", str(tmp_path), "--text", text],
        "--sensitivity 0": ["--model", str(model), "--text", text, "--window", "64"],
        "No such file": ["--model", str(model), "--text", str(tmp_path / "none")],
    }
    for message, words in cases.items():
        assert program.main(["calibrate", "--out", out, *words]) == 1
        assert message in capsys.readouterr().err
    assert not Path(out).exists()


def test_the_script_knows_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["compress", "x"]) == 2
    assert "native program" in capsys.readouterr().err
    assert program.main(["--help"]) == 0
    assert program.main([]) == 2
    assert "calibrate" in capsys.readouterr().out


def test_a_mean_above_its_absolute_is_refused() -> None:
    ones = np.ones((1, 2, 3), np.float32)
    with pytest.raises(kvern.KvernError, match="layer 0, head 0, band 0"):
        Centres(ones, ones, ones).check()
    with pytest.raises(kvern.KvernError, match="not finite"):
        Centres(ones * np.nan, ones, ones).check()
    Centres(ones, ones, 1.5 * ones).check()


def test_packed_files_hold_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        pack({"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"z": "1", "a": "2"})
    )
    file = kvern.Safetensors.open(path)
    np.testing.assert_array_equal(file.tensors["b"], [[0, 1, 2], [3, 4, 5]])
    assert file.metadata == {"a": "2", "z": "1"}
    assert Moments(np.zeros((1, 1, 2), np.float32), np.zeros((1, 1, 2, 2), np.float32)).mean.size


def test_the_manual_runs() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "calibration.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    names = {"model": tiny.make("llama"), "windows": [ids(64)], "other_window": ids(100, 3)}
    exec(compile(code, "docs/calibration.md", "exec"), names)
    assert names["sensitivity"].shape == (2,)
