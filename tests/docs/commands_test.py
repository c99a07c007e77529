"""Commands of the pages name programs, flags, choices and fields that exist."""

import argparse
import importlib
import importlib.util
import re

import guides
import pytest
from absl import flags as absl_flags

from dinov2_jax import cli, configs, main
from dinov2_jax.config import flattening
from dinov2_jax.configs import default

TARGETS = re.findall(r"^([\w-]+):", (guides.ROOT / "Makefile").read_text(), re.M)
FIELDS = set(flattening.flatten(default.get_config()))
TRAINING = {"train", "preflight"}  # programs that parse with absl
PLACEHOLDER = re.compile(r"\.\.\.|.*[A-Z]{2}.*|[A-Z]\b.*|\$.*|.*\.\.\.$")


class Parser(Exception):
    """Carries the parser of a program, in place of its work."""


@pytest.fixture
def parser_of(monkeypatch):
    """Returns the parser that a program makes for some arguments."""

    def stop(self, *_, **__):
        raise Parser(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)

    def parser_of(module: str, words: list[str]) -> argparse.ArgumentParser:
        program = importlib.import_module(f"dinov2_jax.{module}")
        if hasattr(program, "__path__"):
            program = importlib.import_module(f"dinov2_jax.{module}.__main__")
        monkeypatch.setattr("sys.argv", [module, *words])
        with pytest.raises(Parser) as caught:
            program.main(words) if module != "launch" else program.main()
        return caught.value.args[0]

    return parser_of


def problems(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """What of a command its parser does not know."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if groups and words and not PLACEHOLDER.fullmatch(words[0]):
        if words[0] not in groups[0].choices:
            return [words[0]]
        return problems(groups[0].choices[words[0]], words[1:])
    wrong = []
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name == "--help":
            continue
        if name.startswith("--config."):
            wrong += field_problems(word)
        elif name not in parser._option_string_actions:
            wrong.append(word)
        else:
            choices = parser._option_string_actions[name].choices
            value = value if equals else following
            if choices and value not in choices and not PLACEHOLDER.fullmatch(value):
                wrong.append(f"{name} {value}")
    return wrong


def field_problems(word: str) -> list[str]:
    """The word, if it sets a field that no config has."""
    name = word.removeprefix("--config.").partition("=")[0]
    return [] if name in FIELDS or PLACEHOLDER.fullmatch(name) else [word]


def training_problems(words: list[str]) -> list[str]:
    """What of a training command does not exist: flags, fields, presets."""
    wrong = []
    for word in words:
        name, _, value = word.partition("=")
        if name.startswith("--config."):
            wrong += field_problems(word)
        elif name == "--config":
            preset = value.partition(":")[0]
            known = preset in configs.names() or PLACEHOLDER.fullmatch(preset)
            if not known and not preset.endswith((".py", ".json", ".yaml")):
                wrong.append(word)
        elif word.startswith("-") and name.lstrip("-") not in absl_flags.FLAGS:
            wrong.append(word)
    return wrong


def training_arguments(words: list[str]) -> list[str] | None:
    """The arguments of the training program that a launcher starts, if it does."""
    script = next((w for w in words if re.match(r"launch/[\w.]+$", w)), None)
    return words[words.index("--") + 1 :] if script and "--" in words else None


@pytest.mark.parametrize("page", guides.PAGES, ids=lambda page: page.name)
def test_commands_exist(page, parser_of):
    assert main.__name__ in absl_flags.FLAGS.flags_by_module_dict()
    wrong = []
    for words in guides.commands(page):
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        program = words[0].removeprefix(".venv/bin/") if words else ""
        if program == "dinov2-jax" and len(words) > 1:
            found = dinov2_jax_problems(words[1:], parser_of)
        elif program in ("python", "python3") and words[1:2] == ["-m"]:
            found = module_problems(words[2:], parser_of)
        elif program.startswith("--config."):
            found = [w for word in words for w in field_problems(word)]
        elif program == "make" and len(words) > 1:
            found = [w for w in words[1:] if "=" not in w and w not in TARGETS]
        else:
            found = training_problems(training_arguments(words) or [])
        wrong += [f"{' '.join(words[:4])}: {name}" for name in found]
    assert not wrong


def dinov2_jax_problems(words: list[str], parser_of) -> list[str]:
    """What of a command of `dinov2-jax` does not exist."""
    name, *words = words
    if PLACEHOLDER.fullmatch(name) or name == "--help":
        return []
    if name not in cli._PROGRAMS:
        return [name]
    if name in TRAINING:
        return training_problems(words)
    module, before, _ = cli._PROGRAMS[name]
    return problems(parser_of(module, before + words), before + words)


def module_problems(words: list[str], parser_of) -> list[str]:
    """What of `python -m MODULE ...` does not exist."""
    name, *words = words
    if PLACEHOLDER.fullmatch(name):
        return []
    if not importlib.util.find_spec(name):
        return [name]
    if name == "dinov2_jax.main":
        return training_problems(words)
    if not name.startswith("dinov2_jax."):
        return []
    module = name.removeprefix("dinov2_jax.")
    return problems(parser_of(module, words), words)


@pytest.mark.parametrize(
    "command, wrong",
    [
        ("dinov2-jax trian", "trian"),
        ("dinov2-jax train --config=vitsss", "--config=vitsss"),
        ("dinov2-jax train --workdirs=a", "--workdirs=a"),
        ("dinov2-jax aot --config.optim.lr=1", "--config.optim.lr=1"),
        ("dinov2-jax evaluate knnn --model=a", "knnn"),
        ("dinov2-jax evaluate knn --trainpath=a", "--trainpath=a"),
        ("dinov2-jax convert a b --to torchhub", "--to torchhub"),
        ("dinov2-jax curate dedup --feature f", "--feature"),
        ("dinov2-jax data scan --seeconds 1 a", "--seeconds"),
        ("dinov2-jax embed a --modell=b", "--modell=b"),
    ],
)
def test_faults_are_noticed(command, wrong, parser_of):
    assert dinov2_jax_problems(command.split()[1:], parser_of) == [wrong]
