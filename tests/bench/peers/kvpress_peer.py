"""kvpress: the score functions of its presses, on f32 caches (bf16 is much slower on most CPUs).

The attention module around them is the least that they ask for: queries come ready, so nothing but
the scoring is timed."""
import importlib.metadata
import types

import torch
from kvpress import ExpectedAttentionPress, KeyDiffPress, KnormPress, SnapKVPress

import inputs
import turns

H, T, D = inputs.KV_HEADS, inputs.TOKENS, inputs.HEAD_DIM


class KnownStatistics(ExpectedAttentionPress):
    """Mean and covariance are given instead of measured on hidden states."""

    def get_query_statistics(self, module, hidden_states):
        return self.given


def attention(group):
    config = types.SimpleNamespace(num_attention_heads=H * group, num_key_value_heads=H)
    return types.SimpleNamespace(config=config, head_dim=D, q_proj=lambda states: states)


def main():
    args = turns.arguments()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    keys = torch.from_numpy(inputs.load_rows(args.inputs, "keys"))[None]
    values = torch.from_numpy(inputs.load_rows(args.inputs, "values"))[None]

    def load(name, group, *shape):
        return torch.from_numpy(inputs.load(args.inputs, f"{name}.g{group}.f32", H * group, *shape))

    def work(press, module=None, states=None, **kwargs):
        return turns.Work(lambda: press.score(module, states, keys, values, None, kwargs),
                          lambda scores: scores[0].numpy())

    def snapkv(group):
        queries = load("queries", group, inputs.WINDOW, D)
        states = torch.zeros(1, T, H * group * D)
        states[0, -inputs.WINDOW:] = queries.transpose(0, 1).reshape(inputs.WINDOW, -1)
        unturned = (torch.ones(1, T, D), torch.zeros(1, T, D))  # the queries are rotated already
        return work(SnapKVPress(0.5, window_size=inputs.WINDOW, kernel_size=5), attention(group),
                    states, position_embeddings=unturned)

    def expected_attention(group):
        press = KnownStatistics(0.5, n_sink=0)
        press.given = (load("ea_mean", group, D)[None], load("ea_covariance", group, D, D)[None])
        return work(press, attention(group))

    makers = {"key_norm": lambda: work(KnormPress(0.5)), "keydiff": lambda: work(KeyDiffPress(0.5))}
    for g in (1, 4):
        makers[f"snapkv.g{g}"] = lambda g=g: snapkv(g)
        makers[f"expected_attention.g{g}"] = lambda g=g: expected_attention(g)
    version = importlib.metadata.version("kvpress")
    turns.serve(f"kvpress {version}, torch {torch.__version__}", makers)


main()
