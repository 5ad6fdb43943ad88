"""`ladderlm VERB ...`: one table of verbs; a verb's code is imported only when it is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from ladderlm.errors import LadderError, nearest, outcome

# In life-cycle order: verb -> (module:function, what it does).
VERBS: dict[str, tuple[str, str]] = {
    "quickstart": ("ladderlm.cli.quickstart:main", "climb the ladder: prompt, fine-tune, build; ends with a report"),
    "chat": ("ladderlm.cli.prompt:chat", "talk with a model"),
    "ask": ("ladderlm.cli.prompt:ask", "one question, one answer; stdin, files, choices, batches"),
    "next": ("ladderlm.cli.prompt:next_", "the next-token table of a prompt, or of two side by side"),
    "inspect": ("ladderlm.cli.inspect:main", "see inside a model: attention, logit lens, ablations, loss by position"),
    "prompts": ("ladderlm.cli.prompts:main", "saved prompt templates: list, show, save, rm"),
    "climb": ("ladderlm.cli.climb:main", "try the rungs on a labelled file: the lowest one that suffices"),
    "prompt": ("ladderlm.cli.optimise:main", "optimise: search instructions and examples by their score"),
    "models": ("ladderlm.cli.models:main", "list, pull, show, rm, recommend, diff, merge, slice, pack, unpack, push"),
    "data": ("ladderlm.cli.data:main", "collect, split, stats"),
    "tokenizer": ("ladderlm.cli.tokenizer:main", "train, encode, decode, stats, compare"),
    "pretrain": ("ladderlm.cli.train:pretrain", "train a model from random weights"),
    "plan": ("ladderlm.cli.train:plan", "what a pretraining will take: memory, time, tokens, cost"),
    "scaling": ("ladderlm.cli.train:scaling", "a sweep of small pretrainings, and the loss of a larger one"),
    "finetune": ("ladderlm.cli.train:finetune", "LoRA or full fine-tuning"),
    "preferences": ("ladderlm.cli.preferences:main", "make pairs for alignment, check what they are worth"),
    "align": ("ladderlm.cli.train:align", "preferences, rewards, reinforcement, distillation"),
    "eval": ("ladderlm.cli.eval:main", "perplexity, accuracy, F1, BLEU, ROUGE, with intervals"),
    "export": ("ladderlm.cli.export:export", "to a folder, GGUF, a bundle, or 8 or 4 bits; the result is verified"),
    "verify": ("ladderlm.cli.export:verify", "are two forms of a model the same model?"),
    "bench": ("ladderlm.cli.bench:main", "speed and memory here, against other programs and the machine's most"),
    "serve": ("ladderlm.cli.serve:main", "an OpenAI-compatible server and a chat page"),
    "keys": ("ladderlm.cli.keys:main", "keys of the server: create, list, revoke"),
    "users": ("ladderlm.cli.keys:users", "users of the server: create, list, export, erase"),
    "usage": ("ladderlm.cli.keys:usage", "what was asked of the server: sums, the request log, the audit log"),
    "runs": ("ladderlm.cli.runs:main", "list runs, show one, compare two"),
    "doctor": ("ladderlm.cli.doctor:main", "what this machine has, and what is missing"),
}


def usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in VERBS.items())
    return (
        "usage: ladderlm VERB [options]\n\n"
        "Prompt, fine-tune and build language models with one kind of model folder.\n\n"
        f"{verbs}\n\n"
        "ladderlm VERB --help tells a verb's options. --version, --debug (tracebacks)."
    )


@contextlib.contextmanager
def _terminated_cleanly() -> Iterator[None]:
    """SIGTERM ends the command as an exception does, so that what it started is stopped too."""

    def leave(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0 ok, 1 failure, 2 usage, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        from ladderlm import __version__

        print(f"ladderlm {__version__}")
        return 0
    if argv[0] not in VERBS:
        print(f"ladderlm: unknown verb {argv[0]!r}: {nearest(argv[0], VERBS)}", file=sys.stderr)
        return 2
    module, function = VERBS[argv[0]][0].split(":")
    try:
        command: Callable[[list[str]], int | None] = getattr(importlib.import_module(module), function)
        with _terminated_cleanly():
            code = command(argv[1:]) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`ladderlm ... | head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)
    except LadderError as error:
        if debug:
            raise
        print(f"ladderlm {argv[0]}: {error}", file=sys.stderr)
        return outcome(error).exit_code


if __name__ == "__main__":
    sys.exit(main())
