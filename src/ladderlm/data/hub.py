"""Data sets of the Hugging Face hub, through huggingface_hub (extra: hub). Only data files; no code is ever fetched."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

from ladderlm import events, store
from ladderlm.errors import AuthError, LadderError, MissingExtra, NetworkError, NotFound, UsageError

PREFIX = "hub:datasets/"
_FIRST = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".csv", ".tsv", ".txt", ".json")


def dataset_files(name: str) -> Iterator[tuple[Path, str, str]]:
    """(file, its name for `source`, licence) of `org/name[@revision][:GLOB]`, each fetched when it is asked for.

    The revision is pinned to a commit. Without a GLOB all files of the first type there: Parquet, JSON lines, CSV,
    text. Raises NotFound, AuthError, NetworkError, MissingExtra.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None
    name, _, pattern = name.removeprefix(PREFIX).partition(":")
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UsageError(
            f"{repo!r} is no data set of the hub", cure="hub:datasets/org/name, perhaps @revision, :*.parquet"
        )
    cache = store.cache_dir() / "hub"
    try:
        info = HfApi().dataset_info(repo, revision=revision or None)
        licence = (info.card_data or {}).get("license") or "unknown"
        licence = licence if isinstance(licence, str) else " AND ".join(map(str, licence))
        files = _chosen(sorted(f.rfilename for f in info.siblings or ()), pattern)
        if not files:
            raise NotFound(
                f"no file to read in the data set {repo}", cure="name one: hub:datasets/org/name:path/*.parquet"
            )
        events.emit("fetch", f"{repo}@{(info.sha or '')[:12]}: {len(files)} files; licence {licence}")
        for file in files:
            found = hf_hub_download(repo, file, repo_type="dataset", revision=info.sha, cache_dir=cache)
            yield Path(found), f"{repo}/{file}", licence
    except GatedRepoError:
        raise AuthError(f"{repo} asks you to accept its terms", cure="accept them there, set HF_TOKEN") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise NotFound(f"no data set {name!r} on the hub", cure="check the name; if private set HF_TOKEN") from None
    except LadderError:
        raise
    except Exception as error:  # the client library raises its HTTP library's errors, another one in each version
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise NetworkError(f"the hub cannot be reached: {first}", where=repo, cure="check the network") from None


def _chosen(names: list[str], pattern: str) -> list[str]:
    if pattern:
        return [n for n in names if fnmatch.fnmatch(n, pattern)]
    names = [n for n in names if not n.rpartition("/")[2].startswith(".") and not n.endswith("README.md")]
    for suffix in _FIRST:
        if found := [n for n in names if n.endswith(suffix)]:
            return found
    return []
