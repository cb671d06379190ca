"""A chat whose KV cache stays under a fixed budget, however long it gets.

python examples/chat_under_budget.py                              # an empty line ends it
python examples/chat_under_budget.py --script --figure chat.svg   # 2,048 tokens by itself

Prints the cache's bytes, the share of the text that it holds, and how far the model's next-token
distributions are from those with the full cache (KL, in nats). For that figure the full cache is
kept as well; --no-reference leaves both out.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

import chat_script
import kvern
import kvern.transformers as kt
import smollm2
from kvern.policy import size

_CHUNK = 32  # tokens that the model takes in at once


@dataclass
class Round:
    """What one round left behind."""

    text_tokens: int
    bytes_held: int
    bytes_full: int
    kept_share: float
    kl: float | None


@dataclass
class Chat:
    """A model with a cache under budget and, for the figures, one without."""

    model: Any
    tokenizer: Any
    cache: kt.KvernCache
    reference: DynamicCache | None
    rounds: list[Round] = field(default_factory=list)
    peak_bytes: int = 0
    _kl: list[float] = field(default_factory=list)
    _last: torch.Tensor | None = None

    def read(self, text: str, *, judged: bool = False) -> None:
        """The model takes a text in. judged: its tokens count for the round's KL."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        for start in range(0, ids.shape[1], _CHUNK):
            self._step(ids[:, start : start + _CHUNK], judged)

    def reply(self, max_tokens: int) -> str:
        """The model's likeliest words, which count for the round's KL."""
        said: list[int] = []
        while self._last is not None and len(said) < max_tokens:
            token = int(self._last.argmax())
            if token == self.tokenizer.eos_token_id:
                break
            said.append(token)
            self._step(torch.tensor([[token]]), judged=True)
        return str(self.tokenizer.decode(said)).strip()

    def end_round(self) -> Round:
        """Notes the round's figures."""
        tokens = self.cache.get_seq_length()
        made = Round(
            text_tokens=tokens,
            bytes_held=self.cache.nbytes,
            bytes_full=kt.bytes_per_token(self.model) * tokens,
            kept_share=self.cache.physical_tokens / tokens,
            kl=sum(self._kl) / len(self._kl) if self._kl else None,
        )
        self._kl.clear()
        self.rounds.append(made)
        return made

    def _step(self, ids: torch.Tensor, judged: bool) -> None:
        logits = self._forward(ids, self.cache)
        self.peak_bytes = max(self.peak_bytes, self.cache.nbytes)
        self._last = logits[-1]
        if self.reference is None:
            return
        want = self._forward(ids, self.reference).log_softmax(-1)
        if judged:
            kl = (want.exp() * (want - logits.log_softmax(-1))).sum(-1)
            self._kl.extend(kl.tolist())

    def _forward(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.model(ids, past_key_values=cache, use_cache=True).logits
        return logits[0].float()


def show(number: int, made: Round) -> None:
    kl = "" if made.kl is None else f"   KL {made.kl:.3f}"
    print(
        f"{number:3d}   {made.text_tokens:5d} tokens   {made.bytes_held / 2**20:5.1f} MiB of "
        f"{made.bytes_full / 2**20:5.1f}   {made.kept_share:4.0%} kept{kl}",
        flush=True,
    )


def talk(chat: Chat) -> None:
    """With whoever sits there."""
    chat.read(chat_script.SYSTEM)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        chat.read(chat_script.user(line))
        print(chat.reply(max_tokens=120))
        chat.read(chat_script.END)
        show(len(chat.rounds) + 1, chat.end_round())


def play(chat: Chat, tokens: int) -> str:
    """The scripted chat up to that many tokens; the model's answer to its last question."""
    chat.read(chat_script.SYSTEM + chat_script.user(chat_script.FACT))
    chat.read(chat_script.FACT_REPLY, judged=True)
    chat.read(chat_script.END)
    show(1, chat.end_round())
    longest = 0
    while chat.cache.get_seq_length() + longest + 60 < tokens:
        before = chat.cache.get_seq_length()
        said, answer = chat_script.turn(len(chat.rounds) - 1)
        chat.read(chat_script.user(said))
        chat.read(answer, judged=True)
        chat.read(chat_script.END)
        longest = max(longest, chat.cache.get_seq_length() - before)
        show(len(chat.rounds) + 1, chat.end_round())
    chat.read(chat_script.user(chat_script.QUESTION))
    answer = chat.reply(max_tokens=32)
    show(len(chat.rounds) + 1, chat.end_round())
    return answer


def draw(rounds: list[Round], budget_bytes: int, path: Path) -> None:
    """Bytes and quality by round, as an SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kvern"
    from matplotlib import pyplot

    tokens = [made.text_tokens for made in rounds]
    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5))
    top.plot(tokens, [made.bytes_full / 2**20 for made in rounds], "--", label="full cache")
    top.plot(tokens, [made.bytes_held / 2**20 for made in rounds], label="with Kvern")
    top.axhline(budget_bytes / 2**20, color="grey", linewidth=0.8, label="budget")
    top.set_ylabel("cache, MiB")
    top.legend()
    bottom.plot(tokens, [made.kl or 0 for made in rounds], "o-", markersize=3)
    bottom.set_ylabel("KL to the full cache, nats")
    bottom.set_xlabel("tokens of the chat")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def parse(words: list[str]) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    flags.add_argument("--server", default="unix:/run/kvern/kvern.sock")
    flags.add_argument("--tokens", type=int, default=2048, help="length of the scripted chat")
    flags.add_argument("--budget", default="25%", help="of a full cache of --tokens, or 8MiB")
    flags.add_argument("--profile", default="retrieval", help="of the policy: retrieval or text")
    flags.add_argument("--calibration", help="query moments, for the profile text")
    flags.add_argument("--scorer", default="", help="instead of a profile, such as keydiff")
    flags.add_argument("--selector", default="topk")
    flags.add_argument("--sink", type=int, default=4, help="first tokens, which always stay")
    flags.add_argument("--recent-share", type=float, default=0.2)
    flags.add_argument("--positions", default="keep_logical", help="or renumber")
    flags.add_argument("--script", action="store_true", help="the chat plays by itself")
    flags.add_argument("--no-reference", action="store_true", help="no full cache, no KL")
    flags.add_argument("--figure", type=Path, help="SVG to write")
    flags.add_argument("--model-dir", type=Path, help="where the unpacked model stays")
    return flags.parse_args(words)


def policy_of(options: argparse.Namespace, client: kvern.Client) -> kvern.Policy:
    calibrations: tuple[str, ...] = ()
    if options.calibration:
        calibrations = (client.import_calibration(Path(options.calibration)).name,)
    return kvern.Policy(
        "evict50",
        profile="" if options.scorer else options.profile,
        scorer=options.scorer,
        selector=options.selector,
        sink=options.sink,
        recent_share=options.recent_share,
        calibrations=calibrations,
    )


def main(words: list[str]) -> int:
    options = parse(words)
    started = time.monotonic()
    model, tokenizer = smollm2.load(options.model_dir)
    with kvern.Client(options.server, engine="transformers") as client:
        full_bytes = options.tokens * kt.bytes_per_token(model)
        budget_bytes = size(options.budget, full_bytes)
        # Room for what comes in at once, so that no pass goes beyond.
        memory = budget_bytes - _CHUNK * kt.bytes_per_token(model)
        cache = kt.KvernCache(
            model,
            client,
            kt.Budget(memory=memory, every=_CHUNK),
            policy=policy_of(options, client),
            positions=options.positions,
        )
        reference = None if options.no_reference else DynamicCache(config=model.config)
        chat = Chat(model, tokenizer, cache, reference)
        print(f"budget {budget_bytes / 2**20:.1f} MiB, {cache.budget_tokens} tokens")
        if options.script:
            answer = play(chat, options.tokens)
            found = chat_script.ANSWER in answer
            print(f"{chat_script.QUESTION}\n{answer}\n{'found' if found else 'NOT FOUND'}")
        else:
            talk(chat)
        if options.figure:
            draw(chat.rounds, budget_bytes, options.figure)
    print(
        f"peak {chat.peak_bytes / 2**20:.1f} MiB, {len(cache.steps)} compactions, "
        f"{time.monotonic() - started:.0f} s",
        file=sys.stderr,
    )
    return 0 if not options.script or found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
