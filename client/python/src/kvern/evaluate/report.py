"""Rows as a table with intervals, a figure of quality against bytes, and a verdict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from kvern.evaluate.bootstrap import Interval, mean_interval
from kvern.evaluate.measure import FULL, Row

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "kvern"  # the same bytes each time

Key = tuple[str, float]
_SAME_BYTES = 0.01  # arms that differ by more are not compared


@dataclass(frozen=True)
class Summary:
    """One arm at one share over all windows. against: paired difference of kl to the first arm at
    the same share, None for itself and for other bytes than it took."""

    arm: str
    share: float
    bytes_share: float
    kl: Interval
    nll: Interval
    top1: float
    needle_logp: float
    needle_exact: float
    against: Interval | None


def summarize(rows: Sequence[Row], seed: int) -> list[Summary]:
    """In the order of rows; nll is the paired difference to the full cache."""
    cells: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.arm, row.share].append(row)
    full = cells[FULL, 1.0]
    first = next((arm for arm, _ in cells if arm != FULL), FULL)
    found = []
    for (arm, share), own in cells.items():
        against = None
        base = cells.get((first, share))
        if base is not None and arm != first and _same_bytes(own, base):
            against = mean_interval([a.kl - b.kl for a, b in zip(own, base, strict=True)], seed)
        found.append(
            Summary(
                arm=arm,
                share=share,
                bytes_share=_mean([row.bytes_share for row in own]),
                kl=mean_interval([row.kl for row in own], seed),
                nll=mean_interval([a.nll - b.nll for a, b in zip(own, full, strict=True)], seed),
                top1=_mean([row.top1 for row in own]),
                needle_logp=_mean([row.needle_logp for row in own]),
                needle_exact=_mean([float(row.needle_exact) for row in own]),
                against=against,
            )
        )
    return found


def _same_bytes(own: Sequence[Row], other: Sequence[Row]) -> bool:
    bytes_shares = [_mean([row.bytes_share for row in rows]) for rows in (own, other)]
    return max(bytes_shares) <= (1 + _SAME_BYTES) * min(bytes_shares)


def table(summaries: Sequence[Summary]) -> str:
    """Markdown."""
    lines = [
        "| arm | bytes | KL, nat per token | KL less the first arm's | delta NLL | top-1 | "
        "needle, nat | exact |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for of in summaries:
        against = "" if of.against is None else _text(of.against, "+")
        lines.append(
            f"| {of.arm} | {of.bytes_share:.2%} | {_text(of.kl)} | {against} | "
            f"{_text(of.nll, '+')} | {of.top1:.1%} | {of.needle_logp:.1f} | "
            f"{of.needle_exact:.0%} |"
        )
    return "\n".join(lines) + "\n"


def verdict(summaries: Sequence[Summary]) -> str:
    """Whether the first arm is significantly worse, in KL, than itself with a single scorer."""
    first = next((of.arm for of in summaries if of.arm != FULL), FULL)
    single = [of for of in summaries if of.arm.startswith(f"{first}/") and of.against]
    if not single:
        return f"No arm replaces the scorers of `{first}`.\n"
    better = [of for of in single if of.against is not None and of.against.high < 0]
    if not better:
        return f"`{first}` is nowhere significantly worse in KL than with one of its scorers.\n"
    cells = ", ".join(f"`{of.arm}` at {of.share:.1%}" for of in better)
    return f"`{first}` is significantly worse in KL than {cells}.\n"


def draw(summaries: Sequence[Summary], path: Path) -> None:
    """KL and needle against measured bytes, an SVG."""
    from matplotlib import pyplot

    arms: dict[str, list[Summary]] = defaultdict(list)
    for of in summaries:
        if of.arm != FULL:
            arms[of.arm].append(of)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for arm, points in arms.items():
        points = sorted(points, key=lambda of: of.bytes_share)
        x = [100 * of.bytes_share for of in points]
        style = {"marker": "o", "label": arm, "linestyle": "--" if " " in arm else "-"}
        spread = [
            [max(0.0, of.kl.mean - of.kl.low) for of in points],
            [max(0.0, of.kl.high - of.kl.mean) for of in points],
        ]
        axes[0].errorbar(x, [of.kl.mean for of in points], yerr=spread, capsize=2, **style)
        axes[1].plot(x, [of.needle_logp for of in points], **style)
    axes[0].set(xscale="log", yscale="log", xlabel="% of bytes", ylabel="KL, nat per token")
    axes[1].set(xscale="log", xlabel="% of bytes", ylabel="log-probability of the needle, nat")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _text(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
