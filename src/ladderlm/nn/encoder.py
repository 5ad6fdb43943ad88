"""The encoder in torch: BERT and its kin, with heads that fill in, classify, tag and find answers.

Padding-free like the decoder: documents end to end and their lengths. A pair of texts is one document, its tokens'
types telling them apart. Parameter names are the canonical ones of a model folder (models/arch.py).

Letters: T tokens of all documents, B documents, D model, N wanted positions, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ladderlm.errors import UsageError
from ladderlm.models.families import bert
from ladderlm.nn.heads import Pooler, Transform, Vocabulary, first, mean
from ladderlm.nn.linear import Linear
from ladderlm.nn.stack import Body
from ladderlm.nn.weights import fill, initialise, state
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture
    from ladderlm.models.folder import ModelFiles

_TOKENS = 8192  # how many `vectors` reads at a time


class Encoder(nn.Module):
    """`forward` gives hidden states; `logits` scores tokens, `text_logits` whole documents, as the head can."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        if arch.kind != "encoder":
            raise UsageError(f"a {arch.family} {arch.kind} is no encoder", cure=f"it {arch.purpose}")
        self.arch = arch
        self.model = Body(arch, causal=False)
        self.pooler = Pooler(arch) if arch.pooler else None
        self.transform = Transform(arch) if arch.transform else None
        self.lm_head = Vocabulary(arch) if arch.head in ("mlm", "pretraining") else None
        self.classifier = Linear(arch.dim, arch.classes, True) if arch.classes else None

    def forward(self, ids_T: Tensor, lengths: Sequence[int], types_T: Tensor | None = None) -> Tensor:
        """hidden_TD. `lengths` of the documents in `ids_T` sum to T; without `types_T` all tokens are of type 0.

        Raises ContextOverflow for a document longer than the model's context.
        """
        return self.model(ids_T, lengths, types_T)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Scores of tokens: over the vocabulary (N, V), over labels (N, C), or as start and end of an answer (N, 2)."""
        if self.lm_head is not None and self.transform is not None:
            return self.lm_head(self.transform(hidden_ND), self.model.embed_tokens.weight)
        if self.classifier is None or self.arch.head == "classify":
            raise self._cannot("score tokens")
        return self.classifier(hidden_ND if self.transform is None else self.transform(hidden_ND))

    def text_logits(self, hidden_TD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Scores of documents (B, C): over labels, or whether the second text follows the first (class 0) or not."""
        if self.classifier is None or self.arch.head in ("tag", "qa"):
            raise self._cannot("score whole texts")
        x_BD = self.pool(hidden_TD, lengths)
        if self.transform is not None and self.arch.head == "classify":
            x_BD = self.transform(x_BD)
        return self.classifier(x_BD)

    def pool(self, hidden_TD: Tensor, lengths: Sequence[int]) -> Tensor:
        """One vector for each document, x_BD, as the head takes it."""
        x_BD = (mean if self.arch.pooling == "mean" else first)(hidden_TD, lengths)
        return x_BD if self.pooler is None else self.pooler(x_BD)

    def initialise(self, seed: int) -> Encoder:
        """Random weights, the same for the same seed."""
        return initialise(self, self.arch, seed)

    def state(self) -> dict[str, FloatArray]:
        """The weights under their canonical names; a copy."""
        return state(self)

    def _cannot(self, what: str) -> UsageError:
        return UsageError(f"a {self.arch.family} with the head {self.arch.head!r} does not {what}",
                          cure=f"it {self.arch.purpose}; load_encoder gives it another head")  # fmt: skip


def load_encoder(files: ModelFiles, *, head: str = "", labels: Sequence[str] = (), seed: int = 0) -> Encoder:
    """An Encoder with the weights of a model folder; with `head`, on its body another head, to be trained.

    What the files hold of that head is taken, the rest drawn at random. UsageError for another kind of model or a head
    that its family has not; FormatError where a tensor is missing or has the wrong shape.
    """
    arch = bert.with_head(files.arch, head, labels) if head else files.arch
    with torch.device("meta"):
        encoder = Encoder(arch)
    held = files.arch.tensor_shapes()
    fresh = frozenset(name for name, shape in arch.tensor_shapes().items() if head and held.get(name) != shape)
    return initialise(fill(encoder, files, fresh=fresh), arch, seed, only=fresh)


@torch.no_grad()
def vectors(encoder: Encoder, documents: Sequence[Sequence[int]]) -> FloatArray:
    """A vector of length 1 for each document (B, D): the mean of its tokens' hidden states."""
    out, batch = [], []
    for i, document in enumerate(documents):
        batch.append(document)
        if i + 1 == len(documents) or sum(map(len, batch)) + len(documents[i + 1]) > _TOKENS:
            lengths = [len(d) for d in batch]
            out.append(mean(encoder(torch.tensor([id for d in batch for id in d]), lengths), lengths))
            batch = []
    found_BD = torch.cat(out) if out else torch.zeros(0, encoder.arch.dim)
    return torch.nn.functional.normalize(found_BD).numpy().astype(np.float32)
