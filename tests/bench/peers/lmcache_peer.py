"""lmcache's CacheGen on a CPU: 16 levels per token, then an arithmetic coder per channel, by numba.

It packs keys and values of a layer together. Here the first half of the value rows stands for keys,
so that it packs the same rows, all with as many levels."""
import functools
import importlib.metadata

import torch
from lmcache.storage_backend.serde import cachegen_decoder, cachegen_encoder

import inputs
import turns

H, T, D = inputs.KV_HEADS, inputs.TOKENS, inputs.HEAD_DIM
LEVELS = torch.tensor([16.0])
PARTS = 16  # its loop is over chunks of 256 tokens: one part of them is timed


def encode(rows):
    """rows [1 layer, 2 halves, tokens / 2, kv_heads, head_dim]."""
    return cachegen_encoder.encode_function(rows, None, LEVELS, LEVELS, rows.shape[2])


def decode(coded):
    """f32 [tokens, channels]."""
    tokens = coded.max_tensors_key.shape[1]
    symbols = torch.zeros(tokens, 2 * H * D, dtype=torch.uint8)
    halves = cachegen_decoder.decode_function_gpu(coded.cdf, coded.data_chunks, 1, tokens, symbols)
    largest = (coded.max_tensors_key, coded.max_tensors_value)
    return torch.cat([cachegen_decoder.do_dequantize(half, LEVELS, top)
                      for half, top in zip(halves, largest)])


def as_rows(decoded):
    return decoded.float().reshape(T, H, D).permute(1, 0, 2).contiguous().numpy()


def packed_bytes(coded):
    """Codes and their lengths, the coder's tables, the scale of each token."""
    tensors = [coded.cdf, coded.max_tensors_key, coded.max_tensors_value]
    for chunk in coded.data_chunks:
        tensors += [chunk.bytestream, chunk.bytestream_lengths]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main():
    args = turns.arguments()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    values = torch.from_numpy(inputs.load_rows(args.inputs, "values"))
    rows = values.permute(1, 0, 2).reshape(1, 2, T // 2, H, D).contiguous()
    some = rows[:, :, :T // 2 // PARTS].contiguous()

    @functools.cache
    def whole():  # takes seconds: once, for both checks
        coded = encode(rows)
        return packed_bytes(coded), as_rows(decode(coded))

    def work(part):
        part()  # numba compiles
        return turns.Work(lambda: whole()[1], packed_bytes=whole()[0], part=part, parts=PARTS)

    def decoder():
        coded = encode(some)
        return work(lambda: decode(coded))

    about = [f"{name} {importlib.metadata.version(name)}" for name in ("lmcache", "torch", "numba")]
    turns.serve(", ".join(about), {"encode.cachegen": lambda: work(lambda: encode(some)),
                                    "decode.cachegen": decoder})


main()
