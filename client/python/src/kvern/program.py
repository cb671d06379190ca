"""The console script of the wheel: the verbs that need a model in this process.

The native program of the same name has the others (compress, plan, stages, ...).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from kvern.errors import KvernError

_VERBS = {"calibrate": "kvern.calibrate.program", "eval": "kvern.evaluate.program"}
_USAGE = """usage: kvern calibrate ... | kvern eval ...

calibrate   statistics of a model's queries, for the scorers that need them
eval        a full cache against policies and against presses of kvpress, on real text

`kvern VERB --help` says more. Other verbs belong to the native program `kvern`, which is built
from the repository (`make build`: build/cpu/kvern)."""


def main(words: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 for what a verb refused; 2 for words that no verb has."""
    given = list(sys.argv[1:] if words is None else words)
    verb = given[0] if given else "--help"
    if verb in ("-h", "--help"):
        print(_USAGE)
        return 0 if given else 2
    if verb not in _VERBS:
        print(
            f"kvern: got '{verb}', want calibrate or eval: other verbs belong to the native "
            "program `kvern` (build/cpu/kvern of the repository)",
            file=sys.stderr,
        )
        return 2
    try:
        program = importlib.import_module(_VERBS[verb])
    except ModuleNotFoundError as error:
        print(
            f"kvern {verb}: needs {error.name}: pip install './client/python[{verb}]'",
            file=sys.stderr,
        )
        return 1
    try:
        answer: int = program.main(given[1:])
    except (KvernError, OSError) as error:
        print(f"kvern {verb}: {error}", file=sys.stderr)
        return 1
    return answer


if __name__ == "__main__":
    sys.exit(main())
