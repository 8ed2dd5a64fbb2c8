"""The pages' code: found in their text, and run from top to bottom as a reader would, but small."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from click.testing import CliRunner
from grids import box

from parbake.cli import main

SAMPLES_MAX = 100
DURATION_S = 0.02
LANGUAGES = ("python", "console", "yaml", "text")
ANSWERS = ("check", "diff", "cat", "echo")  # what is shown below these is compared
_NO_IS_AN_ANSWER = ("check", "diff", "verify")  # exit code 1: stale, not equal, damaged

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<marks>```+|~~~+) *(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=marks) *$",
    re.M | re.S,
)
_SKIPPED = re.compile(r"<!-- not run: ((?:(?!-->).)+) -->\s*\Z", re.S)
_FILE_NAME = re.compile(r"# ([\w./-]+\.(?:ya?ml|py))(?:[:,].*)?")
_OPTION = re.compile(r"(--num-samples[ =])(\d+)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page. ``line``: of its first line of code; ``skipped``: why it does not run."""

    language: str
    code: str
    line: int
    skipped: str | None

    @property
    def file_name(self) -> str | None:
        """The file that the block is, if its first line says so."""
        found = _FILE_NAME.fullmatch(self.code.partition("\n")[0].strip())
        return found[1] if found else None


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        words = match["info"].split()
        skipped = _SKIPPED.search(text, 0, match.start())
        found.append(
            Block(
                words[0] if words else "",
                textwrap.dedent(match["body"]),
                text.count("\n", 0, match.start("body")) + 1,
                " ".join(skipped[1].split()) if skipped else None,
            )
        )
    return found


@dataclass(frozen=True)
class Command:
    """One line of a console block and what is shown below it."""

    words: tuple[str, ...]
    shown: tuple[str, ...]
    line: int


def commands_of(block: Block) -> Iterator[Command]:
    """The lines that begin with ``$``; a backslash at the end of a line joins the next to it."""
    lines = block.code.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    assert starts[:1] == [0], f"line {block.line}: a console block begins with a command"
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        text, end = lines[start][2:], start + 1
        while text.endswith("\\"):
            text, end = text[:-1] + lines[end].removeprefix("> "), end + 1
        shown = tuple(line.rstrip() for line in lines[end:stop] if line.strip())
        yield Command(tuple(shlex.split(text, comments=True)), shown, block.line + start)


@dataclass
class PageRun:
    """Runs the blocks of one page in the current folder, in one namespace.

    ``made``: stores that lie there for pages that begin with one; the first command that writes to such a
    path finds it gone, as its reader does.
    """

    name: str
    blocks: list[Block]
    made: set[str]
    module: ModuleType = field(init=False)
    exit_code: int = 0

    def __post_init__(self) -> None:
        # the code at the lines of its page: tracebacks then point into it, and keys see the source
        self.module = ModuleType(f"page_{re.sub(r'[^A-Za-z0-9]', '_', self.name)}")
        lines: list[str] = []
        for block in self.blocks:
            if block.language == "python":
                lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
        file = Path(f"{self.module.__name__}.py").resolve()
        file.write_text("\n".join(lines) + "\n")
        self.module.__file__ = str(file)
        sys.modules[self.module.__name__] = self.module
        for block in reversed(self.blocks):  # a page may name a file before it shows it
            self._write(block)

    def run(self) -> None:
        runs = {"python": self._python, "console": self._console, "yaml": self._write}
        for block in self.blocks:
            if block.skipped is None and block.language in runs:
                runs[block.language](block)

    def _write(self, block: Block) -> None:
        if block.skipped is None and block.file_name is not None:
            path = Path(block.file_name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_small_recipe(block.code) if block.language == "yaml" else block.code)

    def _python(self, block: Block) -> None:
        self._write(block)
        code = compile("\n" * (block.line - 1) + block.code, str(self.module.__file__), "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings(
                "ignore", message="This DataLoader will create"
            )  # fewer cores than workers
            exec(code, vars(self.module))

    def _console(self, block: Block) -> None:
        for command in commands_of(block):
            said = self._said(command)
            if command.words[0] in ANSWERS or (command.words[1:2] and command.words[1] in ANSWERS):
                for line in command.shown:
                    where = f"{self.name}:{command.line}: {' '.join(command.words)}"
                    assert line == "..." or line in said.splitlines(), f"{where} says\n{said}not {line!r}"

    def _said(self, command: Command) -> str:
        words, env = list(command.words), {}
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, env[name] = words.pop(0).partition("=")
        if words[0] == "echo":
            return " ".join(words[1:]).replace("$?", str(self.exit_code)) + "\n"
        if words[0] == "ls":
            return "\n".join(sorted(p.name for p in Path(words[1] if words[1:] else ".").iterdir())) + "\n"
        if words[0] == "cat":
            return "".join(Path(word).read_text() for word in words[1:])
        where = f"{self.name}:{command.line}: {' '.join(command.words)}"
        assert words[0] == "parbake", f"{where}: neither parbake, nor cat, ls or echo"
        assert not {"|", ">", "&&", "||", ";", "&"} & set(words), f"{where}: a shell is needed"
        self._make_room(words)
        result = CliRunner().invoke(main, _small(words[1:]), input="y\n", env=env, prog_name="parbake")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.exit_code = result.exit_code
        asked = self._asks_for_the_exit_code(command)
        fine = (0, 1) if words[1] in _NO_IS_AN_ANSWER or asked else (0,)
        assert result.exit_code in fine, f"{where}: exit code {result.exit_code}\n{result.output}"
        return result.stdout

    def _asks_for_the_exit_code(self, command: Command) -> bool:
        block = next(b for b in reversed(self.blocks) if b.line <= command.line)
        after = [c for c in commands_of(block) if c.line > command.line]
        return bool(after) and after[0].words == ("echo", "$?")

    def _make_room(self, words: list[str]) -> None:
        target = None
        if words[1:2] == ["build"] and "--dry-run" not in words:
            target = next((b for a, b in itertools.pairwise(words) if a in ("-o", "--output")), None)
            if target is None and words[2].endswith((".yaml", ".yml")):
                found = re.search(r"^ *path: *(\S+)", Path(words[2]).read_text(), re.M)
                target = found[1] if found else None
        elif words[1:2] == ["convert"]:
            target = [word for word in words[2:] if not word.startswith("-")][1]
        if target in self.made:
            self.made.remove(target)
            shutil.rmtree(target)


def _small(words: list[str]) -> list[str]:
    """A command's arguments, such that it takes a moment."""
    words = shlex.split(_OPTION.sub(_fewer, shlex.join(words)))
    if words[:2] == ["build", "sine-teacher"]:
        if "bandlimited" in words:  # its tones last a second at least
            words += ["--num-samples", "4", "--sample-rate", "10000", "--duration", "1", "--midi-max", "100"]
        elif not {"--config", "--duration"} & set(words):
            words += ["--duration", str(DURATION_S)]
    if words[:1] == ["bench"] and "--seconds" not in words:
        words += ["--seconds", "0.02"]
    return words


def _small_recipe(code: str) -> str:
    code = re.sub(r"^( *num_samples: )(\d+)", _fewer, code, flags=re.M)
    if "producer: sine-teacher" in code and not re.search(r"^ *(config|duration|target): ", code, re.M):
        code = code.replace("\nparams:\n", f"\nparams:\n  duration: {DURATION_S}\n")
    return code


def _fewer(match: re.Match[str]) -> str:
    return f"{match[1]}{min(int(match[2]), SAMPLES_MAX)}"


# ---- what lies in a page's folder


def bake_stores(folder: Path) -> None:
    """train.zarr and val.zarr of the built-in teacher, 100 and 30 samples."""
    for name, samples in (("train", 100), ("val", 30)):
        words = ["build", "sine-teacher", "--num-samples", str(samples), "-o", str(folder / f"{name}.zarr")]
        result = CliRunner().invoke(main, _small(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output


def write_inputs(folder: Path) -> None:
    """Four meshes of one square, an amp model of two units, and a pickle of tones."""
    torch.save([(torch.zeros(5, 1), torch.ones(5, 1), 440.0, -6.0)] * 3, folder / "cached_train.pt")
    (folder / "sim").mkdir()
    for name, steps in (("coarse", 3), ("medium", 5), ("fine", 6), ("finest", 9)):
        _write_mesh(folder / "sim" / f"{name}.npz", steps)
    for name in ("coarse", "fine"):
        shutil.copy(folder / "sim" / f"{name}.npz", folder)
    (folder / "broadcast_lstm.json").write_text(json.dumps(_tiny_lstm()))


def _write_mesh(file: Path, steps: int) -> None:
    points, cells = box("triangle", steps)
    times = np.arange(6) / 10
    x, y = points.T
    fields = np.stack(
        [[np.sin(x + t), np.cos(y - t), x * y + t, x - y * t] for t in times]
    )  # [time, field, node]
    np.savez(
        file,
        points=points,
        cells=cells["triangle"],
        times=times,
        fields=np.ascontiguousarray(fields.transpose(0, 2, 1), np.float32),
        field_names=["vx", "vy", "p", "T"],
    )


def _tiny_lstm(units: int = 2) -> dict[str, object]:
    rng = np.random.default_rng(7)
    shapes = {
        "rec.weight_ih_l0": (4 * units, 1),
        "rec.weight_hh_l0": (4 * units, units),
        "rec.bias_ih_l0": (4 * units,),
        "rec.bias_hh_l0": (4 * units,),
        "lin.weight": (1, units),
        "lin.bias": (1,),
    }
    return {
        "model_data": {
            "model": "SimpleRNN",
            "input_size": 1,
            "skip": 1,
            "output_size": 1,
            "unit_type": "LSTM",
            "num_layers": 1,
            "hidden_size": units,
            "bias_fl": True,
        },
        "state_dict": {name: rng.uniform(-0.5, 0.5, shape).tolist() for name, shape in shapes.items()},
    }
