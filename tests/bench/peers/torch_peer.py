"""torch: TriAttention written three ways, and top-k.

  literal    the published form: keys turned back, a cosine per offset and band, head by head
  matmul     the offsets folded into one vector per query head: two matrix products
  one_pass   the same sums as one elementwise expression, fused by torch.compile
All end as the op does: a z-score per query head, then the maximum over those of a KV head. Of matmul
and one_pass the fastest of several forms is taken, on keys in bf16 or widened beforehand."""
import itertools

import numpy as np
import torch

import inputs
import turns

H, T, D, F = inputs.KV_HEADS, inputs.TOKENS, inputs.HEAD_DIM, inputs.BANDS
SMALLEST_STD = 1e-6
CHUNKS = (1024, 4096, 16384)


def standardised(raw):
    """raw [kv_heads, group, tokens] to scores [kv_heads, tokens]."""
    mean = raw.mean(-1, keepdim=True)
    std = raw.std(-1, unbiased=False, keepdim=True).clamp_min(SMALLEST_STD)
    return ((raw - mean) / std).amax(1)


class Problem:
    def __init__(self, folder, group):
        def load(name, *shape):
            return torch.from_numpy(inputs.load(folder, f"{name}.g{group}.f32", H, group, *shape))
        self.group = group
        self.u, self.w = load("tri_u", D), load("tri_w", F)
        self.center = torch.complex(load("tri_center_re", F), load("tri_center_im", F))
        self.length = load("tri_length", F)


def one_pass(keys, problem, zscore):
    def whole(keys, u, w):
        k = keys.float()
        lengths = (k[..., :F] * k[..., :F] + k[..., F:] * k[..., F:]).sqrt()
        raw = torch.stack([(k * u[:, i, None]).sum(-1) + (lengths * w[:, i, None]).sum(-1)
                           for i in range(problem.group)], 1)
        return standardised(raw) if zscore else raw.amax(1)
    compiled = torch.compile(whole, dynamic=False)
    return lambda: compiled(keys, problem.u, problem.w)


def matmul_whole(keys, problem):
    u, w = problem.u.transpose(1, 2).contiguous(), problem.w.transpose(1, 2).contiguous()

    def run():
        k = keys.float()
        re, im = k[..., :F], k[..., F:]
        raw = torch.bmm(k, u).add_(torch.bmm((re * re).addcmul_(im, im).sqrt_(), w))
        return standardised(raw.transpose(1, 2))
    return run


def matmul_chunks(keys, problem, chunk, heads_first):
    """Some tokens at a time: what is widened stays in cache. heads_first: [G, D] x [D, n]."""
    group, (u, w) = problem.group, (problem.u, problem.w)
    u_columns, w_columns = u.transpose(1, 2).contiguous(), w.transpose(1, 2).contiguous()
    wide, lengths = torch.empty(chunk, D), torch.empty(chunk, F)
    raw = torch.empty(H, group, T) if heads_first else torch.empty(H, T, group)

    def run():
        for h, at in itertools.product(range(H), range(0, T, chunk)):
            k = keys[h, at:at + chunk]
            if keys.dtype != torch.float32:
                k = wide.copy_(k)
            torch.mul(k[:, :F], k[:, :F], out=lengths)
            lengths.addcmul_(k[:, F:], k[:, F:]).sqrt_()
            if heads_first:
                raw[h, :, at:at + chunk] = torch.mm(u[h], k.T).addmm_(w[h], lengths.T)
            else:
                part = raw[h, at:at + chunk]
                torch.mm(k, u_columns[h], out=part)
                part.addmm_(lengths, w_columns[h])
        return standardised(raw if heads_first else raw.transpose(1, 2))
    return run


def literal(keys, problem):
    """raw = mean over offsets of sum_f |q_f| |k_f| cos((t - p + o) omega_f + arg(q_f conj k_f))
    + sum_f (a_f - |q_f|) |k_f|, on keys before RoPE, in f32. One head is timed: they are a loop."""
    omega = torch.from_numpy(inputs.inverse_frequencies())
    positions = torch.arange(T, dtype=torch.float64)
    back = torch.polar(torch.ones(T, F), torch.outer(-positions, omega).float())
    distance = torch.from_numpy(inputs.TOKENS - positions.numpy())
    offsets = [float(o) for o in inputs.OFFSETS]
    omega_f32 = omega.float()

    def head(h):
        k = torch.complex(keys[h, :, :F], keys[h, :, F:]) * back
        length = k.abs()
        rows = []
        for q, a in zip(problem.center[h], problem.length[h]):
            amplitude = q.abs() * length
            phase = (q * k.conj()).angle()
            total = torch.zeros(T)
            for o in offsets:
                turned = (distance + o).float()[:, None] * omega_f32 + phase
                total += (amplitude * turned.cos()).sum(-1)
            rows.append(total / len(offsets) + ((a - q.abs()) * length).sum(-1))
        return torch.stack(rows)
    def run(heads=range(H)):
        return standardised(torch.stack([head(h) for h in heads]))
    return turns.Work(run, lambda result: result.numpy(), part=lambda: run([0]), parts=H)


def main():
    args = turns.arguments()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    wide = torch.from_numpy(inputs.load_rows(args.inputs, "keys"))
    keys = {"bf16": wide.bfloat16(), "f32": wide}
    scores = torch.from_numpy(inputs.load(args.inputs, "scores.f32", H, T))
    problems = {group: Problem(args.inputs, group) for group in (1, 4)}

    def best(group, forms):
        name, run = turns.fastest(forms)
        print(f"G={group}: {name} is the fastest of {len(forms)} forms", flush=True)
        return turns.Work(run, lambda result: result.numpy())

    def best_one_pass(group, zscore):
        return best(group, {f"one pass, {d}": one_pass(k, problems[group], zscore)
                            for d, k in keys.items()})

    def best_matmul(group):
        forms = {f"whole, {d}": matmul_whole(k, problems[group]) for d, k in keys.items()}
        for (d, k), chunk, first in itertools.product(keys.items(), CHUNKS, (False, True)):
            forms[f"{chunk} tokens, {'heads' if first else 'tokens'} first, {d}"] = (
                matmul_chunks(k, problems[group], chunk, first))
        return best(group, forms)

    makers = {"topk.torch": lambda: turns.Work(
        lambda: torch.topk(scores, inputs.KEPT, sorted=False).indices,
        lambda kept: np.sort(kept.numpy(), 1).astype("<i4"))}
    for g in (1, 4):
        makers[f"triattention.one_pass.g{g}"] = lambda g=g: best_one_pass(g, True)
        makers[f"triattention_raw.one_pass.g{g}"] = lambda g=g: best_one_pass(g, False)
        makers[f"triattention.matmul.g{g}"] = lambda g=g: best_matmul(g)
        makers[f"triattention.literal.g{g}"] = lambda g=g: literal(wide, problems[g])
    turns.serve(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", makers)


main()
