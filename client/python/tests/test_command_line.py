"""The same request gives the same bytes as `kvern compress` of the command line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Server, kvern_command

import kvern

DATA = REPOSITORY / "tests" / "data"


@pytest.mark.parametrize("name", ["pride-1024", "qwen-512"])
@pytest.mark.parametrize(
    ("words", "policy"),
    [
        ("", kvern.Policy("balanced")),
        ("--policy small", kvern.Policy("small")),
        ("--policy safe", kvern.Policy("safe")),
        ("--policy evict50 --positions renumber", kvern.Policy("evict50", positions="renumber")),
        (
            "--budget-bytes 20% --scorer snapkv:window=16 --scorer keydiff:unrotate --blend sum "
            "--selector diverse:lambda=0.3 --codec i8t+rm --sink 8 --recent 16 --recent-share 0.25",
            kvern.Policy(
                budget_bytes="20%",
                scorer=("snapkv:window=16", "keydiff:unrotate"),
                blend="sum",
                selector="diverse:lambda=0.3",
                codec="i8t+rm",
                sink=8,
                recent=16,
                recent_share=0.25,
            ),
        ),
        (
            "--budget-tokens 100 --budgeter pyramid:beta=10 --scorer value_norm "
            "--codec k=i8t,v=lm4",
            kvern.Policy(
                budget_tokens=100,
                budgeter="pyramid:beta=10",
                scorer="value_norm",
                k_codec="i8t",
                v_codec="lm4",
            ),
        ),
    ],
)
def test_compress(
    server: Server,
    client: kvern.Client,
    tmp_path: Path,
    name: str,
    words: str,
    policy: kvern.Policy,
) -> None:
    source, out = DATA / f"{name}.safetensors", tmp_path / "out.safetensors"
    command = ["--server", server.address, "compress", str(source), "-o", str(out), *words.split()]
    try:
        kvern_command(*command)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr.decode())
    want = kvern.Safetensors.open(out)
    cache = kvern.CacheFile.open(source)
    got = client.compress(
        cache.k, cache.v, policy, model=cache.model, inputs=cache.inputs, packed=True
    )
    assert np.array_equal(got.kept_indices, want.tensors["kept_indices"])
    assert np.array_equal(got.kept_counts, want.tensors["kept_counts"])
    assert np.array_equal(got.positions, want.tensors["positions"])
    assert str(got.logical_tokens) == want.metadata["logical_tokens"]
    if got.packed is None:
        assert got.k.tobytes() == want.tensors["k"].tobytes()
        assert got.v.tobytes() == want.tensors["v"].tobytes()
        return
    assert got.packed.blocks.tobytes() == want.tensors["packed"].tobytes()
    assert np.array_equal(got.packed.table, want.tensors["packed_table"])
    assert (got.packed.mean_key is None) == ("packed_mu" not in want.tensors)
    decoded = client.compress(cache.k, cache.v, policy, model=cache.model, inputs=cache.inputs)
    dense = tmp_path / "dense.safetensors"
    kvern_command("unpack", str(out), "-o", str(dense))
    unpacked = kvern.Safetensors.open(dense)
    assert decoded.k.tobytes() == unpacked.tensors["k"].tobytes()
    assert decoded.v.tobytes() == unpacked.tensors["v"].tobytes()


def test_calibrations_of_files(server: Server, client: kvern.Client, tmp_path: Path) -> None:
    source, out = DATA / "pride-1024.safetensors", tmp_path / "out.safetensors"
    files = [DATA / "smollm2-calibration.safetensors", DATA / "smollm2-query-moments.safetensors"]
    words = [word for path in files for word in ("--calibration", str(path))]
    kvern_command("--server", server.address, "compress", str(source), "-o", str(out), *words)
    want = kvern.Safetensors.open(out)
    cache = kvern.CacheFile.open(source)
    names = [client.import_calibration(path).name for path in files]
    policy = kvern.Policy("balanced", calibrations=names)
    got = client.compress(
        cache.k, cache.v, policy, model=cache.model, inputs=cache.inputs, packed=True
    )
    assert got.chain.budgeter.startswith("sensitivity")
    assert got.shape_class == "S3"
    assert np.array_equal(got.kept_indices, want.tensors["kept_indices"])
    assert got.packed is not None
    assert got.packed.blocks.tobytes() == want.tensors["packed"].tobytes()
