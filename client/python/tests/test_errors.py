"""Every refusal names its field, its reason, and what to do next."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import ROPED, Cache, Server, random_cache
from google.rpc import error_details_pb2, status_pb2

import kvern
from kvern.errors import from_status

UNKNOWN = f"calibrations/{'0' * 64}"


def refused(call: Callable[[], Any]) -> kvern.KvernError:
    with pytest.raises(kvern.KvernError) as caught:
        call()
    error = caught.value
    assert str(error).startswith(error.code)
    assert error.message in str(error)
    assert f"\nnext: {error.next_step}" in str(error)
    assert error.next_step
    return error


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (kvern.Policy(budget_tokens=9, keep_ratio=0.5), "policy.budget"),
        (kvern.Policy(budget_bytes="lots"), "policy.budget_bytes"),
        (kvern.Policy(keep_ratio=0.5, scorer=":window=3"), "policy.scorer"),
        (kvern.Policy(keep_ratio=0.5, selector="topk:tie="), "policy.selector"),
        (kvern.Policy(codec="k=lm4,lm4"), "policy.codec"),
        (kvern.Policy(codec="lm4", k_codec="lm4"), "policy.codec"),
        (kvern.Policy("evict50", blend="mean"), "policy.blend"),
        (kvern.Policy("evict50", positions="maybe"), "policy.positions"),
        (kvern.Policy("evict50", on_conflict="shrug"), "policy.on_conflict"),
        # The server's own.
        (kvern.Policy("cheap"), "policy.preset"),
        (kvern.Policy(keep_ratio=0.5, scorer="guess"), "policy.scorers[0]"),
        (kvern.Policy(keep_ratio=2.0, scorer="keydiff"), "policy.budget"),
    ],
)
def test_policy_words(client: kvern.Client, cache: Cache, policy: kvern.Policy, field: str) -> None:
    error = refused(lambda: client.compress(*cache, policy))
    assert error.code == "INVALID_ARGUMENT"
    assert error.field.startswith(field)


def test_arrays_that_are_no_cache(client: kvern.Client, cache: Cache) -> None:
    k, v = cache
    wrong: list[tuple[str, str, Any, Any]] = [
        ("k", "", [[1.0]], v),
        ("k", "", "keys", v),
        ("k", "", k[0, 0], v[0, 0]),
        ("k", "", [], []),
        ("k", "", k[:0], v[:0]),
        ("v", "", k, v[:, :, :10]),
        ("v", "", k, v.astype(np.float32)),
        ("k", "DTYPE_UNKNOWN", k.astype(np.float64), v),
        ("k", "DTYPE_UNKNOWN", k.astype(">f4"), v),
        ("k", "DTYPE_UNKNOWN", k.view(np.uint16), v.view(np.uint16)),
        ("k[1]", "", [k[0], k[1, :, :5]], list(v[:2])),
    ]
    for field, reason, keys, values in wrong:
        error = refused(lambda keys=keys, values=values: client.compress(keys, values))  # type: ignore[misc]
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", reason)
        assert error.field.startswith(field)


def test_inputs_that_do_not_fit(client: kvern.Client, cache: Cache) -> None:
    for field, inputs in [
        ("layer_indices", kvern.Inputs(layer_indices=[0])),
        ("attention_mass", kvern.Inputs(attention_mass=np.zeros(300, np.float32))),
        ("positions", kvern.Inputs(positions=np.zeros(300))),
        ("positions", kvern.Inputs(positions=np.arange(300) + 2**40)),
        (
            "sequences[0].side.attention_mass",
            kvern.Inputs(attention_mass=np.zeros((4, 2, 9), "f4")),
        ),
        ("sequences[0].positions", kvern.Inputs(positions=np.arange(9))),
        ("sequences[0].protected", kvern.Inputs(protected=[(10, 5)])),
    ]:
        error = refused(lambda inputs=inputs: client.compress(*cache, "evict50", inputs=inputs))  # type: ignore[misc]
        assert error.code == "INVALID_ARGUMENT"
        assert error.field.startswith(field)


def test_via_is_a_known_word(client: kvern.Client, cache: Cache) -> None:
    assert refused(lambda: client.compress(*cache, via="pigeon")).field == "via"


def test_an_unknown_model_costs_no_pool(client: kvern.Client, cache: Cache) -> None:
    client.compress(*cache, "evict50")
    before = client.list_pools()
    assert refused(lambda: client.compress(*cache, model="nobody")).reason == "MODEL_UNKNOWN"
    client.compress(*cache, "evict50")
    assert client.list_pools() == before


@pytest.mark.parametrize(
    ("reason", "arguments"),
    [
        ("ROPE_UNKNOWN", {"policy": "balanced"}),
        ("INPUT_MISSING", {"policy": kvern.Policy(keep_ratio=0.5, scorer="snapkv")}),
        ("BUDGET_BELOW_PROTECTED", {"policy": kvern.Policy(budget_bytes=64, scorer="keydiff")}),
        ("MODEL_UNKNOWN", {"policy": "evict50", "model": "models/nobody"}),
        ("CALIBRATION_UNKNOWN", {"policy": kvern.Policy("safe", calibrations=[UNKNOWN])}),
        (
            "SHAPE_CLASS",
            {
                "policy": kvern.Policy(
                    keep_ratio=0.5, scorer="key_norm", budgeter="pyramid", positions="renumber"
                ),
                "model": ROPED,
            },
        ),
        (
            "CODEC_NEEDS_STORE",
            {"policy": kvern.Policy(codec="i8t"), "via": "inline"},
        ),
    ],
)
def test_preconditions(
    client: kvern.Client, cache: Cache, reason: str, arguments: dict[str, Any]
) -> None:
    error = refused(lambda: client.compress(*cache, **arguments))
    assert error.reason == reason
    assert error.code in ("FAILED_PRECONDITION", "NOT_FOUND")


def test_pool_needs_a_unix_socket(server: Server, cache: Cache) -> None:
    with kvern.Client(server.tcp_address) as client:
        error = refused(lambda: client.compress(*cache, "evict50", via="pool"))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "BROKER_MISSING")


def test_too_large_for_the_message(client: kvern.Client) -> None:
    large = random_cache(4, 2, 9000, 64)
    error = refused(lambda: client.compress(*large, "evict50", via="inline"))
    assert error.code in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")


def test_nobody_listens() -> None:
    for address in ("unix:/nonexistent/kvern.sock", "127.0.0.1:9"):
        error = refused(lambda address=address: kvern.Client(address))  # type: ignore[misc]
        assert (error.code, error.reason) == ("UNAVAILABLE", "UNREACHABLE")
        assert address in error.message
        assert "kvernd" in error.next_step


def test_deadline(client: kvern.Client) -> None:
    large = random_cache(4, 2, 20000, 64)
    client.compress(*large, "evict50")
    (before,) = client.list_pools()
    error = refused(lambda: client.compress(*large, "evict50", timeout=0.001))
    assert error.code == "DEADLINE_EXCEEDED"
    # The server may have been writing still: its memory is not used again.
    assert client.compress(*large, "evict50").outcome == "applied"
    for _ in range(100):  # the server notices a closed connection a moment later
        if before not in client.list_pools():
            break
    (after,) = client.list_pools()
    assert after != before


def test_a_full_queue_says_when_to_ask_again(own_server: Callable[..., Server]) -> None:
    server = own_server("--queued-calls", "1")
    large = random_cache(4, 2, 20000, 64)
    caught: list[kvern.KvernError] = []

    def ask(client: kvern.Client) -> None:
        try:
            client.compress(*large, "evict50", copy=True)
        except kvern.KvernError as error:
            caught.append(error)

    with kvern.Client(server.address) as client:
        client.compress(*large, "evict50")
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caught
    assert {error.code for error in caught} == {"RESOURCE_EXHAUSTED"}
    assert all(error.retry_after is not None and error.retry_after > 0 for error in caught)
    assert all(error.next_step.startswith("ask again in") for error in caught)


def test_a_full_store(own_server: Callable[..., Server], cache: Cache) -> None:
    server = own_server("--store-bytes", "1MiB")
    with kvern.Client(server.address) as client:
        client.put_sequence("first", *cache)
        error = refused(lambda: client.put_sequence("second", *cache))
        assert error.code == "RESOURCE_EXHAUSTED"
        assert [stored.name for stored in client.list_sequences()] == ["sequences/first"]


def test_a_response_too_large(own_server: Callable[..., Server]) -> None:
    server = own_server("--max-response-bytes", "2MiB")
    k, v = random_cache(4, 2, 3000, 64)
    with kvern.Client(server.tcp_address) as client:
        error = refused(lambda: client.compress(k, v, "evict50", via="inline"))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "RESPONSE_TOO_LARGE")
        assert client.compress(k, v, "evict50", via="store").outcome == "applied"


def test_models_and_sequences_in_use(client: kvern.Client, cache: Cache) -> None:
    spec = kvern.ModelSpec(4, 2, 64, rope=kvern.Rope(theta=1e4), display_name="used")
    model = client.register_model(spec, "used")
    stored = client.put_sequence("kept", *cache, model=model)
    assert refused(lambda: client.delete_model("used")).reason == "MODEL_IN_USE"
    client.compress_sequences([kvern.StoreSequence("kept", stored.name)], "small", model=model)
    epoch = client.get_sequence("kept").epoch
    error = refused(lambda: client.append_sequence("kept", *cache, epoch=epoch))
    assert error.reason == "SEQUENCE_PACKED"
    client.delete_sequence("kept")
    client.delete_model("used")


def test_a_server_that_drains(own_server: Callable[..., Server], cache: Cache) -> None:
    server = own_server()
    with kvern.Client(server.address) as client:
        server.process.terminate()
        server.process.wait(20)
        assert refused(lambda: client.compress(*cache, "evict50")).code == "UNAVAILABLE"


def test_every_detail_of_a_status_is_read() -> None:
    status = status_pb2.Status(code=15, message="compaction was cut short")
    info = error_details_pb2.ErrorInfo(reason="SEQUENCE_POISONED", domain="kvern.dev")
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="sequences[2]")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    for detail in (info, bad, retry):
        status.details.add().Pack(detail)
    error = from_status(status)
    assert (error.code, error.reason, error.field) == (
        "DATA_LOSS",
        "SEQUENCE_POISONED",
        "sequences[2]",
    )
    assert error.retry_after == 1.5
    assert "recompute" in error.next_step


def test_closed_client(server: Server, cache: Cache) -> None:
    client = kvern.Client(server.address)
    client.close()
    client.close()
    assert refused(lambda: client.compress(*cache)).reason == "CLOSED"


def test_unreadable_tls_file(server: Server) -> None:
    error = refused(lambda: kvern.Client(server.address, tls=kvern.Tls(ca="/nonexistent")))
    assert error.field == "tls.ca"


def test_unknown_engine(server: Server) -> None:
    assert refused(lambda: kvern.Client(server.address, engine="abacus")).field == "engine"


def test_errors_travel_between_processes() -> None:
    error = kvern.KvernError("ABORTED", "old", reason="EPOCH_MISMATCH", field="f", retry_after=2.0)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.retry_after == 2.0


def test_a_killed_server_is_named(own_server: Callable[..., Server], cache: Cache) -> None:
    server = own_server()
    with kvern.Client(server.address) as client:
        result = client.compress(*cache, "evict50")
        server.kill()
        error = refused(lambda: client.compress(*cache, "evict50"))
        assert (error.code, error.reason) == ("UNAVAILABLE", "UNREACHABLE")
        assert server.directory in error.message
        index = result.kept_indices[..., None].astype(np.int64)  # what was answered stays good
        assert np.array_equal(result.k, np.take_along_axis(cache[0], index, 2))


def test_a_server_started_anew_between_two_calls(
    own_server: Callable[..., Server], cache: Cache
) -> None:
    server = own_server()
    with kvern.Client(server.address) as client:
        client.compress(*cache, "evict50")
        client.put_sequence("first", *cache)
        server.kill()
        own_server(directory=server.directory)
        for _ in range(50):
            try:
                client.info()
                break
            except kvern.KvernError as error:
                assert error.reason == "UNREACHABLE"  # gRPC waits a little between attempts
                time.sleep(0.1)
        client.put_sequence("first", *cache)  # the model of its shape is registered anew
        assert client.compress(*cache, "evict50").outcome == "applied"


def test_a_server_that_comes_back_is_used_again(
    own_server: Callable[..., Server], cache: Cache
) -> None:
    server = own_server()
    with kvern.Client(server.address) as client:
        client.compress(*cache, "evict50")
        server.kill()
        refused(lambda: client.compress(*cache, "evict50"))
        own_server(directory=server.directory)
        for _ in range(50):
            try:
                assert client.compress(*cache, "evict50").outcome == "applied"
                return
            except kvern.KvernError as error:
                assert error.reason == "UNREACHABLE"  # gRPC waits a little between attempts
                time.sleep(0.1)
        raise AssertionError("never reached again")
