"""A tokenizer's chat template: which of several, and whether it can be run at all.

A chat template is a program of somebody else's. It runs in Jinja's sandbox; before that, once, in a
child process with limits. Each cause has a message of its own.
"""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import PolicyError
from pipeline.text import printable

LONGEST_TEMPLATE = 256 * 1024
"""Characters of a chat template."""
LONGEST_TURN = 1_000_000
"""Characters that a turn of a few words may become."""
TEMPLATE_SECONDS = 10
DEFAULT = "default"
"""Name of the template that is used where several have names and no setting picks one."""
_BESIDE = "chat_template.json"
"""Where older folders have it, under the key `chat_template`; transformers reads it no more."""

_TRY = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)

def refuse(message):
    raise jinja2.TemplateError(message)

source, longest = json.load(sys.stdin)
made = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
)
made.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False)
made.globals |= {"raise_exception": refuse, "strftime_now": lambda form: "1 January 2026"}
system, user, assistant = [
    {"role": role, "content": "Hello"} for role in ("system", "user", "assistant")
]
try:
    template = made.from_string(source)
except MemoryError:
    sys.exit(3)
except jinja2.TemplateSyntaxError as error:
    print(f"line {error.lineno}: {error.message}")
    sys.exit(5)
except Exception as error:
    print(type(error).__name__)
    sys.exit(5)
for turns, header in (
    ([user], True), ([system, user], True), ([user, assistant], False), ([user], False)
):
    try:
        text = template.render(
            messages=turns, add_generation_prompt=header, bos_token="", eos_token=""
        )
    except MemoryError:
        sys.exit(3)
    except Exception:
        continue  # rendering a prompt says what is wrong
    if len(text) > longest:
        sys.exit(4)
"""
_SLOW, _MEMORY, _OUTPUT, _SYNTAX = 2, 3, 4, 5


def settle_template(tokenizer: Any, path: str | Path, name: str | None) -> None:
    """Leave a tokenizer with its one chat template, a text that renders a turn within limits.

    Args:
        path: where the tokenizer was opened; of a folder, `chat_template.json` is read too.
        name: the setting model.chat_template, which of several named ones is wanted; None: of
            several the one called `default`.

    Raises:
        PolicyError: there is none, none of that name, or it can't be run.
    """
    found = tokenizer.chat_template
    if found is None:
        found = _template_beside(Path(path))
    if isinstance(found, dict):
        found = _named(found, path, name) if found else None
    elif name is not None and found is not None:
        raise PolicyError(
            f"model.chat_template is {name}, but {path} has one chat template, without a name; "
            "leave the setting out"
        )
    if isinstance(found, str):
        found = found.removeprefix("\ufeff")  # editors on Windows put a mark before it
    if found is not None:
        _check_template(found, str(path))
    tokenizer.chat_template = found


def expect_template(tokenizer: Any, path: str | Path) -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        PolicyError: it has none.
    """
    if tokenizer.chat_template is None:
        raise PolicyError(
            f"{path}: its tokenizer has no chat template, so it is unknown how a prompt looks "
            "(base models have none); add the file chat_template.jinja to the folder"
        )


def check_named(folder: Path) -> None:
    """Refuse a folder whose files have chat templates of a form that nobody knows.

    Raises:
        PolicyError: a file is not UTF-8, or a list is none of names with texts, each name once.
    """
    for file in [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]:
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PolicyError(
                f"{file}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
            ) from None
        except OSError:
            continue  # there is none, or opening the tokenizer says what is wrong
    found = _read_key(folder / "tokenizer_config.json")
    if isinstance(found, list):
        _by_name(found, folder)


def _template_beside(folder: Path) -> Any:
    found = _read_key(folder / _BESIDE)
    return _by_name(found, folder) if isinstance(found, list) else found


def _read_key(path: Path) -> Any:
    """Return what a JSON file has under `chat_template`; None if it has nothing there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        if path.name != _BESIDE:
            return None  # opening the tokenizer says what is wrong
        reason = printable(" ".join(str(error).split()), 200)
        raise PolicyError(f"{path}: can't be read: {reason}") from None
    return content.get("chat_template") if isinstance(content, dict) else None


def _by_name(found: list[Any], folder: Path) -> dict[str, Any]:
    try:
        named = {str(entry["name"]): entry["template"] for entry in found}
        twice = [name for name in named if sum(str(e["name"]) == name for e in found) > 1]
    except (TypeError, KeyError, IndexError):
        raise PolicyError(
            f"{folder}: its chat_template is a list; expected entries with name and template"
        ) from None
    if twice:
        raise PolicyError(
            f"{folder}: two of its chat templates are called {printable(twice[0], 60)}; expected "
            "each name once"
        )
    return named


def _named(found: dict[str, Any], path: str | Path, name: str | None) -> Any:
    wanted = name or DEFAULT
    if wanted in found:
        return found[wanted]
    names = printable(", ".join(map(str, found)), 200) or "none"
    if name is None:
        raise PolicyError(
            f"{path}: its chat templates are called {names}, and none {DEFAULT}: pick one with "
            "model.chat_template"
        )
    raise PolicyError(f"model.chat_template is {name}, but those of {path} are called {names}")


def _check_template(template: Any, path: str) -> None:
    if not isinstance(template, str):
        kind = type(template).__name__
        raise PolicyError(f"{path}: its chat template is no text but of type {kind}")
    if not template.strip():
        raise PolicyError(f"{path}: its chat template is an empty text")
    if len(template) > LONGEST_TEMPLATE:
        raise PolicyError(
            f"{path}: its chat template has {len(template):,} characters; at most "
            f"{LONGEST_TEMPLATE:,} are run"
        )
    code, words = _tried(template, TEMPLATE_SECONDS)
    reason = {
        0: None,
        _SLOW: f"takes more than {TEMPLATE_SECONDS} seconds to render a turn",
        _MEMORY: "takes more than a GiB to render a turn",
        _OUTPUT: f"makes more than {LONGEST_TURN:,} characters of a turn of 5",
        _SYNTAX: f"is no Jinja template ({words})",
    }.get(code, "ends the process that renders it")
    if reason is not None:
        raise PolicyError(f"{path}: its chat template {reason}")


@lru_cache(maxsize=8)
def _tried(template: str, seconds: float) -> tuple[int, str]:
    """Compile a template and render a few turns in a child process that has limits."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _TRY],
            input=json.dumps([template, LONGEST_TURN]).encode(),
            timeout=seconds,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return _SLOW, ""
    return done.returncode, printable(done.stdout.decode("utf-8", "replace").strip(), 200)
