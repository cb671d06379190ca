"""The report as the tables of docs/performance.md: table.py REPORT.json."""
import json
import sys


def clock_of(row):
    """One thread: CPU time. More: what the wall clock says."""
    return row["cpu"] if row["threads"] == 1 else row["wall"]


def number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def spread(measured):
    median, low, high = (number(measured[key]) for key in ("median", "low", "high"))
    return f"**{median}** [{low}–{high}]"


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
        return f"{row['threads']} thread(s)  {row['title']}: {row['excluded']}"
    clock = clock_of(row)
    ours, theirs, ratio = (number(clock[key]["median"]) for key in ("ours", "theirs", "ratio"))
    return (f"{row['threads']} thread(s)  {row['title']}: {ours} reads, peer {theirs}, ratio {ratio} "
            f"({row['pairs']} pairs; {row['check']})")


def lines(head, rows):
    text = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return [text[0], "|" + "--|" * len(head), *text[1:]]


def markdown(report):
    text = []
    measured = [row for row in report["rows"] if "excluded" not in row]
    for threads in sorted({row["threads"] for row in measured}):
        rows = [row for row in measured if row["threads"] == threads]
        speeds = sorted(row["read_gbps"] for row in rows)
        clock = "CPU time" if threads == 1 else "wall time"
        speed = speeds[len(speeds) // 2]
        text += ["", f"**{threads} thread(s), {clock}; stream read {speed:.1f} GB/s**", ""]
        text += lines(["work; beside", "Kvern, reads", "peer, reads", "peer / Kvern", "wanted",
                       "reached"],
                      [[row["title"], *(spread(clock_of(row)[key])
                                        for key in ("ours", "theirs", "ratio")), *verdict(row)]
                       for row in rows])
    codecs = [row for row in measured if row["bits"] and row["threads"] == measured[0]["threads"]]
    if codecs:
        text += ["", "What the codecs make of the same rows: bits per value, error of Kvern's and "
                 "of the peer's.", ""]
        text += lines(["work; beside", "bits, Kvern", "bits, peer", "error"],
                      [[row["title"], *(f"{bits:.3f}" for bits in row["bits"]), row["check"]]
                       for row in codecs if row["op"].startswith("encode")])
    for row in report["rows"]:
        if "excluded" in row:
            text += ["", f"Excluded: {progress(row)}."]
    for name, why in report["absent"].items():
        text += ["", f"Absent: {name}: {why}."]
    text += ["", "Load of the machine, before and after: {:.1f}, {:.1f}.".format(*report["load"])]
    text += ["", "Peers: " + "; ".join(report["about"].values()) + "."]
    return "\n".join(text)


if __name__ == "__main__":
    print(markdown(json.load(open(sys.argv[1]))))
