"""python -m kvern.llamacpp compact: one slot of a running server made smaller."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from kvern.client import Client
from kvern.errors import KvernError
from kvern.llamacpp.compaction import SlotCompaction, compact_slot
from kvern.llamacpp.llama_server import LlamaServer
from kvern.policy import Policy


def main(words: Sequence[str] | None = None) -> int:
    """0, or 1 after a KvernError, which is printed; argparse exits with 2."""
    given = _parser().parse_args(words)
    policy = Policy(
        given.policy or ("evict50" if not given.scorer else ""),
        keep_ratio=given.keep_ratio,
        budget_tokens=given.budget_tokens,
        scorer=given.scorer,
        sink=given.sink,
        recent=given.recent,
    )
    try:
        server = LlamaServer(
            given.server, given.slots, model=given.model or None, api_key=given.api_key
        )
        with Client(given.kvern, engine="llamacpp") as client:
            made = compact_slot(server, given.slot, client, policy, tokens=given.tokens)
    except KvernError as error:
        print(error, file=sys.stderr)
        return 1
    print(_json(made) if given.json else _text(made))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kvern.llamacpp", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    compact = verbs.add_parser(
        "compact",
        help="replace what a slot holds by what a policy keeps of it",
        description="Saves a slot, lets Kvern choose what stays, and restores the smaller slot. "
        "Send the slot no request meanwhile. After an error the slot holds what it held.",
    )
    add = compact.add_argument
    add("--server", required=True, metavar="URL", help="of llama.cpp's server")
    add("--slots", required=True, metavar="DIR", help="the server's --slot-save-path")
    add("--slot", required=True, type=int, metavar="N", help="which slot")
    add("--kvern", default="unix:/run/kvern/kvern.sock", metavar="ADDRESS", help="of kvernd")
    add("--model", default="", metavar="GGUF", help="by default the file that the server names")
    add("--api-key", default="", metavar="KEY", help="of llama.cpp's server")
    add("--policy", default="", metavar="PRESET", help="evict50 when no scorer is given either")
    add("--scorer", action="append", default=[], metavar="NAME", help="may be given again")
    add("--keep-ratio", type=float, metavar="R", help="share of the tokens that stay")
    add("--budget-tokens", type=int, metavar="N", help="tokens that stay in each head")
    add("--sink", type=int, metavar="N", help="first tokens that always stay")
    add("--recent", type=int, metavar="N", help="last tokens that stay")
    add("--tokens", type=int, metavar="N", help="of the text that count; by default all")
    add("--json", action="store_true", help="print JSON: the label too, which prompts begin with")
    return parser


def _text(made: SlotCompaction) -> str:
    return (
        f"slot {made.slot}: {made.tokens} -> {made.kept} tokens, {made.bytes_before} -> "
        f"{made.bytes_after} bytes ({made.result.chain.scorer or 'all kept'})\n"
        f"prompts for it begin with these {made.kept} ids: {' '.join(map(str, made.label))}"
    )


def _json(made: SlotCompaction) -> str:
    return json.dumps(
        {
            "slot": made.slot,
            "tokens": made.tokens,
            "kept": made.kept,
            "bytes_before": made.bytes_before,
            "bytes_after": made.bytes_after,
            "outcome": made.result.outcome,
            "scorer": made.result.chain.scorer,
            "label": list(made.label),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
