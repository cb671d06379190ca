"""What is compared: an op of Kvern beside a peer's work of the same answer, and what is wanted."""
import dataclasses

import numpy as np

import inputs

KEPT_OVERLAP = 0.999  # least share of the best 2048 tokens that two scorers must agree on


@dataclasses.dataclass
class Case:
    title: str
    op: str         # of kvern_rounds
    peer: str       # <peer>_peer.py
    work: str       # of the peer
    agree: object   # (Kvern's answer, the peer's) -> what the check found; raises Disagreement
    wanted: float | None = None        # the peer's time over Kvern's, at least
    wanted_reads: float | None = None  # Kvern's time in stream reads, at most


class Disagreement(Exception):
    """The peer computes something else: its time says nothing."""


def best(scores):
    """[kv_heads, kept]: tokens of the greatest scores, ascending."""
    return np.sort(np.argpartition(scores, -inputs.KEPT, 1)[:, -inputs.KEPT:], 1)


def overlap(a, b):
    return float(np.mean([len(np.intersect1d(x, y)) / x.size for x, y in zip(a, b)]))


def scores(tolerance, ours=lambda s: s, tokens=inputs.TOKENS):
    """Largest difference over the standard deviation of the peer's scores, and the overlap of the
    best tokens. `ours` brings Kvern's to the peer's form; scores of tokens from `tokens` on differ
    by design."""
    def agree(got, want):
        got, want = (np.fromfile(f, "<f4").reshape(inputs.KV_HEADS, -1) for f in (got, want))
        got, want = ours(got[:, :tokens].astype(np.float64)), want[:, :tokens].astype(np.float64)
        difference = float(np.abs(got - want).max() / want.std())
        shared = overlap(best(got), best(want))
        found = f"differ by {difference:.1e} std, {shared:.2%} of the kept are the same"
        if not difference <= tolerance or shared < KEPT_OVERLAP:  # NaN is a disagreement
            raise Disagreement(f"{found}; want {tolerance:.0e} std and {KEPT_OVERLAP:.1%}")
        return found
    return agree


def kept(got, want):
    got, want = (np.fromfile(f, "<i4").reshape(inputs.KV_HEADS, -1) for f in (got, want))
    if not np.array_equal(got, want):
        raise Disagreement(f"{overlap(got, want):.2%} of the kept are the same; want the same sets")
    return "the same sets"


def codec(error, role="values"):
    """Codecs differ, so nothing is equal: each must bring its rows back, NMSE below `error`. Kvern's
    are those of `role`, the peer's the values."""
    def agree(got, want):
        errors = [nmse(np.fromfile(f, "<f4"), inputs.load_rows(inputs_folder, name).ravel())
                  for f, name in ((got, role), (want, "values"))]
        found = "NMSE {:.2e} and {:.2e}".format(*errors)
        if not max(errors) <= error:
            raise Disagreement(f"{found}; want at most {error:.0e}")
        return found
    return agree


def nmse(decoded, rows):
    error, power = (np.square(x).sum(dtype=np.float64) for x in (decoded - rows, rows))
    return float(error / power)


inputs_folder = None  # set by the driver: codecs are judged against the rows themselves

# f32 phases of 17 offsets up to 98304 are off by some 1e-3 rad: so exact is the literal form.
LITERAL = 2e-2
CLOSE = 1e-3
EIGHT_BITS, FOUR_BITS = 3e-4, 3e-2


def scorer_cases():
    yield Case("key norm", "key_norm", "kvpress", "key_norm", scores(CLOSE), wanted=2)
    yield Case("KeyDiff, keys as cached", "keydiff", "kvpress", "keydiff", scores(CLOSE), wanted=15)
    prefix = inputs.TOKENS - inputs.WINDOW
    for g in (1, 4):
        tri = f"triattention.g{g}"
        for title, work, wanted, tolerance in (
                ("torch.compile, one pass", "one_pass", 2.5, CLOSE),
                ("torch, best matmul form", "matmul", 7, CLOSE),
                ("torch, published form (one head timed, x 8)", "literal", 400, LITERAL)):
            yield Case(f"TriAttention G={g}; {title}", tri, "torch", f"triattention.{work}.g{g}",
                       scores(tolerance), wanted=wanted)
        yield Case(f"TriAttention G={g}, no z-score; torch.compile, one pass",
                   f"triattention_raw.g{g}", "torch", f"triattention_raw.one_pass.g{g}",
                   scores(CLOSE))
        yield Case(f"SnapKV, 32 queries, G={g}", f"snapkv.g{g}", "kvpress", f"snapkv.g{g}",
                   scores(CLOSE, tokens=prefix), wanted=10)
        yield Case(f"expected attention, rank 8, G={g}", f"expected_attention.g{g}", "kvpress",
                   f"expected_attention.g{g}", scores(CLOSE, ours=np.exp), wanted=10)


def codec_cases():
    for title, op, error, peers in (
            ("8 bits, i8t", "v.i8t", EIGHT_BITS, (("ggml", "q8_0", 1), ("faiss", "8bit", None))),
            ("4 bits, i4t", "v.i4t", FOUR_BITS, (("ggml", "q4_0", 3), ("faiss", "4bit", 5))),
            ("4 bits, lm4", "v.lm4", FOUR_BITS,
             (("ggml", "q4_0", 3), ("faiss", "4bit", 5), ("lmcache", "cachegen", None)))):
        for verb in ("encode", "decode"):
            for peer, kind, wanted in peers:
                encode = verb == "encode"
                yield Case(f"{verb} {title}; {peer} {kind}", f"{verb}.{op}", peer, f"{verb}.{kind}",
                           codec(error), wanted if encode else None, None if encode else 2.5)
    # Nothing is wanted of keys: their mean comes off, turned to every position, which no peer does.
    for title, op, error, kind in (("8 bits, i8t+rm", "k.i8t+rm", EIGHT_BITS, "q8_0"),
                                   ("4 bits, lm4+rm", "k.lm4+rm", FOUR_BITS, "q4_0")):
        for verb in ("encode", "decode"):
            yield Case(f"{verb} keys, {title}; ggml {kind}", f"{verb}.{op}", "ggml",
                       f"{verb}.{kind}", codec(error, "keys"))


def all_cases():
    yield from scorer_cases()
    for peer, work in (("numpy", "argpartition"), ("torch", "torch")):
        yield Case(f"2048 of 32768 per head; {peer}", "topk", peer, f"topk.{work}", kept, wanted=1)
    yield from codec_cases()
