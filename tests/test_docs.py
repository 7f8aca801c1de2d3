"""The documents hold what they promise: links lead somewhere, examples give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import docs_commands
import saec_gpu
from saec_gpu.errors import MissingExtraError

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), *CHECKOUT.glob("examples/**/*.md")]
)

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def broken_links(path: Path) -> list[str]:
    """Return the relative links of a document that lead to no file."""
    targets = LINK.findall(path.read_text(encoding="utf-8"))
    return [
        target
        for target in targets
        if "://" not in target
        and not target.startswith("mailto:")
        and not (path.parent / target).exists()
    ]


def module_names() -> list[str]:
    found = pkgutil.walk_packages(saec_gpu.__path__, "saec_gpu.")
    return ["saec_gpu", *sorted(module.name for module in found)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_can_be_run(path: Path) -> None:
    list(docs_commands.blocks(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("marker", "installed", "runs"),
    [("install", ".", "saec demo"), ("tests", "'.[test]'", "pytest")],
)
def test_readme_s_blocks_stand_alone(marker: str, installed: str, runs: str) -> None:
    # .ci/run runs both in one environment; none may lean on the other
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    steps = docs_commands.marked_block(readme, marker).strip().split(" && ")
    assert steps == [
        "python3 -m venv .venv", f".venv/bin/pip install {installed}", f".venv/bin/{runs}"
    ]  # fmt: skip


def test_contributing_fits_a_page() -> None:
    assert len((CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize("name", module_names())
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except MissingExtraError:
        return  # a module of an extra that is not installed; the import tests cover the message
    assert doctest.testmod(module).failed == 0


def test_link_checker_can_fail(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text(
        "[a](there.md) [b](there.md#part) [c](missing.md) [d](https://x) [e](gone/x.md#y) [f](#z)"
    )
    assert broken_links(tmp_path / "there.md") == ["missing.md", "gone/x.md"]


def test_blocks() -> None:
    document = (
        "text\n<!-- tests -->\n```bash\npytest\n```\n\n```python\nx = 1\n```\n"
        "- item\n\n  <!-- not run: needs a GPU -->\n  ```bash\n  saec doctor\n  ```\n"
        "~~~text\n```bash\n~~~\n"
    )
    found = [(block.line, block.language, block.marker) for block in docs_commands.blocks(document)]
    assert found == [
        (3, "bash", "tests"),
        (7, "python", ""),
        (13, "bash", "not run: needs a GPU"),
        (16, "text", ""),
    ]
    assert docs_commands.marked_block(document, "tests") == "pytest\n"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("```bash\nls\n", "never closed"),
        ("```\nls\n```\n", "marked ''"),
        ("```console\n$ ls\n```\n", "marked 'console'"),
        ("<!-- not run -->\n```bash\nls\n```\n", "no marker"),
        ("<!-- not run: reason -->\n\n```bash\nls\n```\n", "no marker"),
        ("```text\n```\n<!-- tests -->", "no marker"),
    ],
)
def test_blocks_refuse(document: str, message: str) -> None:
    with pytest.raises(docs_commands.DocsError, match=message):
        list(docs_commands.blocks(document))


@pytest.mark.parametrize("times", [0, 2])
def test_tests_block_is_one(times: int) -> None:
    with pytest.raises(docs_commands.DocsError, match=f"{times} blocks are marked"):
        docs_commands.marked_block("<!-- tests -->\n```bash\npytest\n```\n" * times, "tests")


def test_run_executes_blocks_in_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "one.txt").write_text("one")
    document = tmp_path / "page.md"
    document.write_text(
        "```bash\ncp examples/one.txt two.txt\n```\n"
        "<!-- not run: would fail -->\n```bash\nfalse\n```\n"
        "```python\nassert open('two.txt').read() == 'one'\n```\n"
    )
    assert docs_commands.run(document, tmp_path) == 2
    assert "page.md, line 8: ran" in capsys.readouterr().out
    assert not (tmp_path / "two.txt").exists()


@pytest.mark.parametrize(
    "block",
    [
        "```bash\nfalse\ntrue\n```\n",
        "```bash\nfalse | true\n```\n",
        "```bash\necho $NOT_SET_ANYWHERE\n```\n",
        "```python\nraise SystemExit(3)\n```\n",
    ],
)
def test_run_can_fail(tmp_path: Path, block: str) -> None:
    document = tmp_path / "page.md"
    document.write_text(block)
    with pytest.raises(docs_commands.DocsError, match=r"page\.md, line 1: exit status [13]"):
        docs_commands.run(document, tmp_path)
    assert docs_commands.main([str(document)]) == 1
