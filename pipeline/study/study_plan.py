"""The plan of a study: which runs it consists of, in a TOML file that says so and nothing else.

    preregistered = "4a5b6c7"        commit of the hypotheses, before the first main run

    [worlds.level-1]                 what is learned, and by whom
    title = "Chains of five"
    config = "level-1.toml"          a configuration, beside the plan
    policy = "data/study/policy"     its copy becomes model.path; from the root of the code
                                     or warmstart = "smollm2": a preset, taught before the runs

    [variants.grpo]                  what is compared
    title = "GRPO"
    set = ["route.method=grpo"]

    [rates.level-1]                  learning rates
    grpo = 1e-3

    [[groups]]                       runs: every world with every seed and every variant
    name = "main"
    worlds = ["level-1"]
    variants = ["grpo"]
    seeds = [0, 1, 2]
    steps = 400
    set = []                         more overrides, if need be
    rates = [4e-4, 1e-3]             if given, variants are grpo@4e-4 and grpo@1e-3

Groups may share a name; no two runs may, and runs that differ in seeds alone have equal settings.
Groups without rates are compared with each other, longer runs cut to the steps of shorter ones. So
in one world they are evaluated after the same steps, as far as both go.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.errors import ConfigError
from pipeline.study.study_row import WINDOW, explained, path_of, without_seed
from pipeline.text import printable

CODE = Path(__file__).resolve().parents[2]
"""The root of the code, where the packages lie."""
WARM_STARTS = "warmstart"
POLICIES = "policies"
"""Folders of warm starts and of policies in the folder of runs; so no group has these names."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHOWN = 200


def _name(text: str) -> str:
    """Refuse what can't be a part of a path everywhere."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"expected small letters, digits, '.', '_' and '-', found {text!r}")
    return text


def _distinct(items: list[Any]) -> list[Any]:
    """Refuse a list that is empty or names something twice."""
    if not items:
        raise ValueError("expected at least one, found none")
    if twice := [item for item, times in Counter(items).items() if times > 1]:
        raise ValueError(f"{twice[0]} is there twice")
    return items


def _beside(text: object, info: ValidationInfo) -> object:
    """Return the path of a file that is named from the plan's folder."""
    return info.context["folder"] / text if isinstance(text, str) and info.context else text


Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[list[Name], AfterValidator(_distinct)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class World(_Part):
    """What is learned, and by whom.

    Attributes:
        config: the configuration's file.
        policy: folder of the policy, from the root of the code; its copy is passed as `model.path`.
        warmstart: preset whose warm start the runs begin with.
    """

    title: str
    config: Annotated[Path, BeforeValidator(_beside)]
    policy: str | None = None
    warmstart: str | None = None

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.policy is not None and self.warmstart is not None:
            raise ValueError("policy and warmstart: expected one of them at most")
        return self


class Variant(_Part):
    """A method, with what sets it apart: overrides of the world's configuration."""

    title: str
    set: list[str] = []


class Group(_Part):
    """Every world with every seed and every variant; with `rates`, each variant at every rate."""

    name: Name
    worlds: Names
    variants: Names
    seeds: Annotated[list[int], AfterValidator(_distinct)]
    steps: PositiveInt
    set: list[str] = []
    rates: Annotated[list[PositiveFloat], AfterValidator(_distinct)] | None = None


class PlannedRun(NamedTuple):
    """A run of a plan.

    Attributes:
        variant: as a row names it: with its learning rate, if the group has several.
        settings: overrides of the world's configuration, always in the same order: the variant's,
            the learning rate, the group's, steps and seed.
    """

    group: str
    world: str
    variant: str
    seed: int
    steps: int
    settings: list[str]

    @property
    def name(self) -> str:
        """Return GROUP/WORLD/VARIANT/SEED, the path of its row and of its folder."""
        return f"{self.group}/{self.world}/{self.variant}/{self.seed}"

    def row(self, rows: Path) -> Path:
        """Return where its row is, or will be, below a folder of rows."""
        return path_of(rows, self.name)


class Plan(_Part):
    """A study's plan.

    Attributes:
        rates: learning rates by world and variant, for groups without rates of their own.
        preregistered: commit that had, before the first main run, what the study asks.
    """

    worlds: dict[Name, World]
    variants: dict[Name, Variant]
    rates: dict[Name, dict[Name, PositiveFloat]] = {}
    groups: Annotated[list[Group], Field(min_length=1)]
    preregistered: Annotated[str, Field(pattern="^[0-9a-f]{7,40}$")] | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan, and see that every one of its runs can be configured.

        Raises:
            ConfigError: it isn't there, is no TOML, or names what it doesn't define; a run occurs
                twice, lacks a learning rate, or has settings that its world's configuration
                doesn't take or other seeds don't have; groups that are compared can't be.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
        except ValueError as error:  # of TOML or of UTF-8
            raise ConfigError(f"{path}: not valid TOML: {printable(str(error), _SHOWN)}") from None
        try:
            plan = cls.model_validate(values, context={"folder": path.parent.resolve()})
        except ValidationError as error:
            raise ConfigError(f"{path}: {explained(error)}") from None
        try:
            plan._expect_sound()
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        return plan

    def runs(self) -> list[PlannedRun]:
        """Return all runs in the order in which they are made: seed by seed."""
        return [run for group in self.groups for run in self._runs_of(group)]

    def run(self, name: str) -> PlannedRun:
        """Return a run by its name.

        Raises:
            ConfigError: the plan has none of this name.
        """
        for run in self.runs():
            if run.name == name:
                return run
        raise ConfigError(
            f"{printable(name, _SHOWN)}: no run of the plan, whose runs are called "
            f"GROUP/WORLD/VARIANT/SEED, such as {self.runs()[0].name}"
        )

    @property
    def grids(self) -> set[str]:
        """Return the names of groups with rates: they choose those of the others."""
        return {group.name for group in self.groups if group.rates is not None}

    def title(self, variant: str) -> str:
        """Return the title of a variant, with its learning rate if its name has one."""
        name, _, rate = variant.partition("@")
        return self.variants[name].title + (f", {rate}" if rate else "")

    def _runs_of(self, group: Group) -> Iterator[PlannedRun]:
        for world in group.worlds:
            for seed in group.seeds:
                for variant in group.variants:
                    for name, rate in self._named_rates(group, world, variant):
                        settings = [
                            *self.variants[variant].set,
                            f"update.learning_rate={rate_text(rate)}",
                            *group.set,
                            f"run.steps={group.steps}",
                            f"run.seed={seed}",
                        ]
                        yield PlannedRun(group.name, world, name, seed, group.steps, settings)

    def _named_rates(self, group: Group, world: str, variant: str) -> list[tuple[str, float]]:
        """Return the variants that a group makes of one, each with its learning rate."""
        if group.rates is not None:
            return [(f"{variant}@{rate_text(rate)}", rate) for rate in group.rates]
        return [(variant, self.rates[world][variant])]

    def _expect_sound(self) -> None:
        """Refuse names that nothing defines, runs that occur twice, and settings that don't fit."""
        _expect_known("rates", list(self.rates), self.worlds, "worlds")
        for name, by_variant in self.rates.items():
            _expect_known(f"rates.{name}", list(by_variant), self.variants, "variants")
        for world in self.worlds.values():
            if not world.config.is_file():
                raise ConfigError(f"{world.config}: no such file; a world's config is one")
        for group in self.groups:
            _expect_known(f"group {group.name}", group.worlds, self.worlds, "worlds")
            _expect_known(f"group {group.name}", group.variants, self.variants, "variants")
            if group.name in (WARM_STARTS, POLICIES):
                raise ConfigError(
                    f"group {group.name}: runs' {group.name} lie there; choose another name"
                )
            if group.rates is None:
                self._expect_rates(group)
        names = Counter(run.name for run in self.runs())
        if twice := [name for name, times in names.items() if times > 1]:
            raise ConfigError(f"run {twice[0]} is there twice; give one of its groups another name")
        self._expect_settings()

    def _expect_rates(self, group: Group) -> None:
        for world in group.worlds:
            for variant in group.variants:
                if variant not in self.rates.get(world, {}):
                    raise ConfigError(
                        f"group {group.name}: no learning rate for {variant} in {world}; give "
                        f"[rates.{world}] {variant} = …, or the group's rates"
                    )

    def _expect_settings(self) -> None:
        """Load what each group, world and variant makes of a configuration, once for all seeds."""
        first: dict[tuple[str, str, str], PlannedRun] = {}
        for run in self.runs():
            same = first.setdefault((run.group, run.world, run.variant), run)
            if without_seed(run.settings) != without_seed(same.settings):
                raise ConfigError(
                    f"run {run.name}: expected the settings of {same.name} but for the seed, "
                    f"{' '.join(same.settings)}, found {' '.join(run.settings)}; give one of "
                    "their groups another name"
                )
        evaluated: dict[str, dict[str, list[int]]] = {}
        for run in first.values():
            keys = Counter(setting.partition("=")[0].strip() for setting in run.settings)
            if twice := [key for key, times in keys.items() if times > 1]:
                raise ConfigError(f"run {run.name}: {twice[0]} is set twice")
            try:
                every = self.load(run).evaluate.every
            except ConfigError as error:
                raise ConfigError(f"run {run.name}: {error}") from None
            if run.group not in self.grids:
                name = run.name.rpartition("/")[0]
                steps = [*range(0, run.steps, every), run.steps]
                evaluated.setdefault(run.world, {})[name] = steps
        for of_world in evaluated.values():
            _expect_comparable(of_world)

    def load(self, run: PlannedRun) -> Config:
        """Return the configuration of a run; a policy that is made by a warm start is left out."""
        world = self.worlds[run.world]
        policy = [] if world.policy is None else [f"model.path={CODE / world.policy}"]
        return load_config(str(world.config), [*policy, *run.settings])


def _expect_known(place: str, names: Sequence[str], known: Mapping[str, Any], kind: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{place}: {name} is none of the {kind}: {', '.join(known)}")


def _expect_comparable(evaluated: Mapping[str, Sequence[int]]) -> None:
    """Refuse runs of a world whose longer ones can't be cut to the steps of shorter ones.

    Args:
        evaluated: of GROUP/WORLD/VARIANT, the steps after which it is evaluated.
    """
    for pair in combinations(evaluated, 2):
        short, long = sorted(pair, key=lambda name: evaluated[name][-1])
        steps = evaluated[short][-1]
        within = [done for done in evaluated[long] if done <= steps]
        if evaluated[short] != within:
            raise ConfigError(
                f"{short}: evaluated after {_few(evaluated[short])} steps, but {long} after "
                f"{_few(within)}; to be compared, they need the same evaluate.every, and the "
                "shorter one a multiple of it as its steps"
            )
        if steps < evaluated[long][-1] and steps % WINDOW:
            raise ConfigError(
                f"{short}: {steps} steps, but {long} is longer; to be compared with its first "
                f"steps, it needs a multiple of {WINDOW}"
            )


def _few(steps: Sequence[int]) -> str:
    """Return the last steps of a list."""
    shown = ", ".join(map(str, steps[-3:]))
    return shown if len(steps) <= 3 else f"…, {shown}"


def rate_text(rate: float) -> str:
    """Return 0.0004 as 4e-4, a text from which the same number is read."""
    return f"{Decimal(repr(rate)).normalize():e}"
