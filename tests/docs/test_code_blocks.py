"""Every code block of README and how-tos runs, or says on the page why a test does not run it.

Words after the language of a block: `no-test: REASON` is skipped with this reason, `file=NAME` is written to that file,
`output` (of text) is part of what the block before printed, numbers apart.
"""

from __future__ import annotations

import contextlib
import glob
import io
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pyscf  # noqa: F401 (it keeps what sys.stdout is when it is imported, which must not be that of a command)
import pytest
from typer.testing import CliRunner

from mlsemi.cli import app
from mlsemi.train.config import read_config

_FENCE = re.compile(r"^```(?P<language>[\w{}-]*) ?(?P<words>.*)$")
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")
LANGUAGES = ("python", "bash", "toml", "text")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: file.
        line: of its first line, counted from 1.
        language: python, bash, toml or text.
        words: the rest of the line that opens it: `no-test: REASON`, `file=NAME` or `output`.
        text: what is between the fences.
    """

    page: Path
    line: int
    language: str
    words: str
    text: str

    @property
    def reason(self) -> str | None:
        """Why it is not run, or None if it is."""
        return self.words.removeprefix("no-test:").strip() if self.words.startswith("no-test") else None

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page but Sphinx's directives.

    Raises:
        ValueError: for a block that is not closed, is not of a known language, or has other words than are known.
    """
    found: list[Block] = []
    opened: re.Match[str] | None = None
    start = 0
    lines = page.read_text(encoding="utf-8").splitlines()
    for k, line in enumerate(lines):
        if opened is None:
            if opened := _FENCE.match(line):
                start = k + 1
        elif line == "```":
            text = "\n".join(lines[start:k]) + "\n"
            block = Block(page, start + 1, opened["language"], opened["words"].strip(), text)
            opened = None
            if block.language.startswith("{"):
                continue
            if block.language not in LANGUAGES or not re.fullmatch(r"|output|file=\S+|no-test: .{8,}", block.words):
                raise ValueError(f"{block.where}: it must be one of {LANGUAGES} and run, or tell why not")
            found.append(block)
    if opened is not None:
        raise ValueError(f"{page.name}:{start}: the block is not closed")
    return found


@dataclass
class Runner:
    """Runs the blocks of one page in order: Python in one namespace, commands in this process.

    Attributes:
        printed: output of the last block.
        names: the namespace.
    """

    printed: str = ""
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "how_to"})

    def run(self, block: Block) -> None:
        """Runs a block, or compares the output of the one before with it.

        Raises:
            AssertionError: if a command fails, or the output is another one.
        """
        if block.words.startswith("file="):
            Path(block.words.removeprefix("file=")).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.printed = self._python(block)
        elif block.language == "bash":
            self.printed = "".join(self._command(words, block) for words in commands(block))
        elif block.words == "output":
            shown = "\n".join(pattern(block.text))
            assert shown in "\n".join(pattern(self.printed)), f"{block.where}: the output is\n{self.printed}"

    def _python(self, block: Block) -> str:
        # as many lines before it as on the page: tracebacks name the line there
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, self.names)  # noqa: S102 (it is the purpose)
        return out.getvalue()

    def _command(self, words: list[str], block: Block) -> str:
        if words[0] == "cat":
            return "".join(Path(name).read_text(encoding="utf-8") for name in words[1:])
        assert words[0] == "mlsemi", f"{block.where}: {words[0]} is not run here: mark the block no-test: REASON"
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        end = f"{block.where}: {shlex.join(words)} ends with {result.exit_code}:\n{result.output}"
        assert result.exit_code == 0, end
        return result.stdout


def commands(block: Block) -> list[list[str]]:
    """Words of each command of a bash block; globs stand for what is in the present folder."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    found = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [[w for word in words for w in _expanded(word)] for words in found if words]


def _expanded(word: str) -> list[str]:
    return sorted(glob.glob(word)) or [word] if "*" in word else [word]


def pattern(text: str) -> list[str]:
    """Output without its numbers, which change with the model, and with single blanks: what a reader recognizes."""
    lines = (" ".join(_NUMBER.sub("#", line).split()) for line in text.splitlines())
    return [line for line in lines if line]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("how-to-*.md"))]
BLOCKS = {page: blocks_of(page) for page in PAGES}
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if block.reason is not None]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as a reader has it who stands in the repository, without anything in it that counts."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "reference_data").symlink_to(ROOT / "reference_data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page, folder):
    runner = Runner()
    for block in BLOCKS[page]:
        if block.reason is None:
            runner.run(block)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_blocks_that_are_not_run(block):
    if block.language == "bash":
        commands(block)  # it can be read at least
    if block.language == "python":
        compile(block.text, block.where, "exec")
    pytest.skip(block.reason)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_can_be_read(page, tmp_path):
    for block in BLOCKS[page]:
        if block.language == "toml":
            path = tmp_path / "config.toml"
            path.write_text(block.text)
            read_config(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_command_escapes_its_fence(page):
    """Indented commands would not be run."""
    indented = [x.strip() for x in page.read_text().splitlines() if x.startswith(("    mlsemi ", "    python "))]
    if page.stem == "how-to-momentum":  # scripts of minutes, which the page presents with their results
        assert all(x.startswith("python ") for x in indented)
        pytest.skip(f"not run: {'; '.join(indented)}: minutes of SCF for the comparison")
    assert not indented


def test_a_block_that_fails_is_found(folder):
    def block(language, text, words=""):
        return Block(ROOT / "README.md", 7, language, words, text)

    runner = Runner()
    runner.run(block("python", "x = 2\nprint(x, 'eggs')"))
    runner.run(block("text", "3.1   eggs\n", "output"))
    with pytest.raises(AssertionError, match="the output is"):
        runner.run(block("text", "2 spam\n", "output"))
    with pytest.raises(ZeroDivisionError):
        runner.run(block("python", "x / 0"))
    with pytest.raises(AssertionError, match=r"README.md:7: mlsemi predict nothing.xyz ends with"):
        runner.run(block("bash", "mlsemi predict nothing.xyz"))
    with pytest.raises(AssertionError, match="make is not run"):
        runner.run(block("bash", "make predict"))


def test_blocks_are_read_as_they_stand(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\na b \\\n  c  # d\n```\n\n```python no-test: takes an hour\nx\n```\n")
    first, second = blocks_of(page)
    assert commands(first) == [["a", "b", "c"]]
    assert (first.line, second.line) == (2, 7)
    assert (first.reason, second.reason) == (None, "takes an hour")
    assert pattern("  a  -1.5e-3 b\n\n2") == ["a # b", "#"]
    for bad in ("```ruby\n```\n", "```bash\n", "```bash no-test\n```\n", "```bash quick\n```\n"):
        page.write_text(bad)
        with pytest.raises(ValueError, match="page.md:"):
            blocks_of(page)
