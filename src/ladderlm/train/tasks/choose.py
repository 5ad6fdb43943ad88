"""Which task the records and the model make together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ladderlm.errors import UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.tasks.classify import Classify
from ladderlm.train.tasks.embed import Embed
from ladderlm.train.tasks.qa import FindAnswer
from ladderlm.train.tasks.tag import Tag
from ladderlm.train.tasks.task import TuningTask
from ladderlm.train.tasks.translate import Translate
from ladderlm.train.tasks.write import Write
from ladderlm.types import Record

Make = Callable[[FinetuneConfig, ModelFiles, Sequence[Record]], TuningTask]

_ON_ENCODERS: Mapping[str, Make] = {"class": Classify, "spans": Tag, "qa": FindAnswer, "triple": Embed}
_WRITTEN = ("messages", "completion", "kto", "preference", "class", "spans", "qa", "translation")


def choose(config: FinetuneConfig, files: ModelFiles, records: Sequence[Record]) -> TuningTask:
    """The task for most of the records: those that do not belong to it are then bad rows.

    UsageError where no record is of a kind that the model can learn from.
    """
    kind = files.arch.kind
    if kind == "encoder":
        known = _ON_ENCODERS
    elif kind == "encoder-decoder":
        known = dict.fromkeys(_WRITTEN, Translate)
    else:
        known = {**dict.fromkeys((*_WRITTEN, "text"), Write), "triple": Embed}
    counts = Counter(r.kind for r in records)
    for found, _ in counts.most_common():
        if found in known:
            return known[found](config, files, records)
    what = f"{' and '.join(sorted(counts))} records are nothing for a {files.arch.family} {kind}"
    raise UsageError(what, where=config.data, cure="it learns from " + ", ".join(known))
