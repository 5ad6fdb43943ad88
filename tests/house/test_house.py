"""The house itself: floors, cycles, sizes, words, the public door, start-up."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "ladderlm"
FLOORS = [
    "errors", "types", "config", "events", "store", "sandbox", "text", "data", "models", "engine", "nn", "talk",
    "evals", "convert", "train", "guard", "apps", "serve", "cli",
]  # fmt: skip
MODULES = {
    ".".join(p.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(SOURCE.rglob("*.py"))
    if p.name != "__main__.py" and p != SOURCE / "__init__.py"
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """The ladderlm modules that `path` imports, and whether inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            short = name.removeprefix("ladderlm.")
            if name.startswith("ladderlm.") and short in MODULES:
                found.append((short, id(node) in inside))
    return found


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def floor(module: str) -> int:
    return FLOORS.index(module.split(".")[0])


@pytest.mark.parametrize("module", MODULES)
def test_a_floor_imports_only_from_floors_above_it(module: str) -> None:
    for other, _ in GRAPH[module]:
        assert floor(other) <= floor(module), f"{module} imports {other}, a lower floor"


def test_no_import_cycles_even_inside_functions() -> None:
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == 2:
            return
        assert state.get(module) != 1, "cycle: " + " -> ".join((*path, module))
        state[module] = 1
        for other, _ in GRAPH[module]:
            if other != module and not module.startswith(other + "."):
                visit(other, (*path, module))
        state[module] = 2

    for module in MODULES:
        visit(module, ())


def test_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    """Files stay under 500 lines and functions under 60; the count per floor is printed."""
    lines: dict[str, list[int]] = defaultdict(list)
    long = []
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        count = text.count("\n")
        lines[name.split(".")[0]].append(count)
        if count > 500:
            long.append(f"{name}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > 75:  # the aim is 60; beyond 75 a reader loses the thread
                    long.append(f"{name}.{node.name}: {size} lines")
    with capsys.disabled():
        hidden = sum(inside for edges in GRAPH.values() for _, inside in edges)
        print(f"\n{'floor':<10} files  lines   ({hidden} imports inside functions)")
        for name in FLOORS:
            if name in lines:
                print(f"{name:<10} {len(lines[name]):>5}  {sum(lines[name]):>5}")
    assert not long, "\n".join(long)


PROGRAMS = {"convert.runtime.run"}  # a script of its own, copied into every bundle: it talks to people, so it prints


def test_the_library_does_not_print_pickle_or_eval() -> None:
    wrong = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                prints = node.func.id == "print" and not name.startswith("cli") and name not in PROGRAMS
                if node.func.id in ("eval", "exec") or prints:
                    wrong.append(f"{name}:{node.lineno} {node.func.id}()")
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                wrong += [f"{name}:{node.lineno} {m}" for m in modules if m in ("pickle", "shelve", "marshal", "dill")]
            if isinstance(node, ast.keyword) and node.arg == "shell":
                wrong.append(f"{name}:{node.value.lineno} shell=")
    assert not wrong, "\n".join(wrong)


def test_no_two_test_modules_have_one_name() -> None:
    """They would be one to pytest, and no whole run could begin."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_every_module_says_what_it_is() -> None:
    silent = [n for n, p in MODULES.items() if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert not silent, silent


def test_the_public_door_is_sorted_and_resolves() -> None:
    import ladderlm

    assert ladderlm.__all__ == sorted(ladderlm.__all__)
    for name in ladderlm.__all__:
        if ladderlm._HOME[name].startswith("train"):
            pytest.importorskip("torch")
        assert getattr(ladderlm, name) is not None


def test_the_core_starts_without_heavy_imports() -> None:
    code = (
        "import sys, ladderlm.cli.main as m; m.main(['--help']); m.main(['models', 'list']); "
        "heavy = {'torch', 'numba', 'fastapi', 'transformers', 'sklearn'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_repository_speaks_of_the_project_alone() -> None:
    """No machine's paths and no package index's address in a tracked file."""
    wrong = re.compile(r"(?<![\w.])/(work|farm|root)/\w|https?://[\w.-]*(pypi|npmjs|pythonhosted|debian)[\w.-]*/")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    found = []
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".js", ".html", ".css", ".txt", "") and path.is_file():
            if path == Path(__file__):
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if wrong.search(line):
                    found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_the_table_of_errors_in_the_docs_is_true() -> None:
    from ladderlm.errors import OUTCOMES, LadderError

    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for cls, made in OUTCOMES.items():
        if cls is not LadderError:
            assert f"| {cls.__name__} ({cls.__mro__[2].__name__}) | {made.exit_code} | {made.http_status} |" in page


def test_the_docs_name_every_verb() -> None:
    from ladderlm.cli.main import VERBS

    text = "".join(p.read_text(encoding="utf-8") for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert [v for v in VERBS if f"ladderlm {v}" not in text and f"./ladder {v}" not in text] == []


def test_the_docs_tell_of_every_family() -> None:
    from ladderlm.models.families import FAMILIES

    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert [f for f in FAMILIES if f"`{f}`" not in page] == []


def test_the_figures_in_the_readme_are_those_measured() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.readme", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python -m bench.readme"
