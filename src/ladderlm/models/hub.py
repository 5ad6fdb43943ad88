"""Models of the Hugging Face hub, through huggingface_hub (extra: hub). Only data files; code is never fetched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ladderlm import events, store
from ladderlm.errors import AuthError, LadderError, MissingExtra, NetworkError, NotFound, UsageError

_FILES = ["*.safetensors", "*.json", "*.jinja", "README.md", "LICENSE*"]


def download(name: str) -> Path:
    """The folder (or single .gguf) of `org/name[@revision][:file.gguf]`, its revision pinned to a commit."""
    try:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None
    name, _, file = name.partition(":")
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1:
        raise UsageError(f"{repo!r} is no hub name", cure="hub:org/name or hub:org/name@revision")
    cache = store.cache_dir() / "hub"
    try:
        info = HfApi().model_info(repo, revision=revision or None)
        licence = (info.card_data or {}).get("license", "unknown") if info.card_data else "unknown"
        events.emit("fetch", f"{repo}@{info.sha[:12]}; licence {licence}")
        if file:
            return Path(hf_hub_download(repo, file, revision=info.sha, cache_dir=cache))
        return Path(snapshot_download(repo, revision=info.sha, allow_patterns=_FILES, cache_dir=cache))
    except GatedRepoError:
        raise AuthError(f"{repo} asks you to accept its terms", cure="accept them there, set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise NotFound(f"no model {repo!r} on the hub", cure="check the name; if private set HF_TOKEN") from None
    except LadderError:
        raise
    except Exception as error:  # the client library raises its HTTP library's errors, another one in each version
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise NetworkError(f"the hub cannot be reached: {first}", where=repo, cure="check the network") from None


def push(
    repo: str, files: Mapping[str, Path | bytes], *, private: bool = False, message: str = "Upload with LadderLM"
) -> str:
    """Uploads files by name to the repository `org/name`, made if it is not there, as one commit; its address.

    The token comes from HF_TOKEN alone and is never shown. Raises AuthError without one or where it does not allow
    this, NetworkError where the hub cannot be reached or refuses, MissingExtra without huggingface_hub.
    """
    if repo.count("/") != 1 or "@" in repo or ":" in repo:
        raise UsageError(f"{repo!r} is no hub name", cure="hub:org/name")
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise AuthError("pushing needs a token", cure="set HF_TOKEN to one that may write")
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    events.emit("push", f"{repo}: {len(files)} files")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        added = [CommitOperationAdd(n, str(c) if isinstance(c, Path) else c) for n, c in sorted(files.items())]
        done = api.create_commit(repo, added, commit_message=message)
    except Exception as error:  # see download
        said = str(error).replace(token, "***").strip().splitlines() or [type(error).__name__]
        status = getattr(error.response, "status_code", 0) if isinstance(error, HfHubHTTPError) else 0
        if status in (401, 403):
            raise AuthError(f"the hub refuses: {said[0][:160]}", where=repo, cure="may this token write?") from None
        raise NetworkError(f"the push failed: {said[0][:160]}", where=repo, cure="check the network") from None
    return str(done.commit_url)
