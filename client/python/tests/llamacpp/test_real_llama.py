"""A real slot of llama.cpp's server: compacted, restored, and gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_llama import RealLlama, model_path

import kvern
import kvern.llamacpp as kl
from kvern.llamacpp import slot_file
from kvern.llamacpp.__main__ import main

_DAY = (
    "The ferry of Aldwick leaves the stone pier at seven and crosses the sound in forty minutes. "
    "On board there is a kitchen that sells soup, a rack for bicycles and a bench along the rail "
    "from which one sees seals on the sandbank at low tide. In {season} the crew paints the hull, "
    "mends the nets that guard the propeller and counts the life jackets twice. Farmers bring "
    "{goods} to the market on the mainland and come home with flour, rope and newspapers. "
)
TEXT = "".join(
    [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        _DAY.format(season="spring", goods="lambs"),
        _DAY.format(season="summer", goods="cheese"),
        "The captain of the ferry is called Henrike Solberg and her radio call sign is Tern 52. ",
        _DAY.format(season="autumn", goods="apples"),
        _DAY.format(season="winter", goods="wool"),
        "\nQuestion: What is the radio call sign of the ferry, and who is its captain?",
        "<|im_end|>\n<|im_start|>assistant\n",
    ]
)
# Log-probability of the first token after the text, by the share kept: kvern.transformers on the
# same weights in f32, compress(positions="renumber") of all tokens but the last, same policy.
TRANSFORMERS = {1.0: -0.181, 0.75: -0.185, 0.5: -0.236}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealLlama]:
    model_path()
    directory = tmp_path_factory.mktemp("llama") / "slots"
    directory.mkdir()
    running = RealLlama(directory)
    yield running
    running.stop()


@pytest.fixture
def real(llama: RealLlama) -> kl.LlamaServer:
    return kl.LlamaServer(llama.url, llama.directory)


def ids(server: kl.LlamaServer) -> list[int]:
    body = {"content": TEXT, "add_special": False, "parse_special": True}
    return [int(token) for token in server.request("/tokenize", body)["tokens"]]


def complete(server: kl.LlamaServer, prompt: list[int], slot: int = 0) -> dict[str, Any]:
    body = {"prompt": prompt, "id_slot": slot, "n_predict": 16, "n_probs": 3}
    return server.request("/completion", body | {"temperature": 0, "cache_prompt": True})


def first(answer: dict[str, Any]) -> tuple[int, float]:
    """(id, log-probability) of the likeliest first token."""
    best = answer["completion_probabilities"][0]["top_logprobs"][0]
    return int(best["id"]), float(best["logprob"])


def test_a_compacted_slot_answers_as_transformers_does(
    real: kl.LlamaServer, client: kvern.Client
) -> None:
    text = ids(real)
    whole = complete(real, text)
    for ratio, expected in TRANSFORMERS.items():
        complete(real, text)
        policy = kvern.Policy(keep_ratio=ratio, scorer="keydiff")
        made = kl.compact_slot(real, 0, client, policy, tokens=len(text) - 1)
        assert made.kept == int((len(text) - 1) * ratio)
        assert (made.result.kept_counts == made.kept).all()
        answer = complete(real, made.prompt(text[-1:]))
        assert (answer["timings"]["cache_n"], answer["timings"]["prompt_n"]) == (made.kept, 1)
        assert first(answer)[0] == first(whole)[0]
        # f16 keys and values, and matrices that are multiplied in 8 bits, on this side only.
        assert abs(first(answer)[1] - expected) < 0.05, (ratio, first(answer))
        if ratio == 1.0:
            assert answer["content"] == whole["content"]
    assert list(real.directory.iterdir()) == []


def test_a_slot_within_its_budget_stays_as_it_is(
    real: kl.LlamaServer, client: kvern.Client
) -> None:
    text = ids(real)
    whole = complete(real, text)
    made = kl.compact_slot(real, 0, client, kvern.Policy(budget_tokens=1000, scorer="keydiff"))
    assert made.result.outcome == "noop"
    assert made.label[: len(text)] == tuple(text)
    again = complete(real, text)
    assert again["content"] == whole["content"]
    assert again["timings"]["prompt_n"] == 1


class Cutting(kl.LlamaServer):
    """Cuts the compacted file before the server reads it."""

    def restore(self, slot: int, name: str) -> int:
        path = self.directory / name
        if name.endswith("-compacted.bin"):
            path.write_bytes(path.read_bytes()[:-100])
        return super().restore(slot, name)


def test_a_cut_file_is_refused_and_the_slot_recovers(
    real: kl.LlamaServer, client: kvern.Client
) -> None:
    text = ids(real)
    whole = complete(real, text)
    cutting = Cutting(real.url, real.directory)
    with pytest.raises(kvern.KvernError, match="slot 0 was restored from its saved file"):
        kl.compact_slot(cutting, 0, client, kvern.Policy(keep_ratio=0.5, scorer="keydiff"))
    again = complete(real, text)
    assert again["content"] == whole["content"]
    assert again["timings"]["cache_n"] >= len(text) - 1


def test_a_saved_file_is_written_back_bit_by_bit(real: kl.LlamaServer) -> None:
    complete(real, ids(real)[:64], slot=1)
    real.save(1, "whole.bin")
    path = real.directory / "whole.bin"
    data = path.read_bytes()
    path.unlink()
    assert slot_file.write(slot_file.read(data, real.model_spec())) == data


def test_the_model_is_the_one_that_the_server_names(real: kl.LlamaServer) -> None:
    spec = real.model_spec()
    assert (spec.num_layers, spec.q_heads, spec.kv_heads, spec.head_dim) == (30, 9, 3, 64)
    assert spec.rope is not None
    assert spec.rope.layout == "interleaved"
    assert spec.rope.inv_freq[1] == pytest.approx(100000 ** (-1 / 32))


def test_command_line(
    real: kl.LlamaServer, client: kvern.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ids(real)
    complete(real, text)
    words = ["compact", "--server", real.url, "--slots", str(real.directory), "--slot", "0"]
    words += ["--kvern", client.address, "--policy", "evict50", "--tokens", str(len(text) - 1)]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    answer = complete(real, said["label"] + text[-1:])
    assert answer["timings"]["cache_n"] == said["kept"] == (len(text) - 1) // 2


def test_quantized_keys_are_refused(tmp_path: Path, client: kvern.Client) -> None:
    model_path()
    directory = tmp_path / "slots"
    directory.mkdir()
    running = RealLlama(directory, 8, 8)
    try:
        quantized = kl.LlamaServer(running.url, directory)
        complete(quantized, ids(quantized)[:64])
        with pytest.raises(kvern.KvernError, match="start the server with --cache-type-k f16"):
            kl.compact_slot(quantized, 0, client, "evict50")
    finally:
        running.stop()
