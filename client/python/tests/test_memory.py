"""Pooled memory: used again, never by two, never growing."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import ROPED, Cache, Server, random_cache

import kvern
from kvern import transports
from kvern.request import Job
from kvern.slabs import Slab

EVICT = kvern.Policy(keep_ratio=0.5, scorer="key_norm")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped_memfds() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:kvern-pool")


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def pools(server: Server) -> float:
    return sum(n for name, n in server.metrics().items() if name.startswith("kvern_pools{"))


def address(array: np.ndarray[tuple[int, ...], np.dtype[np.float16]]) -> int:
    return int(array.__array_interface__["data"][0])


def test_ten_thousand_calls_grow_nothing(server: Server) -> None:
    k, v = random_cache(2, 2, 128, 32)
    with kvern.Client(server.address) as client:
        for _ in range(500):
            result = client.compress(k, v, EVICT)
        gc.collect()
        before = descriptors(), mapped_memfds(), pools(server), len(client.list_pools())
        resident = resident_kib()
        server_resident = server.metrics()["process_resident_memory_bytes"]
        for _ in range(10_000):
            result = client.compress(k, v, EVICT)
        assert result.shared
        gc.collect()
        assert (descriptors(), mapped_memfds(), pools(server), len(client.list_pools())) == before
        # A leak of one result's 16 KiB in a hundred calls would show.
        assert resident_kib() - resident < 1600
        assert server.metrics()["process_resident_memory_bytes"] - server_resident < 8 << 20


def test_lengths_that_grow_use_few_pools(server: Server) -> None:
    with kvern.Client(server.address) as client:
        for tokens in range(1, 700, 7):
            client.compress(*random_cache(1, 2, tokens, 32), EVICT)
        assert len(client.list_pools()) <= 5  # of 1, 2, 4, 8 and 16 blocks


def test_results_that_are_held_are_never_overwritten(server: Server) -> None:
    limits = kvern.Limits(max_slabs=3)
    with kvern.Client(server.address, limits=limits) as client:
        held = []
        for seed in range(6):
            k, v = random_cache(1, 2, 128, 32, seed=seed)
            held.append((k, client.compress(k, v, EVICT)))
        assert len({address(result.k) for _, result in held}) == 6
        assert [result.shared for _, result in held] == [True, True, False, False, False, False]
        assert len(client.list_pools()) <= 3
        for k, result in held:
            index = result.kept_indices[..., None].astype(np.int64)
            assert np.array_equal(result.k, np.take_along_axis(k, index, 2))


def test_a_view_of_a_view_keeps_the_memory(client: kvern.Client, cache: Cache) -> None:
    k, v = cache
    row = client.compress(k, v, EVICT).k[1, 1, 5:9].T
    want = row.copy()
    for _ in range(4):
        client.compress(v, k, EVICT)
    assert np.array_equal(row, want)


def test_memory_is_used_again_when_the_last_view_is_gone(
    client: kvern.Client, cache: Cache
) -> None:
    first = address(client.compress(*cache, EVICT).k)
    assert address(client.compress(*cache, EVICT).k) == first


def test_results_outlive_the_client(server: Server, cache: Cache) -> None:
    k, v = cache
    with kvern.Client(server.address) as client:
        result = client.compress(k, v, EVICT)
    assert result.shared
    index = result.kept_indices[..., None].astype(np.int64)
    assert np.array_equal(result.k, np.take_along_axis(k, index, 2))


def test_close_ends_the_pools_at_the_server(server: Server, cache: Cache) -> None:
    before = pools(server)
    with kvern.Client(server.address) as client:
        client.compress(*cache, EVICT)
        assert pools(server) == before + 1
    assert pools(server) == before
    assert server.metrics()["kvern_remembered_sequences"] == 0


def test_copy_is_memory_of_its_own(client: kvern.Client, cache: Cache) -> None:
    result = client.compress(*cache, EVICT, copy=True)
    assert not result.shared
    assert result.k.flags.c_contiguous
    assert np.array_equal(result.k, client.compress(*cache, EVICT).k)


def test_threads_share_a_client(client: kvern.Client) -> None:
    wrong = []

    def work(seed: int) -> None:
        k, v = random_cache(1, 2, 256, 32, seed=seed)
        for _ in range(40):
            result = client.compress(k, v, EVICT)
            index = result.kept_indices[..., None].astype(np.int64)
            if not np.array_equal(result.k, np.take_along_axis(k, index, 2)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_share_a_store(client: kvern.Client, server: Server) -> None:
    wrong = []

    def work(seed: int) -> None:
        k, v = random_cache(4, 2, 200, 64, seed=seed)
        want = client.compress(k, v, "small", model=ROPED, via="store").k.tobytes()
        for _ in range(15):
            if client.compress(k, v, "small", model=ROPED).k.tobytes() != want:
                wrong.append(seed)

    def disturb() -> None:
        k, v = random_cache(4, 2, 3000, 64)
        with kvern.Client(server.address, model=ROPED) as other:
            for _ in range(20):
                with contextlib.suppress(kvern.KvernError):
                    other.compress(k, v, "small", timeout=0.002)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    threads.append(threading.Thread(target=disturb))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert client.list_sequences() == ()


# A signal between two instructions can leave a socket to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_call_leaves_nothing_pending(server: Server) -> None:
    class InterruptedBySignalError(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise InterruptedBySignalError

    k, v = random_cache(4, 2, 20000, 64)
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        with kvern.Client(server.address, model=ROPED) as client:
            client.compress(k, v, "small")
            for step in range(10):
                signal.setitimer(signal.ITIMER_REAL, 0.005 + step * 0.004)
                try:
                    client.compress(k, v, "small")
                except InterruptedBySignalError:
                    interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
            result = client.compress(k, v, EVICT)
            index = result.kept_indices[..., None].astype(np.int64)
            assert np.array_equal(result.k, np.take_along_axis(k, index, 2))
        with kvern.Client(server.address) as client:
            assert client.list_sequences() == ()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 3
    assert server.metrics()["kvern_remembered_sequences"] == 0


def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the caches that are copied into shared memory."""
    seen: list[int] = []
    fill = transports._fill

    def counted(slab: Slab, job: Job[Any]) -> None:
        seen.append(job.cache_bytes)
        fill(slab, job)

    monkeypatch.setattr(transports, "_fill", counted)
    return seen


@pytest.mark.parametrize("shape", [(4, 2, 300, 64), (2, 300, 64)])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_new_cache_is_read_where_it_lies(
    client: kvern.Client, shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = copies(monkeypatch)
    kinds = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}
    k, v = client.new_cache(shape, dtype)
    assert k.shape == shape
    assert k.dtype == kinds[dtype]
    assert not k.any()
    values = np.random.default_rng(3).standard_normal((2, *shape)).astype(kinds[dtype])
    k[...], v[...] = values[0], values[1]
    in_place = client.compress(k, v, EVICT)
    assert seen == []
    want_k, want_kept = in_place.k.copy(), in_place.kept_indices
    copied = client.compress(values[0], values[1], EVICT)
    assert seen == [k.nbytes + v.nbytes]
    assert np.array_equal(copied.kept_indices, want_kept)
    assert copied.k.tobytes() == want_k.tobytes()
    # While its result is in use, the same cache is copied; afterwards it is not.
    again = client.compress(k, v, EVICT)
    assert len(seen) == 2
    assert np.array_equal(in_place.k, want_k)
    del in_place, again
    client.compress(k, v, EVICT)
    assert len(seen) == 2
    part = client.compress(k[..., :200, :], v[..., :200, :], EVICT)
    assert len(seen) == 2
    assert part.kept_counts.max() == 100


def test_a_new_cache_is_not_given_to_others(client: kvern.Client, cache: Cache) -> None:
    k, _ = client.new_cache((4, 2, 300, 64), "f16")
    k[...] = 1
    for _ in range(3):
        client.compress(*cache, EVICT)
    assert (k == 1).all()
