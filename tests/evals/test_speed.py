"""bench: what is measured, what a figure is made of, other programs' output."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from engine_models import KindWeights, byte_tokenizer, tiny

from ladderlm.cli import main as cli
from ladderlm.engine import measure, on_cpu, simd
from ladderlm.engine.ceiling import Meter
from ladderlm.errors import NotFound, UsageError
from ladderlm.evals import fresh, peers, speed, work
from ladderlm.models import open_model, save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arch = tiny(context_length=1536, tied=True)
    weights = KindWeights(arch)
    tensors = {name: weights.float32(name) for name in weights.names()}
    save_model(tmp_path / "model", arch, tensors, byte_tokenizer(), None, generation={}, lineage={})
    return tmp_path / "model"


def test_run_measures_both_doors_and_the_machine(folder: Path) -> None:
    config = speed.BenchConfig(str(folder), threads=2, rounds=2, tokens=4)
    result = speed.run(config)
    (mine,) = result.systems
    assert set(mine.figures) == {w.name for w in work.works(4)}
    assert not result.left_out
    for figure in mine.figures.values():
        assert 0 < figure.low <= figure.median <= figure.high
    assert set(mine.shares) == {"decode_128", "decode_1024", "prefill_512"}
    assert not mine.ratios
    assert result.ceiling["read_bytes_per_second"] > 1e8
    assert result.ceiling["operations_per_second"] > 1e8
    assert result.fresh.wall_seconds > result.fresh.load_seconds > 0
    if sys.platform == "linux":
        assert result.fresh.peak_bytes
        assert result.fresh.imported_bytes
        assert result.fresh.anonymous_bytes
        assert result.fresh.peak_bytes > result.fresh.imported_bytes
    assert result.instructions in simd.ISAS
    assert len(speed.rows(result)) == len(mine.figures)
    assert speed.BenchResult.from_dict(json.loads(json.dumps(result.to_dict()))).systems[0].name == "ladderlm"


def test_work_that_the_context_does_not_hold_is_left_out(folder: Path, tmp_path: Path) -> None:
    files = open_model(str(folder))
    short = dataclasses.replace(files, arch=dataclasses.replace(files.arch, context_length=160))
    chosen, left_out = speed._chosen(speed.BenchConfig(tokens=16), short)
    assert {"decode_1024", "prefill_512", "first_token_512"} == set(left_out)
    assert "decode_128" in {w.name for w in chosen}


def test_a_peer_on_the_same_work_gets_ratios(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second engine of ours under another name: about as fast, and asked in turn."""
    asked: list[str] = []

    class Again(speed.LadderLM):
        name = "again"

        def measure(self, work: work.Work) -> float | None:
            asked.append(work.name)
            return None if work.kind == "first" else super().measure(work)

    monkeypatch.setattr(speed, "open_peer", lambda name, files, threads: Again(files, threads))
    config = speed.BenchConfig(
        str(folder), against=("again",), threads=1, rounds=1, tokens=4, only=("prefill", "first")
    )
    result = speed.run(config)
    assert asked == ["prefill_512", "first_token_512"] * 2
    assert set(result.systems[1].figures) == set(result.systems[1].ratios) == {"prefill_512"}
    found = result.systems[0].figures["prefill_512"].median / result.systems[1].figures["prefill_512"].median
    assert result.systems[1].ratios["prefill_512"].median == pytest.approx(found)


def test_time_ends_the_rounds_and_who_warms_up_has_one_less(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Warm(speed.LadderLM):
        name, warms_up = "warm", True

        def measure(self, work: work.Work) -> float | None:
            asked.append(work.name)
            time.sleep(1.1)
            return super().measure(work)

    monkeypatch.setattr(speed, "open_peer", lambda name, files, threads: Warm(files, threads))
    config = speed.BenchConfig(
        str(folder), against=("warm",), threads=1, rounds=9, seconds=1, tokens=1, only=("prefill_512",)
    )
    assert speed.run(config).rounds == 1
    assert asked == ["prefill_512"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"against": ("llama.cp",)}, "unknown peer"), ({"against": ("llama.cpp",)}, "reads GGUF"),
     ({"rounds": 0}, "at least 1"), ({"only": ("decod3",)}, "no such work")],
)  # fmt: skip
def test_errors_name_the_cure(folder: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        speed.run(speed.BenchConfig(**{"model": str(folder), "threads": 1, **changes}))  # type: ignore[arg-type]


def test_llama_cpp_that_is_not_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path))
    files = dataclasses.replace(open_model(str(folder)), path=tmp_path / "m.gguf")
    with pytest.raises(NotFound, match=r"llama-bench is not there.*LLAMA_CPP_BIN"):
        peers.open_peer("llama.cpp", files, 1)


def test_a_library_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDERLM_BENCH_OPENVINO", sys.executable)
    try:
        import openvino_genai  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(NotFound, match=r"openvino.*pip install openvino-genai"):
            peers.open_peer("openvino", open_model(str(folder)), 1)
    else:
        pytest.skip("OpenVINO is installed")


@pytest.mark.slow
def test_transformers_measures_a_folder(folder: Path) -> None:
    pytest.importorskip("transformers")
    peer = peers.open_peer("transformers", open_model(str(folder)), 1)
    try:
        for each in work.works(2):
            found = peer.measure(each)
            assert (found or 0) > 0 or each.kind == "answers", each.name
    finally:
        peer.close()


def test_prefill_reads_the_prompt_and_decode_all_sequences() -> None:
    arch = tiny()
    backend = on_cpu(arch, KindWeights(arch), threads=1)
    try:
        ran: list[tuple[int, int]] = []
        run = backend.run

        def watched(pieces):  # type: ignore[no-untyped-def]
            ran.append((len(pieces), sum(len(p.ids) for p in pieces)))
            return run(pieces)

        backend.run = watched  # type: ignore[method-assign]
        assert measure.prefill(backend, [1] * 150) > 0
        assert sum(tokens for _, tokens in ran) == 150
        ran.clear()
        random = np.random.default_rng(0)
        prompts, answers = ([measure.draw(random, arch, n) for _ in range(3)] for n in (5, 4))
        assert measure.decode(backend, prompts, answers) > 0
        assert ran == [(1, 5)] * 3 + [(3, 3)] * 4
    finally:
        backend.close()


def test_what_a_step_must_read_and_compute() -> None:
    arch = tiny(tied=True)
    matrices = 257 * 64 + 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64)
    assert measure.weight_bytes(arch, KindWeights(arch, "Q8_0")) == matrices * 34 // 32
    layers = matrices - 257 * 64
    assert measure.prefill_operations(arch, 1) == 2 * layers + 2 * 257 * 64 + 4 * 2 * 64
    untied = tiny(tied=False)
    assert measure.weight_bytes(untied, KindWeights(untied, "F32")) == 4 * matrices


def test_the_ceilings_are_those_of_this_machine() -> None:
    meter = Meter(1)
    try:
        found = meter.measure(0.05)
    finally:
        meter.close()
    assert 1e8 < found.read_bytes < 1e13
    assert 1e8 < found.operations < 1e13
    values = np.ones(2**24, np.float32)
    assert found.read_bytes > 0.2 * values.nbytes / _seconds(lambda: values.sum())


def _seconds(call) -> float:  # type: ignore[no-untyped-def]
    import time

    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_answers_are_counted_and_errors_passed_on() -> None:
    asked = work.Work("answers_3", "", "answers", 3, 2, 5)
    assert work.through_the_door(lambda ids, n: iter([1] * n), [[1, 2]] * 3, asked) > 0

    def broken(ids, n):  # type: ignore[no-untyped-def]
        yield 1
        raise UsageError("no")

    with pytest.raises(UsageError):
        work.through_the_door(broken, [[1, 2]] * 3, asked)
    first = work.Work("first_token_512", "", "first", 1, 2, 1)
    assert 0 < work.through_the_door(lambda ids, n: iter([0, 1]), [[1, 2]], first) < 1


def test_a_new_process_that_fails_says_why() -> None:
    with pytest.raises(Exception, match="no such model"):
        fresh.start("nothing-of-that-name", 1)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLAMA_CPP_BIN"), reason="LLAMA_CPP_BIN names no folder of llama.cpp's tools")
def test_llama_cpp_measures_the_default_model(default_model: str) -> None:
    peer = peers.open_peer("llama.cpp", open_model(default_model), 2)
    for each in (work.works(2)[0], *work.works(2)[2:4]):
        found = peer.measure(each)
        assert (found or 0) > 0
    assert peer.measure(work.works(2)[5]) is None
    assert peer.about["peak_bytes"] > 10**7
    assert "built_for" in peer.about


def test_torch_is_measured_through_the_same_doors(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        only = ("decode_128", "decode_8", "prefill_512", "first_token")
        result = speed.run(speed.BenchConfig(str(folder), threads=1, rounds=1, tokens=2, device="torch", only=only))
    finally:
        torch.set_num_threads(before)
    (mine,) = result.systems
    assert set(mine.figures) == {"decode_128", "decode_8_together", "prefill_512", "first_token_512"}
    assert all(figure.low > 0 for figure in mine.figures.values())
    assert set(mine.shares) == {"decode_128", "prefill_512"}
    assert result.instructions == f"torch {torch.__version__} on cpu, float32"
    assert result.ceiling["read_bytes_per_second"] > 1e8
    assert result.ceiling["operations_per_second"] > 1e8
    assert result.ceiling["integer_operations_per_second"] == 0
    assert result.fresh.wall_seconds > result.fresh.load_seconds > 0


@pytest.mark.parametrize(("device", "said"), [("tpu", "unknown device"), ("cuda:97", "no such device")])
def test_a_device_that_is_not_there(folder: Path, device: str, said: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match=said):
        speed.run(speed.BenchConfig(str(folder), threads=1, device=device))


def test_the_command_prints_a_table_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", str(folder), "--threads", "1", "--rounds", "1", "--tokens", "2", "--only", "decode_128"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("decode at 128", "tok/s", "GB/s"))
    assert cli.main([*argv, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["systems"][0]["figures"]["decode_128"]["unit"] == "tok/s"
