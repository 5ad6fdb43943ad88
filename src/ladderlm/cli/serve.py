"""`ladderlm serve [MODEL ...]`: an OpenAI-compatible server and a chat page."""

from __future__ import annotations

import contextlib

from ladderlm import events
from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.serve.run import ServeConfig, run


def main(argv: list[str]) -> int:
    config = parse("serve", ServeConfig, argv, description="Serve models on this machine, with a chat page.")

    def tell(event: events.Event) -> None:
        if config.json and "url" in event.data:
            show.emit_json(event.data)

    with _log(config), events.listening(tell):
        run(config)
    return 0


def _log(config: ServeConfig) -> contextlib.AbstractContextManager[None]:
    """What happens, for people or for programs."""
    if not config.log_json:
        return show.progress()
    from ladderlm.serve import json_lines

    return events.listening(json_lines.start())
