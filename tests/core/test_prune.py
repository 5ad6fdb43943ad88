"""The cache of packed weights keeps to its limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ladderlm import store
from ladderlm.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files a.bin to d.bin of 100 bytes, a used longest ago."""
    for age, name in enumerate("dcba"):
        path = tmp_path / f"{name}.bin"
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    return tmp_path


def left(folder: Path) -> str:
    return "".join(sorted(p.stem for p in folder.glob("*.bin")))


def test_what_was_used_longest_ago_goes_first(folder: Path) -> None:
    store.prune(folder / "d.bin", 400)
    assert left(folder) == "abcd"
    store.prune(folder / "d.bin", 399)
    assert left(folder) == "bcd"
    store.prune(folder / "b.bin", 300)  # now the latest
    store.prune(folder / "d.bin", 200)
    assert left(folder) == "bd"


def test_what_is_in_use_stays_however_large(folder: Path) -> None:
    store.prune(folder / "a.bin", 0)
    assert left(folder) == "a"


def test_what_is_locked_stays(folder: Path) -> None:
    with store.lock(folder / "a.bin"), store.lock(folder / "d.bin"):
        store.prune(folder / "d.bin", 250)
        assert left(folder) == "ad"
    store.prune(folder / "d.bin", 150)
    assert left(folder) == "d"


def test_half_a_file_goes_once_its_writer_is_gone(folder: Path) -> None:
    with store.lock(folder / "x.bin"), store.atomic_file(folder / "x.bin", "wb") as file:
        file.write(bytes(1000))
        file.flush()
        store.prune(folder / "d.bin", 2000)
    assert (folder / "x.bin").stat().st_size == 1000, "nobody took it from its writer"
    killed = (
        "import os, sys\nfrom pathlib import Path\nfrom ladderlm import store\npath = Path(sys.argv[1])\n"
        "with store.lock(path), store.atomic_file(path, 'wb') as file:\n    os._exit(9)\n"
    )
    command = [sys.executable, "-c", killed, str(folder / "y.bin")]
    assert subprocess.run(command, check=False, env={**os.environ}).returncode == 9
    assert len(list(folder.glob(".y.bin.*.part"))) == 1
    store.prune(folder / "d.bin", 2000)
    assert not list(folder.glob(".*.part"))
    assert left(folder) == "abcdx"


def test_who_has_a_file_mapped_keeps_it(folder: Path) -> None:
    np = pytest.importorskip("numpy")
    if os.name != "posix":
        pytest.skip("elsewhere a mapped file cannot be removed")
    (folder / "a.bin").write_bytes(bytes([7]) * 100)
    os.utime(folder / "a.bin", (0, 0))
    mapped = np.memmap(folder / "a.bin", np.uint8, "c")
    store.prune(folder / "d.bin", 300)
    assert left(folder) == "bcd"
    assert (mapped == 7).all()


def test_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDERLM_HOME", str(tmp_path))
    monkeypatch.delenv("LADDERLM_CACHE_GB", raising=False)
    assert 0 < store.cache_limit() <= store.CACHE_BYTES
    monkeypatch.setenv("LADDERLM_CACHE_GB", "0.5")
    assert store.cache_limit() == 500_000_000
    for wrong in ("much", "nan", "inf"):
        monkeypatch.setenv("LADDERLM_CACHE_GB", wrong)
        with pytest.raises(UsageError, match="LADDERLM_CACHE_GB"):
            store.cache_limit()


def test_doctor_tells_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ladderlm.cli.doctor import main

    monkeypatch.setenv("LADDERLM_HOME", str(tmp_path))
    monkeypatch.setenv("LADDERLM_CACHE_GB", "2")
    (tmp_path / "cache" / "packed").mkdir(parents=True)
    (tmp_path / "cache" / "packed" / "a.bin").write_bytes(bytes(3000))
    (tmp_path / "cache" / "other").write_bytes(bytes(1000))
    main(["--json"])
    told = json.loads(capsys.readouterr().out)["cache"]
    assert told == "4.0 kB, of it packed weights 3.0 kB (at most 2.0 GB: LADDERLM_CACHE_GB)"
