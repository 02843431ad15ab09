"""What the tests of the documentation share: pages, and the commands, programs and files in them."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from sacred.arg_parser import get_config_updates

import main_classification
from config.experiments import ENTRY_OPTIONS

ROOT = Path(main_classification.__file__).parent
PAGES = sorted({ROOT / "README.md", *ROOT.glob("[!.]*/README.md"), *ROOT.glob("docs/*.md")})
ENTRY = ["python", "main_classification.py"]
# A block whose first line begins with one of these is typed into a shell; others show output, files or equations.
PROGRAMS = ("python", "torchrun", "make", "pip", "for", "source", "COMMON=", "OPTIONS=")
# Prints the words of every command instead of running it: no program is found.
PRINT_WORDS = "PATH=/nowhere; command_not_found_handle() { printf '%q ' \"$@\"; echo; }; source() { :; }\n"


class Command(NamedTuple):
    """A command line of the entry: sacred's command, and the options as they are typed."""

    name: str
    words: list[str]

    @property
    def updates(self) -> dict[str, Any]:
        return get_config_updates(self.words)[0]

    @property
    def experiment(self) -> str:
        return self.updates.get("config", ENTRY_OPTIONS["config"])


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shell_lines(page: Path) -> list[list[str]]:
    """The words of all commands of a page in their order, as a shell reads them: loops run, variables replaced."""
    text = re.sub("```.*?```", "", page.read_text(), flags=re.DOTALL)
    blocks = re.findall(r"\n\n((?: {4}.+\n|\n(?= {4}))+)", text)
    script = "".join(block for block in blocks if block.strip().startswith(PROGRAMS))
    shell = subprocess.run(["bash", "-u", "-c", PRINT_WORDS + script], capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in shell.stdout.splitlines()]


def calls_entry(words: list[str]) -> bool:
    """Whether a command line calls the entry: by python, or by torchrun with options of its own before it."""
    return words[:2] == ENTRY or (words[0] == "torchrun" and ENTRY[1] in words)


def entry_commands(page: Path) -> list[Command]:
    """The commands of a page that call the entry, but the one that shows what such a command looks like."""
    lines = [words[words.index(ENTRY[1]) + 1 :] for words in shell_lines(page) if calls_entry(words)]
    commands = [Command("run", words[1:]) if words[0] == "with" else Command(words[0], words[2:]) for words in lines]
    return [command for command in commands if "[option=value" not in command.words]


def programs(page: Path) -> list[tuple[str | None, str]]:
    """The Python programs of a page in their order, each with the file that the line before names, or None."""
    before, *parts = page.read_text().split("```python\n")
    found = []
    for part in parts:
        program, _, after = part.partition("```")
        file = re.search(r"`([\w/.-]+\.py)`:$", before.strip())
        found.append((file[1] if file else None, program))
        before = after
    return found
