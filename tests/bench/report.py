#!/usr/bin/env python3
"""Prints the tables of docs/performance.md from kvern_bench's JSON, and draws its figure.

    tests/bench/report.py build/cpu/bench.json [--plot docs/figures/bench.svg]
"""
import argparse
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


def groups_of(report):
    """Runs that measured by name, and what failed."""
    groups, failed = {}, []
    for run in report["benchmarks"]:
        if run.get("run_type") != "iteration":
            continue
        if run.get("error_occurred"):
            failed.append(f"{run['name']}: {run['error_message']}")
            continue
        groups.setdefault(run["run_name"].split("/iterations:")[0], []).append(run)
    return groups, failed


def ops_of(groups, threads):
    """Rounds by op on so many threads."""
    ops = {}
    for name, rounds in groups.items():
        kind, _, rest = name.partition("/")
        op, _, of_threads = rest.partition("/threads:")
        if kind == "op" and of_threads.split("/")[0] == threads:
            ops[op] = rounds
    return ops


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


def print_ops(groups, threads):
    ops = ops_of(groups, threads)
    if not ops:
        return
    reads = [one["read_gbps"] for rounds in ops.values() for one in rounds]
    low, middle, high = np.percentile(reads, [10, 50, 90])
    table(f"{threads} thread(s); stream read {middle:.1f} GB/s [{low:.1f}–{high:.1f}]",
          ["work", "ms", "floor MiB", "GB/s", "x read", "x read, CPU time", "of floor",
           "of floor, CPU time", "M tokens/s", "allocations"],
          [work_row(name, rounds) for name, rounds in ops.items()])


def print_calls(groups):
    calls = [[name.partition("/")[2], str(runs[0]["iterations"])] +
             [f"{runs[0][key]:.0f}" for key in ("min_us", "p50_us", "p99_us")] +
             [f"{runs[0]['gb_per_s']:.2f}" if "gb_per_s" in runs[0] else "–"]
             for name, runs in groups.items() if name.startswith("rpc/")]
    if calls:
        table("Calls", ["call", "calls", "least, us", "p50, us", "p99, us", "GB/s at p50"], calls)
    counted = [[name.partition("/")[2], f"{runs[0]['allocations']:.0f}"]
               for name, runs in groups.items() if name.startswith("allocations/")]
    if counted:
        table("Allocations of client and server", ["call", "per call"], counted)


def plot(groups, context, path):
    """What each op costs on one thread by CPU time, in stream reads, beside what it must move."""
    try:
        import matplotlib  # here: the tables need none
    except ImportError:
        print(f"no plot: {sys.executable} has no matplotlib", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "kvern"  # the same figures give the same file
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    ops = ops_of(groups, "1")
    names = list(ops)[::-1]
    cost = np.array([quantiles(ops[name], "x_read_cpu") for name in names])
    floor = np.array([ops[name][0]["floor_x"] for name in names])
    rows = np.arange(len(names))
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(names) + 1.6), layout="constrained")
    axes.barh(rows, cost[:, 1], color="#4878a8", label="cost, median",
              xerr=[cost[:, 1] - cost[:, 0], cost[:, 2] - cost[:, 1]],
              error_kw={"ecolor": "#26405c", "capsize": 2})
    axes.plot(floor, rows, "|", color="#c03a2b", markersize=11, markeredgewidth=2,
              label="floor: bytes that must move")
    for row in rows:
        axes.annotate(f"{cost[row, 1]:.1f} ({100 * floor[row] / cost[row, 1]:.0f} %)",
                      (cost[row, 2], row), xytext=(5, 0), textcoords="offset points", va="center",
                      fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(left=min(floor.min(), cost[:, 0].min()) / 1.5, right=cost[:, 2].max() * 3)
    axes.set_yticks(rows, names, fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlabel("stream reads of K (CPU time; p10 to p90), and the floor's share of the cost")
    axes.set_title(f"One thread, {context['instruction_set']}: 8 KV heads x 32768 x 128, bf16",
                   fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncol=2, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    print(f"\nwrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path, metavar="SVG")
    flags = parser.parse_args()
    report = json.loads(flags.report.read_text())
    groups, failed = groups_of(report)
    print(machine(report["context"]))
    for threads in ("1", "2"):
        print_ops(groups, threads)
    print_calls(groups)
    if flags.plot and ops_of(groups, "1"):
        plot(groups, report["context"], flags.plot)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
