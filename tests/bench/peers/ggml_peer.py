"""ggml's quantized rows: the C functions that llama.cpp runs on its KV cache, called directly.

The libraries are those of the pywhispercpp wheel, a build of ggml with its symbols exported. q8_0
has a vectorised function, q4_0 on x86 only the portable one: the library calls it itself."""
import concurrent.futures
import ctypes
import glob
import importlib.metadata
import os
import sysconfig

import numpy as np

import inputs
import turns

BLOCK_VALUES = 32
BLOCK_BYTES = {"q8_0": 34, "q4_0": 18}


def libraries():
    folder = os.path.join(sysconfig.get_paths()["platlib"], "pywhispercpp.libs")
    opened = [ctypes.CDLL(glob.glob(os.path.join(folder, f"libggml-{name}-*.so*"))[0],
                          mode=ctypes.RTLD_GLOBAL) for name in ("base", "cpu")]
    opened[1].ggml_cpu_init()
    return opened


class Rows:
    """Runs a C function (source, destination, values) over all rows, a share per thread."""

    def __init__(self, threads):
        self.threads = threads
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)

    def bind(self, function, source, destination):
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
        values = source.shape[0] * inputs.HEAD_DIM // self.threads
        source_step, destination_step = (a.nbytes // self.threads for a in (source, destination))

        def part(i):
            function(source.ctypes.data + i * source_step,
                     destination.ctypes.data + i * destination_step, values)

        def run():
            if self.threads == 1:
                part(0)
            else:
                list(self.pool.map(part, range(self.threads)))
            return destination
        return run


def main():
    args = turns.arguments()
    base, cpu = libraries()
    rows = Rows(args.threads)
    floats = inputs.load_rows(args.inputs, "values").reshape(-1, inputs.HEAD_DIM)

    def codec(kind, decode):
        row_bytes = inputs.HEAD_DIM // BLOCK_VALUES * BLOCK_BYTES[kind]
        packed = np.zeros((floats.shape[0], row_bytes), np.uint8)
        decoded = np.zeros_like(floats)
        encode = rows.bind(getattr(cpu, f"quantize_row_{kind}"), floats, packed)
        back = rows.bind(getattr(base, f"dequantize_row_{kind}"), packed, decoded)
        if decode:
            encode()
            return turns.Work(back, packed_bytes=packed.nbytes)
        return turns.Work(encode, lambda _: back(), packed.nbytes)

    simd = ", ".join(name for name in ("avx2", "avx512") if getattr(cpu, f"ggml_cpu_has_{name}")())
    version = importlib.metadata.version("pywhispercpp")
    turns.serve(f"ggml of pywhispercpp {version} ({simd or 'no simd'})",
                {f"{verb}.{kind}": lambda kind=kind, verb=verb: codec(kind, verb == "decode")
                 for kind in BLOCK_BYTES for verb in ("encode", "decode")})


main()
