"""faiss: scalar quantizers with a range per dimension, trained beforehand."""
import faiss
import numpy as np

import inputs
import turns

TRAINING_ROWS = 20000


def codec(rows, kind, decode):
    quantizer = faiss.ScalarQuantizer(inputs.HEAD_DIM, kind)
    quantizer.train(rows[:TRAINING_ROWS])
    codes = quantizer.compute_codes(rows)
    if decode:
        return turns.Work(lambda: quantizer.decode(codes), packed_bytes=codes.nbytes)
    return turns.Work(lambda: quantizer.compute_codes(rows), quantizer.decode, codes.nbytes)


def main():
    args = turns.arguments()
    faiss.omp_set_num_threads(args.threads)
    rows = inputs.load_rows(args.inputs, "values").reshape(-1, inputs.HEAD_DIM)
    kinds = {"8bit": faiss.ScalarQuantizer.QT_8bit, "4bit": faiss.ScalarQuantizer.QT_4bit}
    turns.serve(f"faiss-cpu {faiss.__version__}, numpy {np.__version__}", {
        f"{verb}.{name}": lambda kind=kind, verb=verb: codec(rows, kind, verb == "decode")
        for name, kind in kinds.items() for verb in ("encode", "decode")})


main()
