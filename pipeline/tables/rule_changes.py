"""Rules of the method that changed with a stage's version, and what the versions stand for.

A stage's version is raised when the same inputs give another output. Tables of before stay what
they are, and are judged by the rules that their manifests record; a run is not continued by other
rules than those it was made by.
"""

from collections.abc import Mapping

CHANGES: Mapping[str, Mapping[int, str]] = {
    "generate": {3: "what ends a turn"},
    "verify": {2: "time-outs are judged again, unfinished thinking is wrong"},
    "route": {4: "unjudged rollouts are left out"},
    "update": {4: "float64 gradient norms, padding ids learn"},
    "evaluate": {3: "as generate and verify"},
}
"""What changed, by stage and the version that brought it."""

_UNJUDGED_LEFT_OUT = 4
_PADDING_LEARNS = 4


def unjudged_left_out(route_version: int) -> bool:
    """Tell whether `route` left out rollouts that could not be judged, instead of as wrong ones.

    So did it from the same version on with demonstrations that end inside a think block.
    """
    return route_version >= _UNJUDGED_LEFT_OUT


def padding_learns(update_version: int) -> bool:
    """Tell whether `update` gave padding ids' embeddings a gradient; its norms are float64 sums."""
    return update_version >= _PADDING_LEARNS


def changes_between(stage: str, made: int, now: int) -> list[str]:
    """Return what changed in a stage's rules after version `made`, up to `now`."""
    return [text for version, text in CHANGES.get(stage, {}).items() if made < version <= now]
