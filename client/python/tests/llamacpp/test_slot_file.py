"""Files of slots: every known layout is read and written back, everything else is refused."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace

import numpy as np
import pytest
from slot_files import SPEC, Sample

import kvern
from kvern.llamacpp import slot_file

LAYOUTS = [
    Sample(
        version=version,
        extra=bytes(extra),
        marked=marked,
        k_type=k,
        v_type=v,
        transposed=transposed,
        streams=streams,
        stream=streams - 1,
    )
    for version, extra, marked, (k, v, transposed), streams in itertools.product(
        (3, 4),
        (0, 8),
        (True, False),
        (
            ("f16", "f16", False),
            ("f16", "f16", True),
            ("f32", "f32", True),
            ("f32", "f16", False),
            ("f16", "q8_0", False),
            ("q8_0", "q8_0", False),
        ),
        (1, 3),
    )
]


@pytest.mark.parametrize("sample", LAYOUTS, ids=lambda s: f"{s.version}-{len(s.extra)}-{s.marked}")
def test_every_known_layout_is_read_and_written_back(sample: Sample) -> None:
    data = sample.pack()
    slot = slot_file.read(data, SPEC)
    assert slot_file.write(slot) == data
    np.testing.assert_array_equal(slot.k.floats(), sample.k)
    np.testing.assert_array_equal(slot.v.floats(), sample.v)
    assert slot.tokens.tolist() == sample.words
    assert slot.layout.stream == sample.stream
    assert slot.cache_bytes == slot.k.nbytes + slot.v.nbytes


def test_rotations_are_read_and_written_back() -> None:
    data = Sample(v_type="q8_0", extra=struct.pack("<2I", 0, 64)).pack()
    slot = slot_file.read(data, SPEC)
    assert slot.layout.rotations == (0, 64)
    assert slot_file.write(slot) == data


def test_gathering_moves_the_bytes_of_each_head() -> None:
    sample = Sample(k_type="q8_0", v_type="q8_0")
    slot = slot_file.read(sample.pack(), SPEC)
    orders = np.random.default_rng(1).permuted(np.tile(np.arange(40), (2, 2, 1)), axis=2)
    kept = np.sort(orders[..., :13]).astype(np.int32)
    np.testing.assert_array_equal(
        slot.k.gather(kept).floats(), np.take_along_axis(sample.k, kept[..., None], axis=2)
    )


def test_cells_are_ordered_by_position_and_cut() -> None:
    positions = np.random.default_rng(2).permutation(40)
    sample = Sample(positions=positions.tolist())
    slot = slot_file.read(sample.pack(), SPEC).ordered(13)
    assert slot.positions.tolist() == list(range(13))
    assert slot.tokens.tolist() == sample.words[:13]
    np.testing.assert_array_equal(slot.v.floats(), sample.v[:, :, np.argsort(positions)[:13]])
    with pytest.raises(kvern.KvernError, match="tokens: got 41, want 1 to 40"):
        slot_file.read(sample.pack(), SPEC).ordered(41)


@pytest.mark.parametrize("positions", [[*range(39), 40], [0, *range(39)], list(range(5, 45))])
def test_cells_of_a_shifted_context_are_refused(positions: list[int]) -> None:
    slot = slot_file.read(Sample(positions=positions).pack(), SPEC)
    with pytest.raises(kvern.KvernError, match="slot: positions: got 40 cells"):
        slot.ordered()


def test_fewer_tokens_than_cells_are_refused() -> None:
    slot = slot_file.read(Sample(words=list(range(39))).pack(), SPEC)
    with pytest.raises(kvern.KvernError, match="slot: tokens: got 39, want 40"):
        slot.ordered()


# Where the fields of Sample().pack() begin: 44 words of tokens, then streams, cells.
WORDS, STREAMS = 12, 12 + 4 * 44
CELLS = STREAMS + 8
AFTER_CELLS = CELLS + 12 * 40


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0x67676D66, "magic: got 0x67676d66, want 0x67677371"),
        (4, 5, "version: got 5, want 3 or 4"),
        (8, 2**32 - 1, "want 17179869180 more bytes"),
        (WORDS + 4, 2, "token words: got .-1, 2, 40., want -1, 1, n"),
        (WORDS + 8, 39, "token words"),
        (WORDS + 12, 2**32 - 1, "token: got -1, want 0 or more"),
        (STREAMS - 4, 1, "n_media: got 1, want 0"),
        (STREAMS, 2**32 - 1, "cell_count: got 0 bytes, want 4 more"),
        (STREAMS, 1, "4 bytes after its end"),
        (STREAMS + 4, 2**32 - 1, "want 51539607540 more bytes"),
        (STREAMS + 4, 0, "4 bytes|bytes after its end"),
        (CELLS + 4, 2, "n_seq_id: got 2, want 1"),
        (CELLS + 8, 7, "seq_id: got several"),
        (AFTER_CELLS, 2, "v_trans: got 2, want 0 or 1"),
        (AFTER_CELLS, 1, "V.0.|unknown layout"),
        (AFTER_CELLS + 4, 3, "n_layer: got 3, want 2 as the model has"),
        (AFTER_CELLS + 8, 3, "extra bytes: got 3, 0, want 0 or parts of 64"),
        (AFTER_CELLS + 16, 2, r"K\[0\]: got ggml type 2, want one of 0"),
        (AFTER_CELLS + 16, 0, "row_bytes: got 256, want 512: 2 heads of 64"),
        (AFTER_CELLS + 20, 2**31, "row_bytes: got 2147483648, want 256"),
        (AFTER_CELLS + 24, 2**31, "row_bytes: got 9223372036854776064, want 256"),
    ],
)
def test_a_field_that_is_off_is_named(offset: int, value: int, message: str) -> None:
    data = bytearray(Sample().pack())
    struct.pack_into("<I", data, offset, value)
    with pytest.raises(kvern.KvernError, match=message):
        slot_file.read(bytes(data), SPEC)


def test_every_cut_and_every_longer_file_is_refused() -> None:
    data = Sample(tokens=6).pack()
    for size in [*range(0, 300), *range(300, len(data), 97)]:
        with pytest.raises(kvern.KvernError, match="want"):
            slot_file.read(data[:size], SPEC)
    with pytest.raises(kvern.KvernError, match="1 bytes after its end"):
        slot_file.read(data + b"\0", SPEC)


@pytest.mark.parametrize(
    ("sample", "spec", "message"),
    [
        (Sample(), replace(SPEC, kv_heads=4), "row_bytes: got 256, want 512"),
        (Sample(), replace(SPEC, num_layers=3), "n_layer: got 2, want 3"),
        (Sample(transposed=True), replace(SPEC, head_dim=32), "row_bytes: got 256, want 128"),
        (Sample(k_type="q8_0"), replace(SPEC, head_dim=48), "q8_0 with head_dim 48, want a mult"),
        (Sample(extra=bytes(4)), SPEC, "unknown layout"),
        (Sample(extra=b"\0\0\0\1\0\0\0\0"), SPEC, "extra bytes: got 16777216, 0"),
    ],
)
def test_a_file_of_another_model_or_build_is_refused(
    sample: Sample, spec: kvern.ModelSpec, message: str
) -> None:
    with pytest.raises(kvern.KvernError, match=message):
        slot_file.read(sample.pack(), spec)


def test_a_type_that_changes_between_layers_is_refused() -> None:
    mixed = Sample(tokens=2, k_type="q8_0").pack()
    plain = Sample(tokens=2).pack()
    # The first layer's keys of one, the second layer's of the other: 12 bytes of head, 2 tokens.
    start = 12 + 4 * 6 + 8 + 24 + 8 + 8
    q8, f16 = 12 + 2 * 2 * 68, 12 + 2 * 2 * 128
    data = mixed[: start + q8] + plain[start + f16 :]
    with pytest.raises(kvern.KvernError, match="K: got f16 and q8_0, want one type"):
        slot_file.read(data, SPEC)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_mutated_files_are_refused_or_mean_what_they_say(seed: int, transposed: bool) -> None:
    """Whatever is accepted is written back byte for byte, so nothing of it was misread."""
    random = np.random.default_rng([seed, transposed])
    data = Sample(tokens=5, transposed=transposed, extra=bytes(seed % 2 * 8)).pack()
    refused = accepted = 0
    for _ in range(250):
        mutated = bytearray(data)
        for _ in range(random.integers(1, 4)):
            _mutate(mutated, random)
        try:
            slot = slot_file.read(bytes(mutated), SPEC)
        except kvern.KvernError as error:
            refused += 1
            assert "want" in error.message
        else:
            accepted += 1
            assert slot_file.write(slot) == bytes(mutated)
    assert refused > 50
    assert accepted > 5


def _mutate(data: bytearray, random: np.random.Generator) -> None:
    """Half of the changes hit the fields before the values."""
    end = len(data) if random.integers(2) else min(200, len(data))
    at = int(random.integers(end))
    kind = random.integers(5)
    if kind == 0:
        data[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        data[at : at + 4] = random.choice([b"\0" * 4, b"\xff" * 4, b"\0\0\0\x80", b"\1\0\0\0"])
    elif kind == 2:
        del data[at : at + int(random.integers(1, 16))]
    elif kind == 3:
        data[at:at] = random.bytes(int(random.integers(1, 16)))
    else:
        data[at : at + 1] = random.bytes(1)
