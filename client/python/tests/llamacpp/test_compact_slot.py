"""compact_slot with a real kvernd and a server that holds bytes: what it writes, and recovery."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_llama import FakeLlama
from numpy.typing import NDArray
from slot_files import SPEC, Sample

import kvern
import kvern.llamacpp as kl
from kvern.llamacpp import label, slot_file
from kvern.llamacpp.__main__ import main

HALF = kvern.Policy(keep_ratio=0.5, scorer="keydiff", sink=4, recent=8)
Start = Callable[[Sample | bytes], tuple[FakeLlama, kl.LlamaServer]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[FakeLlama] = []

    def make(slot: Sample | bytes) -> tuple[FakeLlama, kl.LlamaServer]:
        fake = FakeLlama(tmp_path, slot.pack() if isinstance(slot, Sample) else slot)
        running.append(fake)
        return fake, kl.LlamaServer(fake.url, tmp_path, model=SPEC)

    yield make
    for fake in running:
        fake.stop()


def rotated(keys: NDArray[np.float32], kept: NDArray[np.int32], layout: str) -> NDArray[np.float64]:
    """Kept keys [layers, kv_heads, n, 64] turned from their positions to 0..n-1, in double."""
    chosen = np.take_along_axis(keys, kept[..., None], axis=2).astype(np.float64)
    bands = 10000.0 ** (-np.arange(32) / 32)
    turn = np.exp(1j * (np.arange(kept.shape[-1]) - kept)[..., None] * bands)
    if layout == "interleaved":
        pairs = (chosen[..., 0::2] + 1j * chosen[..., 1::2]) * turn
        return np.stack([pairs.real, pairs.imag], -1).reshape(chosen.shape)
    pairs = (chosen[..., :32] + 1j * chosen[..., 32:]) * turn
    return np.concatenate([pairs.real, pairs.imag], -1)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize(
    "sample",
    [
        Sample(tokens=100),
        Sample(tokens=100, transposed=True, version=3, extra=b""),
        Sample(tokens=100, k_type="f32", v_type="f32", streams=1),
        Sample(tokens=100, v_type="q8_0", extra=b"\0\0\0\0\x40\0\0\0"),
        Sample(tokens=100, k_type="f32", v_type="f16", marked=True),
    ],
    ids=["f16", "transposed", "f32", "q8_0-values", "mixed"],
)
def test_the_slot_holds_what_kvern_kept(
    start: Start, client: kvern.Client, sample: Sample, layout: str
) -> None:
    assert SPEC.rope is not None
    spec = replace(SPEC, rope=replace(SPEC.rope, layout=layout))
    fake, server = start(sample)
    server = kl.LlamaServer(fake.url, fake.directory, model=spec)
    made = kl.compact_slot(server, 0, client, HALF)
    slot = slot_file.read(fake.slots[0], SPEC)
    kept = made.result.kept_indices
    assert (made.tokens, made.kept) == (100, 50)
    assert kept.shape == (2, 2, 50)
    assert len({row.tobytes() for row in kept.reshape(4, 50)}) > 1, "heads keep tokens of their own"
    np.testing.assert_array_equal(
        slot.v.floats(), np.take_along_axis(sample.v, kept[..., None], axis=2)
    )
    # Half a unit of f16 of a key below 2, and what the rotation rounds in single precision.
    np.testing.assert_allclose(slot.k.floats(), rotated(sample.k, kept, layout), atol=6e-4)
    assert slot.positions.tolist() == list(range(50))
    assert slot.tokens.tolist() == list(made.label)
    assert (slot.k.kind.name, slot.v.kind.name) == (sample.k_type, sample.v_type)
    before = slot_file.read(sample.pack(), SPEC)
    assert slot.layout == before.layout
    assert made.bytes_before == before.cache_bytes == 2 * made.bytes_after
    assert fake.calls == ["save", "restore"]
    assert fake.modes == [0o640], "as readable as the file that the server saved"
    assert list(fake.directory.iterdir()) == []


def test_tokens_cuts_the_text(start: Start, client: kvern.Client) -> None:
    sample = Sample(tokens=100)
    _, server = start(sample)
    made = kl.compact_slot(server, 0, client, HALF, tokens=60)
    assert (made.tokens, made.kept) == (60, 30)
    assert made.result.kept_indices.max() == 59
    assert made.prompt([7]) == [*made.label, 7]


def test_within_the_budget_nothing_is_touched(start: Start, client: kvern.Client) -> None:
    sample = Sample()
    fake, server = start(sample)
    made = kl.compact_slot(server, 0, client, kvern.Policy(budget_tokens=40, scorer="keydiff"))
    assert (made.kept, list(made.label), made.result.outcome) == (40, sample.words, "noop")
    assert fake.calls == ["save"]
    assert list(fake.directory.iterdir()) == []


def test_cut_to_the_budget_the_slot_is_a_prefix(start: Start, client: kvern.Client) -> None:
    sample = Sample()
    fake, server = start(sample)
    policy = kvern.Policy(budget_tokens=40, scorer="keydiff")
    made = kl.compact_slot(server, 0, client, policy, tokens=30)
    slot = slot_file.read(fake.slots[0], SPEC)
    np.testing.assert_array_equal(slot.k.floats(), sample.k[:, :, :30])
    assert slot.tokens.tolist() == sample.words[:30] == list(made.label)


def test_a_refused_slot_is_restored_from_its_saved_file(start: Start, client: kvern.Client) -> None:
    sample = Sample()
    fake, server = start(sample)
    fake.refuse = [True]
    with pytest.raises(kvern.KvernError) as caught:
        kl.compact_slot(server, 0, client, HALF)
    assert caught.value.code == "FAILED_PRECONDITION"
    assert "Unable to restore slot" in caught.value.message
    assert caught.value.message.endswith("slot 0 was restored from its saved file")
    assert fake.slots[0] == sample.pack()
    assert list(fake.directory.iterdir()) == []


def test_a_slot_that_cannot_be_restored_stays_in_a_file(start: Start, client: kvern.Client) -> None:
    sample = Sample()
    fake, server = start(sample)
    fake.refuse = [True, True]
    with pytest.raises(kvern.KvernError, match="slot 0 could not be restored") as caught:
        kl.compact_slot(server, 0, client, HALF)
    [path] = fake.directory.iterdir()
    assert str(path) in caught.value.message
    assert path.read_bytes() == sample.pack()


@pytest.mark.parametrize(
    ("slot", "policy", "message"),
    [
        (Sample().pack()[:-100], HALF, "more bytes"),
        (b"GGUF" + Sample().pack()[4:], HALF, "magic: got 0x46554747"),
        (Sample(k_type="q8_0", v_type="q8_0"), HALF, "keys: got q8_0, which the server keeps"),
        (Sample(extra=b"\x40" + bytes(7)), HALF, "keys: got f16, which the server keeps"),
        (Sample(positions=list(range(1, 41))), HALF, "positions: got 40 cells at 1 to 40"),
        (Sample(), replace(HALF, scorer="no_such"), "no_such"),
        (Sample(), replace(HALF, budgeter="adaptive", selector="topk"), "adaptive|want as many"),
        (Sample(v_type="f32"), replace(HALF, v_codec="i8t"), "v_codec: got i8t, want raw16"),
        (Sample(v_type="q8_0"), replace(HALF, v_codec="i8t"), "v_codec: got i8t, want raw16"),
    ],
    ids=["cut", "foreign", "q8_0", "rotated", "shifted", "policy", "counts", "codec", "codec-q8_0"],
)
def test_errors_before_the_restore_leave_the_slot_untouched(
    start: Start, client: kvern.Client, slot: Sample | bytes, policy: kvern.Policy, message: str
) -> None:
    fake, server = start(slot)
    held = fake.slots[0]
    with pytest.raises(kvern.KvernError, match=message) as caught:
        kl.compact_slot(server, 0, client, policy)
    assert caught.value.message.endswith("slot 0 was not touched")
    assert fake.calls == ["save"]
    assert fake.slots[0] == held
    assert list(fake.directory.iterdir()) == []


def test_a_directory_that_is_not_the_servers_is_named(
    start: Start, client: kvern.Client, tmp_path: Path
) -> None:
    fake, _ = start(Sample())
    other = tmp_path / "other"
    other.mkdir()
    server = kl.LlamaServer(fake.url, other, model=SPEC)
    with pytest.raises(kvern.KvernError, match=r"directory: got .*want the server's --slot-save"):
        kl.compact_slot(server, 0, client, HALF)


def test_keys_must_be_renumbered(start: Start, client: kvern.Client) -> None:
    fake, server = start(Sample())
    with pytest.raises(kvern.KvernError, match="positions: got 'keep', want 'renumber'"):
        kl.compact_slot(server, 0, client, replace(HALF, positions="keep"))
    assert fake.calls == []


def test_labels_tell_texts_and_choices_apart() -> None:
    text = np.arange(10, 60, dtype=np.int32)
    kept = np.tile(np.arange(0, 50, 2, dtype=np.int32), (2, 2, 1))
    made = label.label(text, kept)
    assert made.shape == (25,)
    assert made[0] != text[0]
    assert set(made.tolist()) <= set(text.tolist())
    np.testing.assert_array_equal(made, label.label(text, kept))
    other = kept.copy()
    other[1, 1, -1] += 1
    assert (made != label.label(text, other)).any()
    assert (made != label.label(text[::-1].copy(), kept)).any()
    with pytest.raises(kvern.KvernError, match="a text of the one id 3"):
        label.label(np.full(50, 3, np.int32), kept)


@pytest.mark.parametrize("given", [[1] * 19, [-1] * 20, [0.5] * 20, [2**31] * 20])
def test_a_label_that_does_not_fit_is_refused(
    start: Start, client: kvern.Client, given: list[int]
) -> None:
    _, server = start(Sample())
    with pytest.raises(kvern.KvernError, match=r"label: got .*want 20 ids"):
        kl.compact_slot(server, 0, client, HALF, label=given)


def test_a_label_of_the_callers_is_used(start: Start, client: kvern.Client) -> None:
    fake, server = start(Sample())
    made = kl.compact_slot(server, 0, client, HALF, label=range(100, 120))
    assert list(made.label) == list(range(100, 120))
    assert slot_file.read(fake.slots[0], SPEC).tokens.tolist() == list(range(100, 120))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((501, b'{"error":{"message":"no slots"}}'), "got 501: no slots, want 200"),
        ((500, b"<html>"), "got 500: <html>"),
        ((200, b"[1]"), "no JSON object"),
        ((200, b"nonsense"), "want a running llama.cpp server"),
        ((200, b"{}"), "its answer has no n_saved"),
        ((200, b'{"n_saved":7}'), "directory: got"),
    ],
)
def test_answers_that_make_no_sense_are_errors(
    start: Start, client: kvern.Client, answer: tuple[int, bytes], message: str
) -> None:
    fake, server = start(Sample())
    server.save = lambda slot, name: server._count(  # type: ignore[method-assign]
        server.request("/always", {"filename": name}), "n_saved"
    )
    fake.answers["/always"] = answer
    with pytest.raises(kvern.KvernError, match=message):
        kl.compact_slot(server, 0, client, HALF)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(kvern.KvernError, match="want http://HOST:PORT"):
        kl.LlamaServer("file:///etc/passwd", "/tmp")
    server = kl.LlamaServer("http://127.0.0.1:9", "/tmp")
    with pytest.raises(kvern.KvernError) as caught:
        server.save(0, "x")
    assert caught.value.reason == "UNREACHABLE"


def test_command_line(
    start: Start,
    client: kvern.Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake, _ = start(Sample())
    monkeypatch.setattr("kvern.llamacpp.gguf.model_spec", lambda path: SPEC)
    words = ["compact", "--server", fake.url, "--slots", str(fake.directory), "--slot", "0"]
    words += ["--kvern", client.address, "--model", "m.gguf"]
    assert main([*words, "--policy", "evict50", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["tokens"], said["kept"], len(said["label"])) == (40, 20, 20)
    assert slot_file.read(fake.slots[0], SPEC).tokens.tolist() == said["label"]
    assert main([*words, "--scorer", "keydiff", "--budget-tokens", "12"]) == 0
    assert capsys.readouterr().out.startswith("slot 0: 20 -> 12 tokens, 20480 -> 12288 bytes")
    assert main([*words, "--policy", "nonsense"]) == 1
    assert "nonsense" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compact", "--help"])
    assert "--slot-save-path" in capsys.readouterr().out
