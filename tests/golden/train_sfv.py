"""Trains the sign-folded codebooks of sfv3 and sfv2 and prints them as kernels/base/sfv_table.h.

A code of k = 4 coordinates at unit variance is its 4 signs and the nearest of 256 (sfv3) or 16 (sfv2)
vectors of magnitudes. The source is |sqrt(d) u[0:4]|, u uniform on the sphere in d = 128 dimensions:
what a rotated row looks like. Training is Lloyd's iteration with Gaussian jitter that dies out
(0.6 of the cell's rms times (1 - i / n)^3), then polishing with centroids pooled over fresh samples;
an empty cell takes half of the worst. Magnitudes end as multiples of 1/64, which f16 and 8 bits hold
exactly. Order: ascending norm, then lexicographic.

    python3 train_sfv.py > sfv_table.h         (numpy; seeded; some minutes)
    python3 train_sfv.py --check sfv_table.h   (NMSE of the committed tables on fresh samples)
"""

import argparse
import re
import sys

import numpy as np

DIM, COORDS, STEP = 128, 4, 64
JITTERED, POLISHED, SAMPLES = 80, 16, 200_000


def magnitudes(rng, count):
    """[count, 4] f64; all coordinates of a row are alike, so each row gives 32 vectors."""
    rows = rng.standard_normal(((count + 31) // 32, DIM))
    rows *= np.sqrt(DIM) / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.abs(rows.reshape(-1, COORDS)[:count])


def nearest(table, x):
    """Index of the nearest magnitude vector and its squared distance, per row of x."""
    half = 0.5 * (table * table).sum(axis=1)
    index = np.empty(len(x), dtype=np.int64)
    for first in range(0, len(x), 16384):
        part = x[first : first + 16384]
        index[first : first + 16384] = np.argmin(half - part @ table.T, axis=1)
    return index, ((x - table[index]) ** 2).sum(axis=1)


def cells(index, x, distance, size):
    """Count, coordinate sums and summed distance of each cell."""
    count = np.bincount(index, minlength=size)
    sums = np.stack([np.bincount(index, x[:, j], size) for j in range(COORDS)], axis=1)
    return count, sums, np.bincount(index, distance, size)


def centroids(table, count, sums, error, rng):
    """The next table; an empty cell is set beside the centroid of the worst one."""
    fresh = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], table)
    error = error.copy()
    for empty in np.flatnonzero(count == 0):
        worst = int(np.argmax(error))
        rms = np.sqrt(error[worst] / max(count[worst], 1) / COORDS)
        fresh[empty] = np.abs(fresh[worst] + 0.5 * rms * rng.standard_normal(COORDS))
        error[worst] /= 2
    return fresh


def train(size, seed):
    rng = np.random.default_rng(seed)
    table = magnitudes(rng, 32 * size)[::32] * np.sqrt((COORDS + 2) / COORDS)
    for step in range(JITTERED):
        x = magnitudes(rng, SAMPLES)
        index, distance = nearest(table, x)
        count, sums, error = cells(index, x, distance, size)
        table = centroids(table, count, sums, error, rng)
        rms = np.sqrt(error / np.maximum(count, 1) / COORDS)[:, None]
        jitter = 0.6 * rms * (1 - (step + 1) / JITTERED) ** 3
        table = np.abs(table + jitter * rng.standard_normal(table.shape))
    pooled = None
    for _ in range(POLISHED):
        x = magnitudes(rng, 2 * SAMPLES)
        index, distance = nearest(table, x)
        part = cells(index, x, distance, size)
        pooled = part if pooled is None else tuple(0.75 * a + b for a, b in zip(pooled, part))
        table = centroids(table, *pooled, rng)
    return np.minimum(np.rint(table * STEP), 255).astype(np.int64)


def nmse(units, seed, count=2_000_000):
    x = magnitudes(np.random.default_rng(seed), count)
    return nearest(units / STEP, x)[1].sum() / (x * x).sum()


def canonical(units):
    return units[np.lexsort((*units.T[::-1], (units * units).sum(axis=1)))]


def best(size, seeds):
    tables = [canonical(train(size, seed)) for seed in seeds]
    scores = [nmse(table, 1000, 400_000) for table in tables]
    print(size, scores, file=sys.stderr)
    return tables[int(np.argmin(scores))]


HEAD = """\
// The magnitude vectors of sfv3 and sfv2, trained by tests/golden/train_sfv.py.
#ifndef KVERN_KERNELS_BASE_SFV_TABLE_H_
#define KVERN_KERNELS_BASE_SFV_TABLE_H_

#include <cstdint>

namespace kvern {

// One vector is a word: magnitude j of its 4 is byte j from the lowest, in steps of 1/64. Ascending
// by norm, then lexicographic. For coordinates at unit variance, at every head_dim.
inline constexpr float kSfvStep = 1.0f / 64;
inline constexpr int kSfvCoords = 4;
"""
TAIL = """\

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_SFV_TABLE_H_
"""


def as_text(name, units):
    words = ["0x%08X" % sum(int(v) << (8 * j) for j, v in enumerate(row)) for row in units]
    lines = [", ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
    body = ",\n    ".join(lines)
    return f"\ninline constexpr uint32_t {name}[{len(units)}] = {{\n    {body}}};\n"


def read_table(text, name):
    body = re.search(name + r"\[\d+\] = \{([^}]*)\}", text).group(1)
    words = np.array([int(word, 16) for word in re.findall(r"0x[0-9A-F]{8}", body)])
    return np.stack([(words >> (8 * j)) & 255 for j in range(COORDS)], axis=1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", metavar="HEADER")
    header = parser.parse_args().check
    if header:
        text = open(header).read()
        for name, want in (("kSfv3Words", 0.02586), ("kSfv2Words", 0.1003)):
            table = read_table(text, name)
            if not np.array_equal(table, canonical(table)):
                raise SystemExit(f"{name}: not in canonical order")
            got = nmse(table, 2000)
            print(f"{name}: NMSE {got:.5f}, want {want} +-1 %")
            if abs(got / want - 1) > 0.01:
                raise SystemExit(1)
        return
    tables = as_text("kSfv3Words", best(256, (1, 2, 3))) + as_text("kSfv2Words", best(16, range(8)))
    print(HEAD + tables + TAIL, end="")


if __name__ == "__main__":
    main()
