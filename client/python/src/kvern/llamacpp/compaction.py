"""A slot of llama.cpp's server made smaller: saved, compressed, written, restored.

Every head keeps tokens of its own, while the server knows one position for all heads: the kept keys
are rotated to 0..n-1, and the server takes the slot for one of an ordinary text of n tokens.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.client import Client
from kvern.errors import KvernError, invalid
from kvern.llamacpp import label as labels
from kvern.llamacpp import slot_file
from kvern.llamacpp.llama_server import LlamaServer
from kvern.llamacpp.planes import Q8_0, Plane
from kvern.llamacpp.refusal import malformed, unsupported
from kvern.llamacpp.slot_file import SlotFile
from kvern.models import ModelSpec
from kvern.policy import Policy
from kvern.request import Inputs
from kvern.results import CompressResult

_RENUMBER = "renumber"


@dataclass(frozen=True, eq=False)
class SlotCompaction:
    """What a slot holds now, and how to go on with it.

    tokens: that the text has; kept: that the slot holds of them. label: the ids that stand for
    them; a prompt that begins with them reuses the slot. bytes_before, bytes_after: of keys and
    values. result: what Kvern said, kept_indices among it.
    """

    slot: int
    tokens: int
    kept: int
    label: tuple[int, ...] = field(repr=False)
    bytes_before: int
    bytes_after: int
    result: CompressResult[NDArray[Any]] = field(repr=False)

    def prompt(self, rest: Sequence[int]) -> list[int]:
        """Ids for /completion with this slot's id_slot. rest: at least one, because the server
        computes one token to have something to predict from."""
        return [*self.label, *rest]


def compact_slot(
    server: LlamaServer,
    slot: int,
    client: Client,
    policy: Policy | str | None = None,
    *,
    tokens: int | None = None,
    label: Sequence[int] | None = None,
    inputs: Inputs | None = None,
) -> SlotCompaction:
    """Replaces what a slot holds by what a policy keeps of it.

    policy: by default ``evict50``; it must keep as many tokens in every layer and head. tokens: of
    the text that count, by default all that the slot holds, the generated ones too. label: ids that
    stand for the kept tokens, as many as those; by default made of the text's own. inputs: side
    tensors for scorers (q_window, attention_mass, ...).

    Send the slot no request meanwhile. Errors: those of Client.compress and LlamaServer;
    UNIMPLEMENTED for models, layouts and quantized keys that are not supported. After any of them
    the slot holds what it held, and the message says how: it was not touched, or it was restored
    from its saved file. Where that failed too, the message names the file, which then stays.
    """
    chosen = _placed(policy)
    spec = server.model_spec()
    name = f"kvern-{secrets.token_hex(8)}"
    saved, smaller = f"{name}-saved.bin", f"{name}-compacted.bin"
    with _removed(server.directory / smaller), _removed(server.directory / saved):
        try:
            before = _saved_slot(server, slot, saved, spec)
            whole = before.ordered(tokens)
            result = _compress(client, whole, chosen, spec, inputs or Inputs())
            after = _compacted(whole, result, label)
            if result.outcome != "noop" or whole.tokens.size < before.positions.size:
                _write(server.directory / smaller, after, like=server.directory / saved)
        except KvernError as error:
            raise _explained(error, f"slot {slot} was not touched") from error
        if (server.directory / smaller).exists():
            _restore(server, slot, smaller, after, saved)
    return SlotCompaction(
        slot=slot,
        tokens=whole.tokens.size,
        kept=after.positions.size,
        label=tuple(after.tokens.tolist()),
        bytes_before=before.cache_bytes,
        bytes_after=after.cache_bytes,
        result=result,
    )


def _placed(policy: Policy | str | None) -> Policy:
    given = Policy("evict50") if policy is None else policy
    given = Policy(given) if isinstance(given, str) else given
    if given.positions not in ("", _RENUMBER):
        raise invalid(
            "policy.positions",
            f"policy.positions: got '{given.positions}', want '{_RENUMBER}': the server has one "
            "position for all heads of a cell",
        )
    return replace(given, positions=_RENUMBER)


def _saved_slot(server: LlamaServer, slot: int, name: str, spec: ModelSpec) -> SlotFile:
    count = server.save(slot, name)
    try:
        data = (server.directory / name).read_bytes()
    except OSError as error:
        raise invalid(
            "directory",
            f"directory: got '{server.directory}' ({error}), want the server's --slot-save-path",
        ) from error
    read = slot_file.read(data, spec)
    if read.tokens.size != count:
        raise malformed("slot file: tokens", read.tokens.size, f"{count} as the server saved")
    return read


def _compress(
    client: Client, whole: SlotFile, policy: Policy, spec: ModelSpec, inputs: Inputs
) -> CompressResult[NDArray[Any]]:
    if whole.k.kind == Q8_0 or whole.layout.rotations[0]:
        raise unsupported(
            "slot: keys",
            f"{whole.k.kind.name}, which the server keeps rotated by more than their positions, or "
            "which moving would round again",
            "f16 or f32: start the server with --cache-type-k f16",
        )
    keys, values = whole.k.floats(), whole.v.floats()
    if keys.dtype != values.dtype:
        keys, values = keys.astype(np.float32), values.astype(np.float32)
    result = client.compress(keys, values, policy, model=spec, inputs=inputs)
    counts = result.kept_counts
    if counts.min() != counts.max() or not counts.min():
        raise KvernError(
            "FAILED_PRECONDITION",
            f"policy: got {counts.min()} to {counts.max()} tokens in layers and heads, want as "
            "many in all: a cell of the server holds one token of each head",
            reason="SHAPE_CLASS",
            field="policy",
        )
    if whole.v.kind != whole.k.kind and result.chain.v_codec not in ("", "raw16"):
        raise unsupported(
            "policy.v_codec",
            result.chain.v_codec,
            f"raw16: the slot has {whole.k.kind.name} keys and {whole.v.kind.name} values",
        )
    return result


def _compacted(
    whole: SlotFile, result: CompressResult[NDArray[Any]], label: Sequence[int] | None
) -> SlotFile:
    kept = result.kept_indices
    count = kept.shape[-1]
    keys = Plane.of(result.k.astype(whole.k.floats().dtype, copy=False))
    values = Plane.of(result.v) if whole.v.kind == whole.k.kind else whole.v.gather(kept)
    if label is not None:
        ids = labels.checked(label, count)
    elif result.outcome == "noop":
        ids = whole.tokens
    else:
        ids = labels.label(whole.tokens, kept)
    positions = np.arange(count, dtype=np.int32)
    return replace(whole, tokens=ids, positions=positions, k=keys, v=values)


def _restore(server: LlamaServer, slot: int, name: str, after: SlotFile, saved: str) -> None:
    """Errors: of the server, after the slot was restored from its saved file."""
    try:
        count = server.restore(slot, name)
        if count != after.tokens.size:
            raise malformed("restored tokens", count, str(after.tokens.size))
    except BaseException as error:
        try:
            server.restore(slot, saved)
        except KvernError as second:
            keep = server.directory / saved
            keep.rename(keep.with_suffix(".kept"))
            where = f"slot {slot} could not be restored ({second.message}); what it held is in "
            raise _explained(error, where + f"'{keep.with_suffix('.kept')}'") from error
        if not isinstance(error, Exception):
            raise
        raise _explained(error, f"slot {slot} was restored from its saved file") from error


def _write(path: Path, slot: SlotFile, like: Path) -> None:
    """Whoever may read the saved file may read this one, and nobody else."""
    mode = like.stat().st_mode & 0o777
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(slot_file.write(slot))
    except OSError as error:
        raise invalid(
            "directory", f"directory: got '{path.parent}' ({error}), want one to write to"
        ) from error


def _explained(error: BaseException, outcome: str) -> KvernError:
    """The same error, and what became of the slot."""
    if not isinstance(error, KvernError):
        return KvernError("INTERNAL", f"{error!r}; {outcome}")
    told = KvernError(
        error.code,
        f"{error.message}; {outcome}",
        reason=error.reason,
        field=error.field,
        retry_after=error.retry_after,
    )
    told.next_step = error.next_step
    return told


@contextlib.contextmanager
def _removed(path: Path) -> Iterator[None]:
    """Files of slots hold what users wrote."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
