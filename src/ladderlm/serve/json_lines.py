"""Logs as one JSON object a line, for those who collect them."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

from ladderlm import events
from ladderlm.serve import trail

_log = logging.getLogger("ladderlm.serve")


class JsonLines(logging.Formatter):
    """time, level, logger, message, the request's id where there is one, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := trail.current()) is not None:
            line["request_id"] = request.id
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        line |= getattr(record, "fields", {})
        return json.dumps(line, ensure_ascii=False, default=str)


def start(stream: TextIO | None = None) -> events.Listener:
    """Sends every log of this process to `stream` (stderr) as JSON lines; a listener that logs events there too."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _log.setLevel(logging.INFO)

    def tell(event: events.Event) -> None:
        if event.message:
            fields = {name: value for name, value in event.data.items() if isinstance(value, str | int | float | list)}
            _log.info(event.message, extra={"fields": {"stage": event.stage, **fields}})

    return tell
