"""The asyncio client: the same answers, and cancelling leaves nothing behind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROPED, Cache, Server, random_cache

import kvern
from kvern import aio

# What one call may leave at the server, by metric.
PENDING = (
    "kvern_pools",
    "kvern_attachments",
    "kvern_store_sequences",
    "kvern_rpc_in_flight",
    "kvern_queue_depth",
    "kvern_queued_bytes",
    "kvern_remembered_sequences",
)


def pending(server: Server) -> dict[str, float]:
    samples = server.metrics().items()
    return {name: n for name, n in samples if name.startswith(PENDING) and "pool_" not in name}


def run(server: Server, body: Callable[[aio.Client], Awaitable[None]]) -> None:
    async def main() -> None:
        async with aio.Client(server.address, model=ROPED) as client:
            await body(client)

    asyncio.run(main())


def test_the_same_answers(server: Server, client: kvern.Client, cache: Cache) -> None:
    async def body(asynchronous: aio.Client) -> None:
        for policy in ("balanced", "evict50"):
            for via in ("pool", "store"):
                got = await asynchronous.compress(*cache, policy, via=via)
                want = client.compress(*cache, policy, via=via, model=ROPED)
                assert np.array_equal(got.k, want.k)
                assert np.array_equal(got.kept_indices, want.kept_indices)
        planned = await asynchronous.plan(*cache, "small")
        assert planned.bytes_after == client.plan(*cache, "small", model=ROPED).bytes_after
        k, v = await asynchronous.new_cache((4, 2, 300, 64), "f16")
        k[...], v[...] = cache
        assert (await asynchronous.compress(k, v, "evict50")).shared

    run(server, body)


def test_store_and_models(server: Server, cache: Cache, tmp_path: Path) -> None:
    async def body(client: aio.Client) -> None:
        assert (await client.info()).version == kvern.__version__
        assert (await client.list_stages()).presets
        model = await client.register_model(ROPED, "aio")
        assert await client.get_model("aio") == model
        assert model in (await client.list_models()).models
        k, v = cache
        stored = await client.put_sequence("aio", k[:, :, :200], v[:, :, :200], model=model)
        assert await client.get_sequence("aio") == stored
        tail = k[:, :, 200:], v[:, :, 200:]
        longer = await client.append_sequence("aio", *tail, epoch=stored.epoch)
        assert np.array_equal((await client.fetch_sequence("aio")).k, k)
        members = [kvern.StoreSequence("aio", "aio", epoch=longer.epoch)]
        (result,) = await client.compress_sequences(members, "safe", model=model)
        assert result.outcome == "applied"
        assert len(await client.list_sequences()) == 1
        await client.delete_sequence("aio")
        await client.delete_model("aio")
        assert await client.release_sequences(["nobody"]) == 0
        memory = kvern.SealedMemory(1 << 16)
        plane = memory.array((2, 4, 2, 16, 64), np.float16)
        layers = [kvern.PoolLayer.of(memory, 0, plane[0], plane[1])]
        spec = kvern.PoolSpec("f16", 16, 4, layers)
        one = kvern.ModelSpec(1, 2, 64)
        pool = await client.register_pool(memory, spec, model=one)
        assert pool.name in await client.list_pools()
        await client.unregister_pool(pool)
        assert pool.name not in await client.list_pools()

    run(server, body)


def test_many_at_once(server: Server) -> None:
    async def one(client: aio.Client, seed: int) -> None:
        k, v = random_cache(1, 2, 200, 64, seed=seed)
        result = await client.compress(k, v, "evict50", model=kvern.ModelSpec(1, 2, 64))
        index = result.kept_indices[..., None].astype(np.int64)
        assert np.array_equal(result.k, np.take_along_axis(k, index, 2))

    async def body(client: aio.Client) -> None:
        await asyncio.gather(*(one(client, seed) for seed in range(30)))

    run(server, body)


@pytest.mark.parametrize(
    ("policy", "via"), [("evict50", "pool"), ("small", "pool"), ("small", "store")]
)
def test_cancelling_leaves_nothing_pending(server: Server, policy: str, via: str) -> None:
    k, v = random_cache(4, 2, 3000, 64)
    before = pending(server)

    async def body(client: aio.Client) -> None:
        await client.compress(k, v, "evict50")
        cancelled = 0
        for step in range(40):
            call = asyncio.create_task(client.compress(k, v, policy, via=via))
            await asyncio.sleep(step * 0.001)
            call.cancel()
            try:
                await call
            except asyncio.CancelledError:
                cancelled += 1
        assert cancelled > 5
        result = await client.compress(k, v, "evict50")
        index = result.kept_indices[..., None].astype(np.int64)
        assert np.array_equal(result.k, np.take_along_axis(k, index, 2))
        assert await client.list_sequences() == ()
        for _ in range(100):  # the server notices a closed connection a moment later
            if len(await client.list_pools()) <= 2:
                return
        assert len(await client.list_pools()) <= 2

    run(server, body)
    for _ in range(100):  # the server notices a closed connection a moment later
        if pending(server) == before:
            return
    assert pending(server) == before


def test_cancelling_twice(server: Server) -> None:
    k, v = random_cache(4, 2, 3000, 64)
    before = pending(server)

    async def body(client: aio.Client) -> None:
        for step in range(10):
            call = asyncio.create_task(client.compress(k, v, "small"))
            await asyncio.sleep(0.01 + step * 0.002)
            call.cancel()
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    run(server, body)
    for _ in range(100):
        if pending(server) == before:
            return
    assert pending(server) == before


def test_a_timeout_of_the_caller(server: Server) -> None:
    k, v = random_cache(4, 2, 3000, 64)

    async def body(client: aio.Client) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.compress(k, v, "small"), 0.005)
        assert (await client.compress(k, v, "small")).outcome == "applied"

    run(server, body)


def test_errors(server: Server, cache: Cache) -> None:
    async def body(client: aio.Client) -> None:
        with pytest.raises(kvern.KvernError) as caught:
            await client.compress(*cache, "cheap")
        assert caught.value.field == "policy.preset"

    run(server, body)

    async def nobody() -> None:
        with pytest.raises(kvern.KvernError) as caught:
            async with aio.Client("unix:/nonexistent/kvern.sock"):
                raise AssertionError("connected")
        assert caught.value.reason == "UNREACHABLE"
        client = aio.Client(server.address)
        await client.close()
        with pytest.raises(kvern.KvernError) as caught:
            await client.info()
        assert caught.value.reason == "CLOSED"

    asyncio.run(nobody())


def test_a_killed_server_is_named(own_server: Callable[..., Server], cache: Cache) -> None:
    server = own_server()

    async def body(client: aio.Client) -> None:
        call = asyncio.create_task(client.compress(*random_cache(4, 2, 9000, 64), "small"))
        await asyncio.sleep(0.05)
        server.kill()
        with pytest.raises(kvern.KvernError) as caught:
            await call
        assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "UNREACHABLE")

    run(server, body)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[tuple[str, object, object]]]:
        return {
            name: [(p.name, p.default, p.annotation) for p in signature(member)]
            for name, member in vars(kind).items()
            if inspect.isfunction(member) and not name.startswith("_")
        }

    def signature(member: Callable[..., object]) -> list[inspect.Parameter]:
        return list(inspect.signature(member).parameters.values())

    asynchronous = methods(aio.Client)
    del asynchronous["connect"]
    assert asynchronous == methods(kvern.Client)
