#!/usr/bin/env python3
"""Prints the tables of docs/performance.md from kvern_bench's JSON."""
import json
import pathlib
import re
import sys

import numpy as np


def quantiles(rounds, counter):
    return np.percentile([one[counter] for one in rounds], [10, 50, 90])


def machine(context):
    flags = set(re.findall(r"\w+", pathlib.Path("/proc/cpuinfo").read_text()))
    names = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
    known = [name for name in names if name in flags]
    load = f"{context['load_avg'][0]:.2f}" if context["load_avg"] else "unknown"
    return (f"{context['num_cpus']} vCPU, {', '.join(known)}; kernels ran "
            f"{context['instruction_set']}; load at the start {load}")


def work_row(name, rounds):
    low, middle, high = quantiles(rounds, "x_read")
    wall = np.median([one["wall_ms"] for one in rounds])
    floor_mib = rounds[0]["floor_mib"]
    floor_x = rounds[0]["floor_x"]
    cpu = quantiles(rounds, "x_read_cpu")[1]
    # MiB per ms is 1.048576 GB per s.
    return [name, f"{wall:.2f}", f"{floor_mib:.1f}", f"{floor_mib * 1.048576 / wall:.2f}",
            f"**{middle:.2f}** [{low:.2f}–{high:.2f}]", f"{cpu:.2f}",
            f"{100 * floor_x / middle:.0f} %",
            f"{100 * floor_x / cpu:.0f} %",
            f"{np.median([one['tokens_per_s'] for one in rounds]) / 1e6:.2f}",
            f"{np.median([one['allocations'] for one in rounds]):.0f}"]


def table(title, header, rows):
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'--|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main():
    report = json.loads(pathlib.Path(sys.argv[1]).read_text())
    groups = {}
    failed = []
    for run in report["benchmarks"]:
        if run.get("run_type") != "iteration":
            continue
        if run.get("error_occurred"):
            failed.append(f"{run['name']}: {run['error_message']}")
            continue
        name = run["run_name"].split("/iterations:")[0]
        groups.setdefault(name, []).append(run)
    print(machine(report["context"]))
    for threads in ("1", "2"):
        rows, reads = [], []
        for name, rounds in groups.items():
            kind, _, rest = name.partition("/")
            if kind != "op" or f"/threads:{threads}" not in rest:
                continue
            rows.append(work_row(rest.split("/threads:")[0], rounds))
            reads += [one["read_gbps"] for one in rounds]
        if rows:
            low, middle, high = np.percentile(reads, [10, 50, 90])
            table(f"{threads} thread(s); stream read {middle:.1f} GB/s [{low:.1f}–{high:.1f}]",
                  ["work", "ms", "floor MiB", "GB/s", "x read", "x read, CPU time",
                   "of stream read", "the same, CPU time", "M tokens/s", "allocations"], rows)
    calls = [[name.partition("/")[2], str(runs[0]["iterations"])] +
             [f"{runs[0][key]:.0f}" for key in ("min_us", "p50_us", "p99_us")]
             for name, runs in groups.items() if name.startswith("rpc/")]
    if calls:
        table("Calls", ["call", "calls", "least, us", "p50, us", "p99, us"], calls)
    counted = [[name.partition("/")[2], f"{runs[0]['allocations']:.0f}"]
               for name, runs in groups.items() if name.startswith("allocations/")]
    if counted:
        table("Allocations of client and server", ["call", "per call"], counted)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
