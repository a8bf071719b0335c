"""What the extras install: never both ONNX Runtimes, and all that a command imports."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

import pytest
from dsir_metric_cli import options
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dsir_metric.errors import MissingDependencyError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
OURS = ("dsir_metric", "dsir_metric_train", "dsir_metric_export", "dsir_metric_cli")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted((ROOT / "cli" / "dsir_metric_cli").glob("*.py"))


def direct(extras: set[str]) -> set[str]:
    """Distributions that the project asks for with these extras, its own extras resolved."""
    found: set[str] = set()
    for line in itertools.chain(PROJECT["dependencies"], *(EXTRAS[extra] for extra in sorted(extras))):
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) == PROJECT["name"]:
            found |= direct(set(requirement.extras))
        elif requirement.marker is None or requirement.marker.evaluate():
            found.add(canonicalize_name(requirement.name))
    return found


def installed(names: set[str]) -> set[str]:
    """These and what they ask for in turn, as far as it is installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        wanted = [requirement for requirement in map(Requirement, lines) if asked(requirement)]
        waiting += [canonicalize_name(requirement.name) for requirement in wanted]
    return found


def asked(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


@pytest.mark.parametrize("pair", list(itertools.combinations_with_replacement(EXTRAS, 2)), ids="+".join)
def test_no_two_extras_bring_both_runtimes(pair: tuple[str, str]) -> None:
    if set(pair) != {"cpu", "gpu"}:  # the choice itself
        assert not installed(direct(set(pair))) >= RUNTIMES


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"cpu", "gpu"}))
def test_an_extra_leaves_the_choice_of_the_runtime(extra: str) -> None:
    assert not installed(direct({extra})) & RUNTIMES
    assert len(installed(direct({extra, "cpu"})) & RUNTIMES) == 1
    assert len(installed(direct({extra, "gpu"})) & RUNTIMES) == 1


def install_lines(text: str) -> list[set[str]]:
    """Extras of every line that tells to install the package."""
    found = re.findall(r"pip install [^`\n]*?(?:dsir-metric|\.)\[([a-z,-]+)\]", text)
    return [set(extras.split(",")) for extras in found]


@pytest.mark.parametrize("document", [*DOCUMENTS, *COMMANDS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_install_lines_name_extras_that_there_are_and_combine(document: Path) -> None:
    for extras in install_lines(document.read_text()):
        assert extras <= set(EXTRAS)
        assert not direct(extras) >= RUNTIMES


def stated(command: Path) -> set[str]:
    """Extras that the help of a command says it needs, all its lines together; without any, those for the CPU."""
    tree = ast.parse(command.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "command"]
    help_text = " ".join((ast.get_docstring(functions[0]) or "").split()) if functions else ""
    return set().union({"cpu"}, *install_lines(help_text))


def imported(module: str, seen: set[str], *, lazily: bool = False) -> Iterator[str]:
    """Modules of others that a module of ours imports when it is imported, or `lazily`, those of its functions too."""
    if module in seen:
        return
    seen.add(module)
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        return
    tree = ast.parse(Path(spec.origin).read_text())
    for node in ast.walk(tree) if lazily else top_level(tree):
        for name in names_of(node):
            if name.split(".")[0] in OURS:
                yield from imported(name, seen)
            elif name.split(".")[0] not in sys.stdlib_module_names:
                yield name.split(".")[0]


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.Try):
            yield from node.body
        elif not isinstance(node, ast.If):  # TYPE_CHECKING
            yield node


def names_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []


def distributions(modules: set[str]) -> set[str]:
    homes = metadata.packages_distributions()
    return {canonicalize_name(homes[name][0]) for name in modules if name in homes}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.stem)
def test_a_command_states_extras_that_bring_what_it_imports(command: Path) -> None:
    needed = distributions(set(imported(f"dsir_metric_cli.{command.stem}", set(), lazily=True)))
    given = installed(direct(stated(command)))
    assert needed <= given, f"{command.stem} needs {sorted(needed - given)}"


def test_the_commands_that_train_are_seen_to_need_torch() -> None:
    """Else the test above would find nothing."""
    found = set(imported("dsir_metric_cli.train", set(), lazily=True))
    assert {"torch", "lightning", "onnx", "click", "numpy"} <= found


def test_what_is_missing_is_told_with_a_runtime_where_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        with options.needs("train"):
            raise ModuleNotFoundError("No module named 'lightning'", name="lightning")

    with pytest.raises(MissingDependencyError, match=r"needs lightning.*'dsir-metric\[train\]'$"):
        fails()
    monkeypatch.setattr(options, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"'dsir-metric\[cpu,train\]'$"):
        fails()
