"""What all pages share: addresses that work live and exported, templates, and what a page is.

A kind of pages is a `Kind`: its address, its template, a pure function that gives the template's
context, and a function that lists its pages. `page_registry` lists all kinds; the server and the
export do the rest for each of them alike.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import text
from pipeline.compare.comparability import telling_names
from pipeline.errors import SrpoError
from pipeline.run.run import Run
from pipeline.text import printable

FOLDER = Path(str(files("pipeline.viewer")))
STATIC = FOLDER / "static"

Runs = Mapping[str, Run]
"""The runs that are shown, by the name they have in addresses, in the order they were given."""

MANY = 16
"""With more runs than this, pages draw their own run alone, and not every pair has a link."""

PLOTLY = Path(str(files("plotly"))) / "package_data" / "plotly.min.js"
"""The installed Plotly; pages get it from here and never from outside."""

POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
    "img-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
)
"""The Content-Security-Policy of every page, live and exported.

The hash is that of the empty text: Plotly (measured with 7.1) makes an empty style element and
adds its rules to it by script, which script-src governs. No style text in a page is allowed.
"""

_UNSEEN = (
    *(code for code in range(32) if chr(code) not in "\n\t"), *range(0x7F, 0xA0), 0x61C, 0xFEFF,
    *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), *range(0xD800, 0xE000),
)  # fmt: skip
_SPELLED_OUT = {code: printable(chr(code)) for code in _UNSEEN}
"""Characters that a browser obeys, hides or refuses, as texts; templates can't forget them."""


class Missing(SrpoError):
    """There is no such page; the message says what is missing. It becomes a 404."""


@dataclass(frozen=True)
class Kind:
    """One kind of pages.

    Attributes:
        address: its path with one `{}` per parameter, as in "/runs/{}/steps/{}/".
        template: name of the template, which extends base.html.
        context: (runs, *parameters) -> the template's variables; raises `Missing`. Parameters are
            texts as they stand in the address; `Missing` is for those that name nothing.
        pages: runs -> the parameters of each page of this kind, for the export.
    """

    address: str
    template: str
    context: Callable[..., dict[str, Any]]
    pages: Callable[[Runs], Iterator[tuple[str, ...]]]

    def page(self, *parameters: str, exported: bool = False) -> "Page":
        """Return the page with these parameters."""
        return Page(self.address.format(*map(_quoted, parameters)), exported)

    def html(self, runs: Runs, *parameters: str, exported: bool = False) -> str:
        """Return the whole page as text."""
        page = self.page(*parameters, exported=exported)
        return page.render(self.template, **self.context(runs, *parameters))


@dataclass(frozen=True)
class Page:
    """One page: where it is, and so how it links to others.

    Attributes:
        path: its own address, quoted, as in "/runs/demo/".
        exported: links are relative and end in index.html, and nothing is fetched.
    """

    path: str
    exported: bool = False

    def url(self, *segments: str | int) -> str:
        """Return the link to the page at these segments; none: the index of runs."""
        path = "/" + "".join(f"{_quoted(str(segment))}/" for segment in segments)
        return f"{self._up}{path[1:]}index.html" if self.exported else path

    def static(self, name: str) -> str:
        """Return the link to a static file."""
        return f"{self._up}static/{name}" if self.exported else f"/static/{name}"

    @property
    def _up(self) -> str:
        return "../" * (self.path.count("/") - 1) or "./"

    def render(self, template: str, **context: Any) -> str:
        """Return the page's HTML; controls, bidi marks and lone surrogates are spelled out."""
        html = (
            _environment()
            .get_template(template)
            .render(page=self, url=self.url, static=self.static, **context)
        )
        return html.translate(_SPELLED_OUT)


def per_run(pages: Callable[[Run], Iterator[str]]) -> Callable[[Runs], Iterator[tuple[str, ...]]]:
    """Make the `pages` of a kind whose pages have two parameters: a run's name and a key in it."""

    def listed(runs: Runs) -> Iterator[tuple[str, ...]]:
        for name, run in runs.items():
            for key in pages(run):
                yield name, key

    return listed


def run_named(runs: Runs, name: str) -> Run:
    """Return a run by its name in addresses; `Missing` if it is not shown."""
    if name not in runs:
        raise Missing(f"no run {name} here; there are {', '.join(runs)}")
    return runs[name]


def runs_by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Name each run for the pages' URLs: by its folder, with those above that tell runs apart.

    As a name is one segment of an address, dots stand for slashes: level-1.srpo.3. A run that is
    given twice gets a number.
    """
    found: dict[str, Run] = {}
    for own, run in zip(telling_names([run.root.resolve() for run in runs]), runs, strict=True):
        own = own.replace("/", ".")
        name, number = own, 2
        while name in found:
            name, number = f"{own}-{number}", number + 1
        found[name] = run
    return found


def shown_name(runs: Runs, run: Run) -> str:
    """Return the name under which a run is shown; of one that isn't, its folder's."""
    root = run.root.resolve()
    return next((n for n, shown in runs.items() if shown.root.resolve() == root), root.name)


def linked_pairs(runs: Runs) -> list[tuple[str, str]]:
    """Return the pairs that the index links and an export has: of many runs, forks and parents."""
    if len(runs) <= MANY:
        return list(combinations(runs, 2))
    roots = {name: run.root.resolve() for name, run in runs.items()}
    parents = {name: run.parent.root.resolve() for name, run in runs.items() if run.parent}
    pairs = combinations(runs, 2)
    return [(a, b) for a, b in pairs if parents.get(a) == roots[b] or parents.get(b) == roots[a]]


class ReopenedRuns(Mapping[str, Run]):
    """Runs by name, reopened when run.json changes: a longer training replaces it in place."""

    def __init__(self, runs: Runs) -> None:
        self._runs = {name: (run, _written(run)) for name, run in runs.items()}

    def __getitem__(self, name: str) -> Run:
        run, written = self._runs[name]
        now = _written(run)
        if now != written:
            run = Run.open(run.root)
            self._runs[name] = run, now
        return run

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)


def _written(run: Run) -> int:
    return (run.root / "run.json").stat().st_mtime_ns


def data_block(value: Any) -> Markup:
    """Return a `<script type="application/json">` block that no text in `value` can leave."""
    raw = json.dumps(plain(value), separators=(",", ":"), allow_nan=False)
    safe = raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup('<script type="application/json" id="data">{}</script>').format(Markup(safe))


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: numbers that are not finite become null.

    Texts are spelled out as in a page, as scripts put them there.
    """
    if isinstance(value, str):
        return value.translate(_SPELLED_OUT)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@cache
def plotly_styles() -> list[str]:
    """Return the ids of style elements that Plotly adds with text of its own if they are missing.

    They belong to maps, which no page has; the policy refuses them, with an error on the console.
    """
    ids = re.findall(r'getElementById\("([0-9a-f]{64})"\)', PLOTLY.read_text(encoding="utf-8"))
    return sorted(set(ids))


def _quoted(segment: str) -> str:
    return quote(segment, safe="")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": text.percent,
        "number": text.number,
        "count": text.count,
        "duration": text.duration,
    }
    environment.globals |= {
        "data_block": data_block,
        "plotly_styles": plotly_styles,
        "content_security_policy": "; ".join(POLICY),
        "version": version("srpo"),
    }
    return environment
