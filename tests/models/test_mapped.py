"""Opening a large model and reading its tensors takes no memory of its own: files are mapped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from ladderlm.models import families
from ladderlm.models.arch import Architecture
from ladderlm.models.families import ggufs
from ladderlm.models.gguf_write import Entry, write_gguf
from ladderlm.models.quants import row_bytes

ARCH = Architecture(
    vocab_size=4096, dim=1024, layers=6, heads=16, kv_heads=16, head_dim=64, hidden=4096, context_length=128
)
# A whole model in a child process; what it prints is by how much memory that no file backs grew, at its highest, in MB.
CHILD = """
import sys
from pathlib import Path
from ladderlm.models import open_model
import ladderlm.models.folder, ladderlm.models.adapter

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

start = highest = anonymous()
files = open_model(sys.argv[1])
for name in files.weights.names():
    value = files.weights.blocks(name) if sys.argv[2] == "blocks" else files.weights.float32(name)
    total = (value.data if sys.argv[2] == "blocks" and value is not None else value)
    if total is not None:
        total[..., ::1024].sum()
    highest = max(highest, anonymous())
    del value, total
print(highest - start)
"""


def folder(path: Path) -> Path:
    """A folder of zeros, written as holes."""
    path.mkdir()
    header, at = {}, 0
    for name, shape in ARCH.tensor_shapes().items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (path / "config.json").write_text(json.dumps(families.to_hf(ARCH)))
    from ladderlm.text.tokenizer import Tokenizer

    (path / "tokenizer.json").write_text(Tokenizer.from_gguf(tiny.vocabulary()).to_json())
    return path


def gguf_file(path: Path) -> Path:
    shapes = ARCH.tensor_shapes()

    def entry(name: str, shape: tuple[int, ...]) -> Entry:
        kind = "Q8_0" if len(shape) == 2 else "F32"
        rows = np.zeros((shape[0] if len(shape) == 2 else 1, row_bytes(kind, shape[-1])), np.uint8)
        return Entry(name, kind, shape, lambda: [rows])

    tensors = [entry(stored.name, stored.shape(shapes)) for stored in ggufs.stored(ARCH)]
    write_gguf(path, {**tiny.vocabulary(), **ggufs.to_gguf(ARCH)[0]}, tensors)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("what", "bound"), [("blocks", 64), ("float32", 64 + 16)])  # the largest tensor: 16 MB
def test_reading_takes_no_memory(tmp_path: Path, what: str, bound: int) -> None:
    for path in (folder(tmp_path / "folder"), gguf_file(tmp_path / "x.gguf")):
        done = subprocess.run([sys.executable, "-c", CHILD, str(path), what], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) < bound, path.name
