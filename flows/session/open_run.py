"""From what a user types to an open session: which folder, new or resumed, and what may change."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.session.rule_check import expect_same_rules
from pipeline.config.load import apply_override, load_config, validate_config
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, StoreError
from pipeline.methods import METHODS
from pipeline.policy.model_folder import model_folder
from pipeline.remote.mirror_paths import run_path
from pipeline.run.run import MAY_CHANGE, MAY_GROW, Run, is_taken
from pipeline.tables.manifest import flat
from pipeline.text import go_on

if TYPE_CHECKING:
    from flows.session.session import Session

GROWING = tuple(f"run.{name}" for name in MAY_GROW)
CHANGING = tuple(f"run.{name}" for name in MAY_CHANGE)


def default_run_dir(source: str, parent: Path = Path("runs")) -> Path:
    """Return the first free folder runs/<preset or file>-<n>."""
    stem = Path(source).stem[:100]
    taken = 1
    while (parent / f"{stem}-{taken}").exists():
        taken += 1
    return parent / f"{stem}-{taken}"


class Start(NamedTuple):
    """A training that may begin, or go on, in a folder; nothing of it is written yet.

    Attributes:
        config: the settings to train with.
        run: the run to go on with, as it stands; None: a new one.
    """

    root: Path
    config: Config
    run: Run | None


def checked_start(source: str | None, root: Path, overrides: Sequence[str], resume: bool) -> Start:
    """Return what the user asked for, once it is known that it may begin, or go on, in `root`.

    Raises:
        SrpoError: the configuration can't be used; the folder is taken, or there is nothing to
            resume; the run was made with other settings.
    """
    if resume:
        run = Run.open(root)
        return Start(root, resumed_config(run, source, overrides), run)
    if source is None:
        raise ConfigError("which configuration? Give a TOML file or a preset, or --resume --run")
    config = load_config(source, overrides)
    if is_taken(root):
        raise StoreError(
            f"{root} is there already: go on with it by {go_on(root)}, or choose another --run"
        )
    expect_model(config.model.path)
    return Start(root, config, None)


def expect_model(path: str) -> None:
    """Refuse a model that isn't there, before anything heavy is imported; copies one of the hub.

    Raises:
        PolicyError: there is no such folder, the hub has no such model, or can't be reached.
    """
    if path not in ("demo", "random"):
        model_folder(path)


def expect_teacher(config: Config) -> None:
    """Refuse to measure the teacher's lead where there is no teacher.

    Raises:
        ConfigError: the method has none.
    """
    method = config.route.method
    if not METHODS[method].has_teacher:
        raise ConfigError(
            f"route.method is {method}: there is no teacher whose lead could be measured"
        )


def open_session(start: Start) -> "Session":
    """Open a new run, or go on with one, whose limits may have grown.

    Raises:
        SrpoError: it can't be opened; its tables were made by other rules.
    """
    from flows.session.session import Session

    if start.run is None:
        return Session.create(start.root, start.config)
    expect_same_rules(start.run, start.config)
    session = Session.resume(start.root)  # which opens it anew, now that nobody else changes it
    if start.config != session.config:
        session.run.extend(start.config)
    _ = session.questions  # what is wrong with them is found before anything is sampled
    return session


def resumed_config(run: Run, source: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration to go on with.

    Raises:
        ConfigError: a setting differs from the run's, other than limits that grow.
    """
    if source is not None:
        wanted = load_config(source, overrides)
    else:
        values = run.config.model_dump()
        for override in overrides:
            apply_override(values, override)
        wanted = validate_config(values, "--set")
    if wanted.model.prompt_time is None:  # the run's start settled it
        time = {"prompt_time": run.config.model.prompt_time}
        wanted = wanted.model_copy(update={"model": wanted.model.model_copy(update=time)})
    before, after = flat(run.config.model_dump()), flat(wanted.model_dump())
    differing = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    refused = [k for k in differing if not _grows(k, before.get(k), after.get(k))]
    if refused:
        changes = "; ".join(f"{k} is {before.get(k)}, not {after.get(k)}" for k in refused)
        raise ConfigError(
            f"{run.root} was made with other settings: {changes}. Only {', '.join(GROWING)} "
            f"may grow on resume, and {', '.join(CHANGING)} may change; for anything else start "
            "another run"
        )
    return wanted


def past_metrics(run: Run) -> list[dict[str, Any]]:
    """Read the records of the steps that are complete, up to the first gap."""
    return [run.metrics(step) for step in range(run.steps_done())]


def _grows(key: str, before: Any, after: Any) -> bool:
    if key in CHANGING:
        return True
    if key not in GROWING or before is None:
        return False
    return after is None or after > before


def split_state(text: str) -> tuple[Path, int | None]:
    """Read RUN or RUN@STEP.

    Raises:
        ConfigError: what follows the @ is no number of steps.
    """
    run, at, step = text.rpartition("@")
    if not at:
        return run_path(text), None
    if not step.isdecimal():
        raise ConfigError(f"{text}: expected RUN or RUN@STEP, got {step!r} as the number of steps")
    return run_path(run), int(step)


def model_config(model: str, overrides: Sequence[str]) -> Config:
    """Return the configuration that evaluates a model which no run of ours trained.

    Raises:
        ConfigError: it is unclear which task, or a setting can't be used.
        PolicyError: the model isn't there (`expect_model`).
    """
    values: dict[str, Any] = {"model": {"path": model}, "run": {"steps": 1}}
    for override in overrides:
        apply_override(values, override)
    if not {"task", "mixture"} & values.get("data", {}).keys():
        raise ConfigError(f"{model}: no run folder, so taken for a model: which --task?")
    config = validate_config(values, "--set")
    expect_model(config.model.path)
    return config
