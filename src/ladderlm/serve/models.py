"""The models on offer: named ones and what this machine holds; opened on demand, the latest few kept."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ladderlm import events, store
from ladderlm.engine import check, load_embedder
from ladderlm.errors import LadderError, NotFound, Overloaded, StorageError, Unavailable, UsageError, nearest
from ladderlm.models import open_model
from ladderlm.models.fetch import CATALOGUE, fetched
from ladderlm.models.reference import locate, split_adapter, split_apart
from ladderlm.serve import trail
from ladderlm.serve.memory import needed, words
from ladderlm.serve.upstream import Upstream
from ladderlm.talk import sees
from ladderlm.types import Cancel, Chat, Conversation, Delta, KVType, Sampling

if TYPE_CHECKING:
    from ladderlm.engine.scheduler import State
    from ladderlm.models.folder import ModelFiles

Opener = Callable[[str], Chat]
Stamp = tuple[int, ...] | None


@dataclass(slots=True, eq=False)
class _Slot:
    """One opened (or opening) model. `stamp` tells the folder it was read from, `users` the streams that hold it, and
    the adapters on it; `base` is that of an adapter, `bytes` the memory set aside for it."""

    ref: str
    stamp: Stamp
    lock: threading.Lock = field(default_factory=threading.Lock)
    chat: Chat | None = None
    users: int = 0
    used: float = 0.0
    base: _Slot | None = None
    bytes: int = 0


class Models:
    """Several models by name.

    `refs` are served under their short names. What else this machine holds joins as it appears, and a folder that was
    replaced is opened anew. Beyond `keep` opened models the longest unused are closed. Adapters of one base share it.
    `memory`: bytes for the weights, keys and values of all; who does not fit beside those in use must wait, and who
    does not fit at all is refused. `upstreams` are other servers whose models are offered too.
    """

    def __init__(
        self,
        refs: Sequence[str] = (),
        *,
        default: str | None = None,
        keep: int = 3,
        memory: int | None = None,
        upstreams: Sequence[Upstream] = (),
        device: str = "auto",
        kv_bytes: int | None = None,
        kv_dtype: KVType = "auto",
        draft: str | None = None,
        opener: Opener | None = None,
        sizer: Callable[[str], int] | None = None,
    ) -> None:
        every = (*refs, default) if default else refs
        self._refs = {short_name(ref): ref for ref in every}
        self._default = short_name(default) if default else next(iter(self._refs), None)
        self._keep, self._budget, self._upstreams = keep, memory, upstreams
        if memory is not None:
            kv_bytes = memory // 4 if kv_bytes is None else kv_bytes
        self._sizer = sizer or partial(needed, kv_bytes=kv_bytes or 0, device=device, draft=draft)
        self._stopped = False
        self._opener = opener or partial(_open_chat, device=device, kv_bytes=kv_bytes, kv_dtype=kv_dtype, draft=draft)
        self._local = opener is None  # so that adapters can be told
        self._guard = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        self._retired: list[_Slot] = []
        self._errors: dict[str, str] = {}

    @property
    def named(self) -> list[str]:
        """The models that were asked for by name."""
        return list(self._refs)

    def names(self) -> list[str]:
        """The default first, then the other named models, those of other servers, then what else is here."""
        first = [self._default] if self._default else []
        elsewhere: list[str] = []
        for upstream in self._upstreams:
            upstream.refresh()
            elsewhere += upstream.names or ()
        return list(dict.fromkeys([*first, *self._refs, *elsewhere, *_scan()]))

    def resolve(self, name: str | None) -> str:
        """The model that a request means: the one it names, or the default."""
        names = self.names()
        chosen = name or next(iter(names), None)
        if (chosen is None or chosen not in names) and (why := self._unknown()):
            raise why
        if chosen is None:
            raise NotFound("no model is served", where="model", cure="name one: ladderlm serve MODEL")
        if chosen not in names:
            raise NotFound(f"no model {chosen!r}", where="model", cure=nearest(chosen, names))
        if (request := trail.current()) is not None:
            request.model = chosen
        return chosen

    def reference(self, name: str) -> str:
        """What a model that is served as `name` is called everywhere else."""
        return self._refs.get(name, name)

    def sees(self, name: str) -> bool:
        """Whether images may be shown to it: to another server's models, which refuse them themselves if need be."""
        return self._upstream(name) is not None or sees(self.reference(name))

    def _unknown(self) -> LadderError | None:
        """Why a model that is not there may be there all the same."""
        for upstream in self._upstreams:
            if upstream.names is None:
                cure = upstream.error or "try again"
                return Unavailable("an upstream has not told its models yet", where=upstream.url, cure=cure)
        return None

    def _upstream(self, name: str) -> Upstream | None:
        """Where a model is served that is not one of ours."""
        return None if name in self._refs else next((u for u in self._upstreams if u.holds(name)), None)

    @property
    def upstreams(self) -> Sequence[Upstream]:
        return self._upstreams

    def state(self, name: str) -> str:
        """ "ready", "loading", "failed" or "idle" (not opened yet)."""
        if (upstream := self._upstream(name)) is not None:
            return upstream.state
        slot = self._slots.get(name)
        if slot is not None and slot.chat is not None:
            return "ready"
        if slot is not None and slot.users:
            return "loading"
        return "failed" if name in self._errors else "idle"

    def error(self, name: str) -> str:
        """Why the last attempt to open it failed; empty when it did not."""
        return self._errors.get(name, "")

    @contextlib.contextmanager
    def use(self, name: str | None = None) -> Iterator[Chat]:
        """The opened model, held open while the block runs."""
        name = self.resolve(name)
        if (upstream := self._upstream(name)) is not None:
            yield upstream.chat(name)
            return
        with self._opened(name) as slot:
            assert slot.chat is not None
            yield slot.chat

    @contextlib.contextmanager
    def _opened(self, name: str, *, asked: bool = True) -> Iterator[_Slot]:
        """`asked`: by a user, so that it counts as used now; not by an adapter on it."""
        slot = self._claim(name)
        try:
            with slot.lock:
                if slot.chat is None:
                    slot.chat = self._open(name, slot)
                    slot.stamp = slot.stamp or _stamp(slot.ref)  # opening may have fetched it
            yield slot
        finally:
            for old in self._release(slot, asked):
                getattr(old.chat, "close", lambda: None)()

    def preload(self, names: Sequence[str]) -> threading.Thread:
        """Opens the models in a background thread; a failure is told, not raised."""

        def work() -> None:
            for upstream in self._upstreams:
                upstream.refresh()
            for name in names:
                if self._stopped or not self._fits(name):
                    return
                # `_open` has told the failure to every listener and keeps it for /health.
                with contextlib.suppress(LadderError), self.use(name):
                    pass

        thread = threading.Thread(target=work, name="serve-preload", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Opens no further model in the background."""
        self._stopped = True

    # --- Memory ---------------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, int]:
        """Bytes set aside for each opened model, where a budget is kept."""
        return {name: slot.bytes for name, slot in tuple(self._slots.items()) if slot.bytes}

    def engines(self) -> dict[str, State]:
        """What the engine of each opened model is doing. An adapter's requests count with its base."""
        found: dict[str, State] = {}
        for name, slot in tuple(self._slots.items()):
            if (engine := getattr(slot.chat, "engine", None)) is not None:
                found[name] = engine.state if slot.base is None else engine.state._replace(running=0, waiting=0)
        return found

    def _fits(self, name: str) -> bool:
        """Whether there is room for it without closing another."""
        if self._budget is None:
            return True
        try:
            return self._held() + self._sizer(self._refs.get(name, name)) <= self._budget
        except Exception:
            return True  # opening it tells why

    def _held(self) -> int:
        return sum(slot.bytes for slot in (*tuple(self._slots.values()), *tuple(self._retired)))

    def _make_room(self, name: str, slot: _Slot) -> None:
        """Sets the memory for `slot` aside; closes idle models, the longest unused first, where it must."""
        if self._budget is None:
            return
        need, cure = self._sizer(slot.ref), "raise --memory, or lower --kv-cache-mb"
        if need > self._budget:
            where = f"{words(need)} of {words(self._budget)}"
            raise StorageError(f"{name} does not fit this server's memory", where=where, cure=cure)
        while True:
            with self._guard:
                held = self._held()
                if held + need <= self._budget:
                    slot.bytes = need
                    return
                idle = [s for s in self._slots.values() if s.chat is not None and not s.users]
                if not idle:
                    where = f"{words(held)} of {words(self._budget)} are in use, {name} needs {words(need)}"
                    raise Overloaded("no memory is free for this model now", where=where, cure="try again later")
                oldest = min(idle, key=lambda s: s.used)
                self._slots = {n: s for n, s in self._slots.items() if s is not oldest}
            getattr(oldest.chat, "close", lambda: None)()

    def _open(self, name: str, slot: _Slot) -> Chat:
        self._errors.pop(name, None)
        began = time.monotonic()
        try:
            self._make_room(name, slot)
            chat = self._adapted(slot) or self._opener(slot.ref)
        except Overloaded:
            raise  # another time it may do
        except Exception as error:
            self._errors[name] = _why(error)
            events.emit("serve", f"cannot open {name}: {self._errors[name]}")
            slot.bytes = 0
            if isinstance(error, OSError) and not isinstance(error, LadderError):
                raise StorageError(f"cannot read {name}", where=error.strerror) from error
            raise
        events.emit("serve", f"{name} is ready ({time.monotonic() - began:.1f} s)")
        return chat

    def _adapted(self, slot: _Slot) -> Chat | None:
        """An adapter on its base's engine; None for other models. The base stays open as long as it does."""
        split = split_apart(slot.ref) if self._local else None
        if split is None:
            return None
        from ladderlm.talk.local import LocalChat

        ref, path = split
        named = next((name for name, other in self._refs.items() if other == ref), ref)
        with contextlib.ExitStack() as stack:
            base = stack.enter_context(self._opened(named, asked=False))
            if not isinstance(base.chat, LocalChat):
                return None
            chat = base.chat.adapted(slot.ref, path, stack.pop_all().close)
            slot.base = base
            return chat

    def _claim(self, name: str) -> _Slot:
        ref = self._refs.get(name, name)
        stamp = _stamp(ref)
        with self._guard:
            slot = self._slots.get(name)
            if slot is None or slot.stamp != stamp:
                if slot is not None:
                    self._retired.append(slot)
                slot = self._slots[name] = _Slot(ref, stamp)
            slot.users += 1
        return slot

    def _release(self, slot: _Slot, asked: bool) -> list[_Slot]:
        """Gives a slot back; returns those to close now."""
        with self._guard:
            slot.users -= 1
            slot.used = time.monotonic() if asked else slot.used
            surplus = [s for s in self._surplus() if not s.users]
            self._slots = {n: s for n, s in self._slots.items() if s not in surplus}
            surplus += [s for s in self._retired if not s.users]
            self._retired = [s for s in self._retired if s.users]
        return surplus

    def _surplus(self) -> list[_Slot]:
        """What is opened beyond the `keep` models used last, each with its adapters."""
        opened = sorted((s for s in self._slots.values() if s.chat is not None), key=lambda s: -s.used)
        kept = list(dict.fromkeys(slot.base or slot for slot in opened))[: self._keep]
        return [slot for slot in opened if (slot.base or slot) not in kept]


def short_name(ref: str) -> str:
    """The name a reference is served under: the folder's, file's or remote model's own, else the reference."""
    if "#" in ref:
        return ref.rsplit("#", 1)[1]
    if "+" not in ref and Path(ref).exists():
        path = Path(ref)
        return path.stem if path.suffix == ".gguf" else path.resolve().name
    return ref


def _scan() -> list[str]:
    """What is on this machine: fetched catalogue models, then the workspace's folders, adapters and GGUF files."""
    found = [name for name in CATALOGUE if fetched(name) is not None]
    with contextlib.suppress(OSError):
        for path in sorted(store.models_dir().iterdir()):
            if path.name.startswith("."):
                continue
            if path.suffix == ".gguf" and path.is_file():
                found.append(path.stem)
            elif (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
                found.append(path.name)
    return found


def _stamp(ref: str) -> Stamp:
    """Changes when the folder or file behind `ref` is replaced, or that of its base."""
    with contextlib.suppress(OSError, ValueError, LadderError):
        split = split_adapter(ref)
        path = split[1] if split else locate(ref)
        if path is not None:
            stat = path.stat()
            return stat.st_ino, stat.st_mtime_ns, *((_stamp(split[0]) if split else None) or ())
    return None


def _why(error: Exception) -> str:
    """For people who do not read tracebacks."""
    if isinstance(error, LadderError):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


class _Encoder:
    """An encoder in the place of a Chat: it gives vectors and says that it does not chat."""

    def __init__(self, files: ModelFiles) -> None:
        self.embedder, self._files = load_embedder(files), files

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        check(self._files)
        return iter(())


def _open_chat(ref: str, *, device: str, kv_bytes: int | None, kv_dtype: KVType, draft: str | None) -> Chat:
    from ladderlm.talk import open_chat

    try:
        return open_chat(ref, device=device, kv_bytes=kv_bytes, kv_dtype=kv_dtype, draft=draft)
    except UsageError:
        if "://" in ref or (files := open_model(ref)).arch.kind != "encoder":
            raise
        return _Encoder(files)
