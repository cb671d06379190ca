"""numpy: partial selection of the best tokens per head."""
import numpy as np

import inputs
import turns


def main():
    args = turns.arguments()
    scores = inputs.load(args.inputs, "scores.f32", inputs.KV_HEADS, inputs.TOKENS)
    split = inputs.TOKENS - inputs.KEPT
    turns.serve(f"numpy {np.__version__}", {
        "topk.argpartition": lambda: turns.Work(
            lambda: np.argpartition(scores, split, axis=1)[:, split:],
            lambda kept: np.sort(kept, 1).astype("<i4")),
    })


main()
