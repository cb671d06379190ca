"""`kvern eval`: what policies cost in quality, at bytes that were measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kvern import Client, __version__
from kvern.calibrate.model import load
from kvern.calibrate.text import Encode, Text, read
from kvern.errors import KvernError
from kvern.evaluate import report, smoke
from kvern.evaluate.arms import Compressor, parse_policies
from kvern.evaluate.items import Shape, make_items
from kvern.evaluate.measure import Plan, Row, measure
from kvern.transformers.model_spec import model_spec

POLICIES = (
    "balanced,balanced/expected_attention:rank=8,log=true,balanced/keydiff:unrotate=true,small,tiny"
)
_UNCALIBRATED = "balanced,balanced/value_norm,evict/keydiff:unrotate=true,evict/snapkv:window=32"
_START_SECONDS = 30.0


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        prog="kvern eval",
        description="A full cache against policies and against presses of kvpress, on real text.",
    )
    words.add_argument("--model", metavar="DIR", help="a causal language model of transformers")
    words.add_argument("--text", metavar="FILE", nargs="+", default=[], help="plain text, UTF-8")
    words.add_argument("--out", metavar="DIR", required=True, help="for rows, table and figure")
    words.add_argument("--server", metavar="ADDRESS", help="a server that runs")
    words.add_argument("--kvernd", metavar="PROGRAM", default="kvernd", help="else start this one")
    words.add_argument("--policies", help=f"PRESET, PRESET/SCORER, evict/SCORER ({POLICIES})")
    words.add_argument("--peers", default="", help="presses of kvpress: knorm,snapkv,...")
    words.add_argument("--bytes", default="0.5,0.25,0.125", help="shares of the cache's bytes")
    words.add_argument("--calibration", metavar="FILE", nargs="+", default=[])
    words.add_argument("--windows", type=int, default=4, help="of each text (4)")
    words.add_argument(
        "--context", type=int, default=1024, help="tokens that are compressed (1024)"
    )
    words.add_argument("--after", type=int, default=33, help="tokens that are judged (33)")
    words.add_argument("--seed", type=int, default=0, help="of needles and intervals")
    words.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    words.add_argument("--smoke", action="store_true", help="a tiny random model, in seconds")
    return words


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 0. Errors: KvernError, OSError."""
    options = parser().parse_args(words)
    model, encode, texts, shape = _subject(options)
    shares = _shares(options.bytes)
    items = make_items(texts, encode, shape)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in options.peers.split(",") if name]
    rows: list[Row] = []
    began = time.monotonic()
    with _server(options) as address, Client(address) as client:
        uploaded = [client.import_calibration(path).name for path in options.calibration]
        default = _UNCALIBRATED if options.smoke else POLICIES
        arms = parse_policies(options.policies or default, uploaded)
        compressor = Compressor(client, model_spec(model), torch.bfloat16)
        found = measure(model, compressor, Plan(arms, names, shares), items, torch.bfloat16)
        for judged in tqdm(found, desc="windows", total=len(items)):
            rows += judged
            _write(out, rows, options, texts)  # so that an interrupted run has what it measured
    print((out / "quality.md").read_text())
    print(f"{len(items)} windows in {time.monotonic() - began:.0f} s: {out}")
    return 0


def _subject(options: argparse.Namespace) -> tuple[Any, Encode, list[Text], Shape]:
    """Model, tokenizer, texts and windows. Errors: INVALID_ARGUMENT."""
    if options.smoke:
        shape = Shape(context=320, after=17, windows=2, seed=options.seed)
        return smoke.tiny_model(), smoke.encode, smoke.texts(), shape
    if not options.model or not options.text:
        raise KvernError("INVALID_ARGUMENT", "want --model and --text, or --smoke")
    if options.windows < 1 or options.after < 1:
        raise KvernError("INVALID_ARGUMENT", "windows, after: want 1 or more")
    model, encode = load(options.model, "float32", options.threads)
    texts = [read(path, encode, 1) for path in options.text]
    shape = Shape(options.context, options.after, options.windows, options.seed)
    return model, encode, texts, shape


def _shares(words: str) -> list[float]:
    try:
        shares = [float(word) for word in words.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise KvernError("INVALID_ARGUMENT", f"bytes: got '{words}', want shares such as 0.5,0.25")
    return shares


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[str]:
    """The given one, or one of our own. Errors: UNAVAILABLE."""
    if options.server:
        yield options.server
        return
    with tempfile.TemporaryDirectory(prefix="kvern-eval-") as directory:
        address = f"unix:{directory}/kvern.sock"
        log = Path(directory, "log")
        with log.open("wb") as said:
            command = [options.kvernd, "--listen", address, "--metrics-listen="]
            process = subprocess.Popen(command, stderr=said)
        try:
            waited = time.monotonic() + _START_SECONDS
            while " serves on " not in log.read_text():
                if process.poll() is not None or time.monotonic() > waited:
                    raise KvernError("UNAVAILABLE", f"{options.kvernd}: {log.read_text()}")
                time.sleep(0.05)
            yield address
        finally:
            process.terminate()
            process.wait()


def _write(
    out: Path, rows: Sequence[Row], options: argparse.Namespace, texts: Sequence[Text]
) -> None:
    summaries = report.summarize(rows, options.seed)
    about = {
        "options": vars(options),
        "kvern": __version__,
        "torch": torch.__version__,
        "texts": {text.name: text.sha256 for text in texts},
        "chains": {f"{row.arm} at {row.share:g}": row.chain for row in rows if row.chain},
    }
    whole = {"about": about, "rows": [asdict(row) for row in rows]}
    (out / "quality.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "quality.md").write_text(report.table(summaries) + "\n" + report.verdict(summaries))
    report.draw(summaries, out / "quality.svg")
