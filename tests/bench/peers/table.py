"""The report as the tables of docs/performance.md: table.py REPORT.json."""
import json
import sys


def clock_of(row):
    """One thread: CPU time. More: what the wall clock says."""
    return row["cpu"] if row["threads"] == 1 else row["wall"]


def number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def spread(measured):
    return f"**{number(measured['median'])}** [{number(measured['low'])}–{number(measured['high'])}]"


def verdict(row):
    """What was wanted of the row and whether it was reached: surely, surely not, or within noise."""
    clock = clock_of(row)
    if row["wanted"] is not None:
        margin = [clock["ratio"][end] / row["wanted"] for end in ("low", "high")]
        wanted = f"≥ {row['wanted']:g}" if row["wanted"] != 1 else "faster"
    elif row["wanted_reads"] is not None:
        margin = [row["wanted_reads"] / clock["ours"][end] for end in ("high", "low")]
        wanted = f"≤ {row['wanted_reads']:g} reads"
    else:
        return "", ""
    return wanted, "yes" if margin[0] >= 1 else "no" if margin[1] < 1 else "within noise"


def progress(row):
    if "excluded" in row:
        return f"{row['threads']} thread(s)  {row['title']}: excluded, {row['excluded']}"
    clock = clock_of(row)
    return (f"{row['threads']} thread(s)  {row['title']}: {number(clock['ours']['median'])} reads, peer "
            f"{number(clock['theirs']['median'])}, ratio {number(clock['ratio']['median'])} "
            f"({row['pairs']} pairs; {row['check']})")


def lines(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "--|" * len(head)] + ["| " + " | ".join(r) + " |" for r in rows]


def markdown(report):
    text = []
    measured = [row for row in report["rows"] if "excluded" not in row]
    for threads in sorted({row["threads"] for row in measured}):
        rows = [row for row in measured if row["threads"] == threads]
        speeds = sorted(row["read_gbps"] for row in rows)
        clock = "CPU time" if threads == 1 else "wall time"
        text += ["", f"**{threads} thread(s), {clock}; stream read {speeds[len(speeds) // 2]:.1f} GB/s**", ""]
        text += lines(["work; beside", "Kvern, reads", "peer, reads", "peer / Kvern", "wanted", "reached"],
                      [[row["title"], spread(clock_of(row)["ours"]), spread(clock_of(row)["theirs"]),
                        spread(clock_of(row)["ratio"]), *verdict(row)] for row in rows])
    codecs = [row for row in measured if row["bits"] and row["threads"] == measured[0]["threads"]]
    if codecs:
        text += ["", "What the codecs make of the same rows: bits per value, and the error (Kvern's and the peer's).", ""]
        text += lines(["work; beside", "bits, Kvern", "bits, peer", "error"],
                      [[row["title"], *(f"{bits:.3f}" for bits in row["bits"]), row["check"]]
                       for row in codecs if row["op"].startswith("encode")])
    for row in report["rows"]:
        if "excluded" in row:
            text += ["", f"Excluded: {row['title']}, {row['threads']} thread(s): {row['excluded']}."]
    text += ["", "Peers: " + "; ".join(report["about"].values()) + "."]
    return "\n".join(text)


if __name__ == "__main__":
    print(markdown(json.load(open(sys.argv[1]))))
