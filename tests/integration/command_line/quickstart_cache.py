import json, struct, sys
import numpy as np

def write_cache(path, k, v, **metadata):  # k, v: float16 [layers, kv_heads, tokens, head_dim]
    header, blobs, at = {"__metadata__": {"format": "kvern-cache/1", **metadata}}, [], 0
    for name, array in {"k": k, "v": v}.items():
        data = np.ascontiguousarray(array, "<f2").tobytes()
        header[name] = {"dtype": "F16", "shape": list(array.shape),
                        "data_offsets": [at, at + len(data)]}
        blobs.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))

random = np.random.default_rng(7)  # your engine's keys (after RoPE) and values go here
k, v = random.standard_normal((2, 4, 2, 256, 64))
write_cache(sys.argv[1], k, v, model="my-model", q_heads="8", rope_theta="10000")
