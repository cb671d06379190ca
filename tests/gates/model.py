#!/usr/bin/env python3
"""Estimates, from bytes and instructions, what the stages of the cuda backend take on a device. Not a
measurement: no GPU took part.

    tests/gates/model.py                      the table of docs/performance.md
    tests/gates/model.py --measured FILE      gpu_bench's JSON beside the estimates
    tests/gates/model.py --tokens 131072      another shape

A launch takes the longer of its bytes over the bandwidth reached and its instructions over the issue
rate reached, plus its overhead. Bytes are exact: what a launch reads and writes once. Instructions of
one thread are counted in the machine code of sm_90a (tests/gates/kernels.py --table gives the size of
each kernel; loops by hand, slow paths of roots left out).
"""
import argparse
import json
from dataclasses import dataclass

# Datasheets: memory bandwidth in bytes/s; multiprocessors, boost clock in Hz, warp instructions a clock.
DEVICES = {
    "A100": dict(bandwidth=2.039e12, processors=108, clock=1.41e9, issue=4),
    "H100": dict(bandwidth=3.35e12, processors=132, clock=1.98e9, issue=4),
    "B200": dict(bandwidth=8.0e12, processors=148, clock=1.96e9, issue=4),
}
BANDWIDTH_REACHED = 0.90  # of the datasheet, by streams of whole sectors
ISSUE_REACHED = 0.85
LAUNCH_SECONDS = 4e-6


@dataclass
class Shape:
    layers: int = 32
    kv_heads: int = 8
    group: int = 4
    tokens: int = 32768
    head_dim: int = 128
    kept: int = 2048

    def rows(self):
        return self.layers * self.kv_heads * self.tokens

    def kept_rows(self):
        return self.layers * self.kv_heads * self.kept


@dataclass
class Launch:
    name: str
    bytes: float
    instructions: float  # of warps


def warps(threads):
    return threads / 32


def score(s: Shape):
    raw = s.rows() * s.group * 8
    return [
        Launch("reference keys", s.layers * s.kv_heads * s.head_dim * 8, 0),
        # Two threads a token: 8 octets, 4 heads, 32 roots. 1450 of the 1581 instructions of the loop.
        Launch("raw scores", s.rows() * s.head_dim * 2 + raw, warps(2 * s.rows() * 1450 * s.group / 4)),
        # Squares, then z-scores: raw scores twice; about 40 instructions a score and pass.
        Launch("z-scores", 2 * raw + s.rows() * 4, warps(s.rows() * s.group * 80)),
    ]


def select(s: Shape):
    # Scores and masks are read four times; after the first time by the L2 cache, which holds them.
    return [Launch("top-k", s.rows() * 6, warps(s.rows() * 4 * 12))]


def move(s: Shape):
    # Keys and values, read and written; 16 threads a row.
    return [Launch("move", s.kept_rows() * s.head_dim * 2 * 4, warps(s.kept_rows() * 2 * 16 * 60))]


def encode(s: Shape):
    rows = 2 * s.rows()
    packed = rows * (s.head_dim / 2 + 2)
    # Two threads a row: 2330 of the 2608 instructions of the straight path without rm.
    return [Launch("encode lm4", rows * s.head_dim * 2 + packed, warps(2 * rows * 2330))]


def seconds(launch: Launch, device):
    memory = launch.bytes / (device["bandwidth"] * BANDWIDTH_REACHED)
    issue = launch.instructions / (device["processors"] * device["clock"] * device["issue"] * ISSUE_REACHED)
    return max(memory, issue) + LAUNCH_SECONDS, "memory" if memory >= issue else "issue"


def table(title, launches, limit_ms):
    print(f"\n**{title}**" + (f" (wanted on an H100: at most {limit_ms} ms)" if limit_ms else ""))
    print("\n| launch | MB moved | M warp instructions | " + " | ".join(f"{d} ms, bound by" for d in DEVICES) + " |")
    print("|--|--|--|" + "--|" * len(DEVICES))
    totals = dict.fromkeys(DEVICES, 0.0)
    for launch in launches:
        cells = []
        for name, device in DEVICES.items():
            took, bound = seconds(launch, device)
            totals[name] += took
            cells.append(f"{took * 1e3:.3f} {bound}")
        print(f"| {launch.name} | {launch.bytes / 1e6:.0f} | {launch.instructions / 1e6:.0f} | " + " | ".join(cells) + " |")
    floor = sum(launch.bytes for launch in launches)
    floors = " | ".join(f"**{totals[d] * 1e3:.2f}** (floor {floor / DEVICES[d]['bandwidth'] * 1e3:.2f})" for d in DEVICES)
    print(f"| all | {floor / 1e6:.0f} | | {floors} |")


STAGES = {"score:triattention": score, "select:topk": select, "move:copy": move, "encode:lm4": encode}


def measured(path):
    report = json.load(open(path))
    at = report["shape"]
    shape = Shape(at["layers"], at["kv_heads"], at["q_heads"] // at["kv_heads"], at["tokens"], at["head_dim"], at["kept"])
    print(f"{report['device']}; estimates are for an H100\n")
    print("| stage | measured ms | p10 | p90 | floor bytes / measured, GB/s | estimated ms |")
    print("|--|--|--|--|--|--|")
    for row in report["stages"]:
        model = STAGES.get(row["stage"])
        guess = f"{sum(seconds(l, DEVICES['H100'])[0] for l in model(shape)) * 1e3:.3f}" if model else "-"
        rate = row["floor_bytes"] / max(row["micros"], 1) / 1e3
        print(f"| {row['stage']} | {row['micros'] / 1e3:.3f} | {row['p10'] / 1e3:.3f} | {row['p90'] / 1e3:.3f} | {rate:.0f} | {guess} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--measured", help="JSON of gpu_bench")
    args = parser.parse_args()
    if args.measured:
        measured(args.measured)
        return
    s = Shape(tokens=args.tokens)
    print(f"{s.layers} layers x {s.kv_heads} KV heads x {s.tokens} tokens x {s.head_dim} dims, bf16, "
          f"{s.group} query heads per KV head; {s.kept} kept")
    table("score (`triattention`), select, compact", score(s) + select(s) + move(s), 1.5)
    table("encode K and V, lm4, every token", encode(s), 2.6)
    steady = Shape(tokens=2176)
    table("the same, steady: 2176 tokens to 2048", score(steady) + select(steady) + move(steady), 0.15)


if __name__ == "__main__":
    main()
