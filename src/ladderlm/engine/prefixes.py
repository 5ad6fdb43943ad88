"""Keys and values of recent sequences, for those that begin alike: a tree of blocks.

Each node holds one block of 32 tokens (a last one may be shorter) and hangs under the block before it, so sequences
that begin alike share nodes, and looking one up costs a dictionary access per 32 tokens however many are kept.
(Hash-linked blocks as in Kwon et al. 2023, a tree of prefixes as in Zheng et al. 2024.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import islice

from ladderlm.engine.cache import BLOCK, Block, KVCache

Ids = tuple[int, ...]
STARTS = (24, 16, 8, 1)  # lengths of the beginnings that blocks are found by
SOME = 8  # blocks that are compared where many begin alike: looking must cost the same however many are kept


class _Node:
    """A block of a sequence. `starts` finds its children by their beginnings, for blocks that are alike in part."""

    __slots__ = ("block", "children", "ids", "parent", "starts")

    def __init__(self, ids: Ids, block: Block | None, parent: _Node | None) -> None:
        self.ids, self.block, self.parent = ids, block, parent
        self.children: dict[Ids, _Node] = {}
        self.starts: dict[Ids, dict[_Node, None]] = {}

    def add(self, node: _Node) -> None:
        self.children[node.ids] = node
        for length in STARTS:
            if length <= len(node.ids):
                self.starts.setdefault(node.ids[:length], {})[node] = None

    def remove(self, node: _Node) -> None:
        del self.children[node.ids]
        for length in STARTS:
            if length <= len(node.ids):
                same = self.starts[node.ids[:length]]
                del same[node]
                if not same:
                    del self.starts[node.ids[:length]]

    def like(self, ids: Ids) -> list[_Node]:
        """Up to SOME children that begin as `ids` does, for as long as `starts` tells; the latest first."""
        for length in STARTS:
            if length <= len(ids) and ids[:length] in self.starts:
                return list(islice(reversed(self.starts[ids[:length]]), SOME))
        return []


class Prefixes:
    """Recent sequences within `budget` bytes, the least recently used blocks dropped first.

    Each `version` of a cache has its own tree.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._roots: dict[Hashable, _Node] = {}
        # The least recently used first. A node is always touched before its parent: the first is always a leaf.
        self._nodes: OrderedDict[_Node, None] = OrderedDict()
        self.bytes = 0  # memory of the kept blocks

    def __len__(self) -> int:
        return len(self._nodes)

    def take(self, ids: Sequence[int], most: int, fresh: KVCache) -> KVCache:
        """`fresh`, filled with the longest kept common prefix of `ids`, at most `most` long."""
        node: _Node | None = self._roots.get(fresh.version)
        found: list[Block] = []
        length = 0
        while node is not None and length < most:
            wanted = tuple(ids[length : min(length + BLOCK, most)])
            child = node.children.get(wanted)
            same = len(wanted)
            if child is None:
                child, same = _alike(node, wanted)
            if child is None:
                break
            assert child.block is not None
            node, length = child, length + same
            found.append(child.block)
            if same < BLOCK:
                break
        if length:
            self._touch(node)
            fresh.extend(list(ids[:length]), found)
        return fresh

    def keep(self, cache: KVCache) -> None:
        """Remembers what `cache` holds now; its owner may go on writing after its end."""
        if self._budget <= 0:
            return
        node = self._roots.setdefault(cache.version, _Node((), None, None))
        for i in range(0, len(cache), BLOCK):
            ids = tuple(cache.ids[i : i + BLOCK])
            node = node.children.get(ids) or self._add(node, ids, cache.blocks[i // BLOCK])
        self._touch(node)
        while self.bytes > self._budget and self.evict():
            pass

    def evict(self) -> bool:
        """Drops the block that was used least recently; False when there is none."""
        if not self._nodes:
            return False
        self._remove(next(iter(self._nodes)))
        return True

    def forget(self, version: Hashable) -> None:
        """Drops everything of `version`."""
        root = self._roots.pop(version, None)
        below = list(root.children.values()) if root is not None else []
        while below:
            node = below.pop()
            below += node.children.values()
            self._remove(node)

    def clear(self) -> None:
        while self.evict():  # one by one: a tree is full of cycles, which only the collector would free
            pass
        self._roots.clear()

    def _add(self, parent: _Node, ids: Ids, block: Block) -> _Node:
        """A new child of `parent`, in the place of shorter ones that it holds whole; or a longer one that holds it."""
        for other in parent.like(ids):
            if len(ids) < len(other.ids) and other.ids[: len(ids)] == ids:
                return other
        for length in range(1, len(ids)):
            if shorter := parent.children.get(ids[:length]):
                self._remove(shorter)
        node = _Node(ids, block, parent)
        parent.add(node)
        self._nodes[node] = None
        self.bytes += block.nbytes
        return node

    def _remove(self, node: _Node) -> None:
        assert node.parent is not None
        assert node.block is not None
        node.parent.remove(node)
        del self._nodes[node]
        self.bytes -= node.block.nbytes

    def _touch(self, node: _Node | None) -> None:
        while node is not None and node.parent is not None:
            self._nodes.move_to_end(node)
            node = node.parent


def _alike(parent: _Node, wanted: Ids) -> tuple[_Node | None, int]:
    """The child that begins most like `wanted`, and for how many tokens."""
    best, length = None, 0
    for node in parent.like(wanted):
        same = common(node.ids, wanted)
        if same > length:
            best, length = node, same
    return best, length


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices runs in C: halve the range instead of walking it
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
