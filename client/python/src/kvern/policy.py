"""What to keep and how to store it, in the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

from kvern.errors import invalid
from kvern.v1 import types_pb2

_BLENDS = {"": types_pb2.BLEND_UNSPECIFIED, "max": types_pb2.BLEND_MAX, "sum": types_pb2.BLEND_SUM}
_POSITIONS = {
    "": types_pb2.POSITION_MODE_UNSPECIFIED,
    "keep": types_pb2.POSITION_MODE_KEEP_LOGICAL,
    "renumber": types_pb2.POSITION_MODE_RENUMBER,
}
_CONFLICTS = {
    "": types_pb2.ON_CONFLICT_UNSPECIFIED,
    "grow": types_pb2.ON_CONFLICT_GROW_BUDGET,
    "fail": types_pb2.ON_CONFLICT_FAIL,
    "trim": types_pb2.ON_CONFLICT_TRIM_OLDEST,
}
Word = TypeVar("Word")

_UNITS = {
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "K": 2.0**10,
    "M": 2.0**20,
    "G": 2.0**30,
    "B": 1.0,
}


@dataclass(frozen=True)
class Policy:
    """A shipped preset, stages of your own, or a preset with single parts replaced.

    preset: ``balanced``, ``small``, ``tiny``, ``safe``, ``evict50`` (``client.list_stages()`` has
    them in full). profile: ``retrieval`` or ``text``.

    By keyword, each as on the command line; what is not given is the preset's, or without a preset
    the default of the stage: at most one of budget_tokens (per layer and kv_head, on average),
    keep_ratio in (0, 1] and budget_bytes (a number, ``"4MiB"``, or ``"25%"`` of the cache);
    budgeter, scorer (one, or several with blend ``max`` or ``sum``) and selector, each
    ``"NAME:key=value,..."``; codec (``"k=NAME,v=NAME"`` or one name for both) or k_codec and
    v_codec; sink, recent and recent_share; positions ``keep`` or ``renumber``; on_conflict
    ``grow``, ``fail`` or ``trim``; calibrations, names that ``import_calibration`` returned.
    """

    preset: str = ""
    profile: str = ""
    _: KW_ONLY
    budget_tokens: int | None = None
    keep_ratio: float | None = None
    budget_bytes: int | str | None = None
    budgeter: str = ""
    scorer: str | Sequence[str] = ()
    blend: str = ""
    selector: str = ""
    codec: str = ""
    k_codec: str = ""
    v_codec: str = ""
    sink: int | None = None
    recent: int | None = None
    recent_share: float | None = None
    positions: str = ""
    on_conflict: str = ""
    calibrations: Sequence[str] = ()

    def to_proto(self, cache_bytes: int | None) -> types_pb2.Policy:
        """The wire's form; cache_bytes is what ``"25%"`` is of, None where that is not known.

        Errors: INVALID_ARGUMENT.
        """
        policy = types_pb2.Policy(preset=self.preset, profile=self.profile)
        self._fill_budget(policy, cache_bytes)
        if self.budgeter:
            policy.budgeter.CopyFrom(stage("budgeter", self.budgeter))
        scorers = (self.scorer,) if isinstance(self.scorer, str) else tuple(self.scorer)
        policy.scorers.extend(stage("scorer", text) for text in scorers if text)
        if self.selector:
            policy.selector.CopyFrom(stage("selector", self.selector))
        self._fill_codecs(policy)
        if self.sink is not None:
            policy.sink_tokens = self.sink
        if self.recent is not None:
            policy.recent_tokens = self.recent
        if self.recent_share is not None:
            policy.recent_share = self.recent_share
        policy.blend = _word("blend", self.blend, _BLENDS)
        policy.positions = _word("positions", self.positions, _POSITIONS)
        policy.on_conflict = _word("on_conflict", self.on_conflict, _CONFLICTS)
        policy.calibrations.extend(self.calibrations)
        return policy

    def _fill_budget(self, policy: types_pb2.Policy, cache_bytes: int | None) -> None:
        given = [self.budget_tokens, self.keep_ratio, self.budget_bytes]
        if sum(value is not None for value in given) > 1:
            raise invalid(
                "policy.budget",
                "policy: got several of budget_tokens, keep_ratio and budget_bytes, want one",
            )
        if self.budget_tokens is not None:
            policy.budget.tokens = self.budget_tokens
        if self.keep_ratio is not None:
            policy.budget.keep_ratio = self.keep_ratio
        if self.budget_bytes is not None:
            policy.budget.bytes = size(self.budget_bytes, cache_bytes)

    def _fill_codecs(self, policy: types_pb2.Policy) -> None:
        if self.codec and (self.k_codec or self.v_codec):
            raise invalid("policy.codec", "policy: got codec and k_codec or v_codec, want either")
        k, v = self.k_codec, self.v_codec
        if self.codec and "=" not in self.codec:
            k = self.codec
            # Mean removal is for keys alone: one name for both means it there.
            v = self.codec.replace("+rm", "").replace("rm+", "")
        for part in self.codec.split(",") if "=" in self.codec else ():
            name, _, value = part.partition("=")
            if name not in ("k", "v") or not value:
                raise invalid(
                    "policy.codec",
                    f"policy.codec: got '{self.codec}', want k=NAME,v=NAME or one name for both",
                )
            k, v = (value, v) if name == "k" else (k, value)
        if k or v:
            policy.codecs.k, policy.codecs.v = k, v


def as_policy(policy: Policy | str | None) -> Policy:
    """A preset's name stands for the preset, nothing for `balanced`."""
    if policy is None:
        return Policy("balanced")
    return Policy(policy) if isinstance(policy, str) else policy


def stage(kind: str, text: str) -> types_pb2.StageSpec:
    """``snapkv:window=32,pool=avg``; a bare key means true. Errors: INVALID_ARGUMENT."""
    name, _, params = text.partition(":")
    spec = types_pb2.StageSpec(name=name)
    field = f"policy.{kind}"
    if not name:
        raise invalid(field, f"{field}: got '{text}', want NAME[:key=value,...]")
    for part in params.split(",") if params else ():
        key, equals, value = part.partition("=")
        if not key or (equals and not value) or key in spec.params:
            raise invalid(
                field, f"{field}: got '{part}' in '{text}', want key=value, each key once"
            )
        spec.params[key] = value if equals else "true"
    return spec


def size(given: int | str, whole: int | None) -> int:
    """Bytes of ``64000``, ``"4MiB"`` or ``"25%"`` of `whole`. Errors: INVALID_ARGUMENT."""
    if isinstance(given, int):
        return given
    number, scale = given, 1.0
    if given.endswith("%") and whole is not None:
        number, scale = given[:-1], whole / 100
    else:
        for suffix, unit in _UNITS.items():
            if given.endswith(suffix):
                number, scale = given[: -len(suffix)], unit
                break
    try:
        value = float(number) * scale
    except ValueError:
        value = -1.0
    if not 0 <= value < 9e18:
        raise invalid(
            "policy.budget_bytes",
            f"policy.budget_bytes: got '{given}', want a size such as 64000, '4MiB' or '25%'",
        )
    return int(value)


def _word(field: str, word: str, words: dict[str, Word]) -> Word:
    if word not in words:
        known = " or ".join(known for known in words if known)
        raise invalid(f"policy.{field}", f"policy.{field}: got '{word}', want {known}")
    return words[word]
