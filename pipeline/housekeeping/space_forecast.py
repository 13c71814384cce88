"""How much disk space a run needs, at most and likely: before it starts and as it goes.

Bytes of a step, with B rollouts, T tokens of responses, N of them taught, K kept logits:

    teacher    N (ID + 4 + 24 + K (4 + w c))      w bytes per log-probability, c columns of them
    weights    N (ID + 4 + 12)
    scores     B ID + 8 T
    bank       B (ID + ROW) + text of T, where there is one: answers of one step to each question
    rollouts   B (ID + ROW) + 8 T + text of T + (4 + text) of the prompts
    routes     B (ID + ROW) + (4 + text) of the teacher prompts
    verdicts, updates   B (ID + ROW) each

plus schema, manifest and index of each. At most, every text is as long as its limit and whatever
could be taught is; likely, texts are a quarter of that, and half of what could be taught is, until
steps are there to measure: from then on a step to come is taken for the mean of the newest ones.

A snapshot is the weights and the EMA teacher and, after the first, AdamW's two moments: 4 bytes of
each per parameter that is trained. The start, the best, the last, `run.keep_snapshots`, and one
being written.
"""

import json
from dataclasses import dataclass
from math import ceil

from pipeline.config.sections import Config
from pipeline.policy.adapter_files import config_file
from pipeline.run.run import Run

ID = 18
"""Bytes of a rollout's id and its offset."""
ROW = 200
"""Bytes of the short columns of a rollout: names, numbers, versions, reasons."""
FILE = 12_000
"""Bytes of a table's schema, padding and manifest."""
INDEX = 45
"""Bytes of a rollout in the index of a token table."""
TEXT = (8, 4)
"""Bytes of text per token: at most, likely."""
SHARE_OF_LIMIT = 0.25
SHARE_TAUGHT = 0.5
MEASURED = 8
"""Steps, the newest, by which those to come are judged."""
VOCABULARY_ENTRY = 80
"""Bytes of a token in a tokenizer's file."""


@dataclass(frozen=True)
class Facts:
    """What the configuration does not say.

    Attributes:
        parameters: that are trained, and so in every snapshot.
        vocabulary: number of tokens.
        answers: sampled per evaluation.
    """

    parameters: int
    vocabulary: int
    answers: int

    @classmethod
    def of(cls, run: Run, answers: int) -> "Facts":
        """Read them from the snapshot that every training keeps; without it, none are known."""
        start = run.snapshot_path(0)
        if not config_file(start).exists():
            return cls(0, 0, answers)
        weights = sum(
            path.stat().st_size
            for stem in ("model", "adapter_model")
            for path in start.glob(f"{stem}*.safetensors")
        )
        config = json.loads(config_file(start).read_text(encoding="utf-8"))
        return cls(weights // 4, int(config.get("vocab_size", 0)), answers)


@dataclass(frozen=True)
class Bytes:
    """A number of bytes: at most, and likely."""

    most: float
    likely: float

    def __add__(self, other: "Bytes") -> "Bytes":
        """Add both."""
        return Bytes(self.most + other.most, self.likely + other.likely)

    def times(self, factor: float) -> "Bytes":
        """Multiply both."""
        return Bytes(self.most * factor, self.likely * factor)


@dataclass(frozen=True)
class Need:
    """What a run still has to write and keep.

    Attributes:
        teacher_step: bytes of one step's teacher table.
        teacher_steps: how many of them lie on the disk at a time.
        snapshot: bytes of one snapshot after the first.
    """

    teacher: Bytes
    tables: Bytes
    evaluations: Bytes
    snapshots: Bytes
    teacher_step: Bytes
    teacher_steps: int
    snapshot: float

    @property
    def total(self) -> Bytes:
        """Return the sum."""
        return self.teacher + self.tables + self.evaluations + self.snapshots


def needed(config: Config, facts: Facts, run: Run | None = None) -> Need:
    """Return what a run needs from its start, or from where it stands."""
    done = run.steps_done() if run is not None else 0
    left = max(0, config.run.steps - done)
    teacher, others = step_bytes(config, facts)
    if run is not None and done:
        teacher, others = _measured(run, done, teacher, others)
    held = _teacher_steps(config, done)
    there = len(run.own_snapshots()) if run is not None else 0
    evaluated = len([n for n in run.steps_of("evaluations") if n <= done]) if run is not None else 0
    snapshot, first = snapshot_bytes(config, facts)
    to_come = max(0, _snapshots(config) - there)
    start = 0 if there else first
    kept = (to_come - 1 if not there else to_come) * snapshot + start
    return Need(
        teacher=teacher.times(held),
        tables=others.times(left),
        evaluations=evaluation_bytes(config, facts).times(max(0, _evaluations(config) - evaluated)),
        snapshots=Bytes(kept, kept),
        teacher_step=teacher,
        teacher_steps=held,
        snapshot=snapshot,
    )


def step_bytes(config: Config, facts: Facts) -> tuple[Bytes, Bytes]:
    """Return the bytes of a step's teacher table, and of its other tables."""
    most = _tables(config, facts, 1.0, 1.0, TEXT[0])
    likely = _tables(config, facts, SHARE_OF_LIMIT, SHARE_TAUGHT, TEXT[1])
    others = (sum(v for name, v in one.items() if name != "teacher") for one in (most, likely))
    return Bytes(most["teacher"], likely["teacher"]), Bytes(*others)


def _tables(
    config: Config, facts: Facts, of_limit: float, of_taught: float, text: int
) -> dict[str, float]:
    """Return the bytes of each table of a step."""
    route, group = config.route, config.generate.rollouts
    rollouts = config.generate.questions * group
    tokens = rollouts * config.generate.max_response_length * of_limit
    prompts = rollouts * config.data.max_prompt_length * of_limit
    demonstrated = route.max_teacher_prompt_length * of_limit
    siblings_alone = route.sources == ["sibling"] and not route.feedback_alone
    taught_by_srpo = (group - 1) / group if siblings_alone else 1.0
    could = {"grpo": 0.0, "srpo": taught_by_srpo}.get(route.method, 1.0)
    taught_rollouts = rollouts * could * of_taught
    taught = tokens * could * of_taught
    kept, width = min(route.top_k, facts.vocabulary), 2 if route.kept_dtype == "float16" else 4
    columns = 2 if route.keep_student_logprobs else 1
    row = rollouts * (ID + ROW)
    index = taught_rollouts * INDEX
    banked = of_taught if "bank" in route.sources else 0.0
    return {
        "bank": banked * (row + text * tokens + FILE),
        "rollouts": row + (8 + text) * tokens + (4 + text) * prompts + FILE,
        "verdicts": row + FILE,
        "routes": row + (4 + text) * taught_rollouts * demonstrated + FILE,
        "scores": rollouts * ID + 8 * tokens + FILE,
        "teacher": taught * (ID + 28 + kept * (4 + width * columns)) + index + FILE,
        "weights": taught * (ID + 16) + index + FILE,
        "updates": row + FILE,
    }


def evaluation_bytes(config: Config, facts: Facts) -> Bytes:
    """Return the bytes of one evaluation."""

    def bytes_of(of_limit: float, text: int) -> float:
        lengths = config.data.max_prompt_length + config.evaluate.max_response_length
        return facts.answers * (ID + 2 * ROW + (4 + text) * lengths * of_limit) + FILE

    return Bytes(bytes_of(1.0, TEXT[0]), bytes_of(SHARE_OF_LIMIT, TEXT[1]))


def snapshot_bytes(config: Config, facts: Facts) -> tuple[float, float]:
    """Return the bytes of a snapshot with an optimizer, and of the first, which has none."""
    copies = 1 if config.route.teacher == "live" else 2
    rest = VOCABULARY_ENTRY * facts.vocabulary + FILE
    return (copies + 2) * 4 * facts.parameters + rest, copies * 4 * facts.parameters + rest


def _measured(run: Run, done: int, teacher: Bytes, others: Bytes) -> tuple[Bytes, Bytes]:
    """Return the bytes of a step with the mean of the newest that are there for the likely ones."""
    sizes = {"teacher": 0.0, "others": 0.0}
    newest = range(max(0, done - MEASURED), done)
    for step in newest:
        for table in run.tables_of(step):
            path = run.table_path(table, step).with_suffix(".json")
            beside = path.stat().st_size
            name = "teacher" if table == "teacher" else "others"
            sizes[name] += run.manifest(table, step).bytes + beside
    likely = {name: total / len(newest) for name, total in sizes.items()}
    return (
        Bytes(max(teacher.most, likely["teacher"]), likely["teacher"]),
        Bytes(max(others.most, likely["others"]), likely["others"]),
    )


def _teacher_steps(config: Config, done: int) -> int:
    """Return how many teacher tables are still to come and stay at a time.

    Tables are removed when a snapshot is taken, so those since the last one lie there besides.
    """
    left = max(0, config.run.steps - done)
    keep = config.run.keep_teacher_tables
    return left if keep is None else min(left, max(keep, 1) + config.run.snapshot_every)


def _evaluations(config: Config) -> int:
    """Return how many states are evaluated: the first and the last always are."""
    return 1 + ceil(config.run.steps / config.evaluate.every)


def _snapshots(config: Config) -> int:
    """Return how many snapshots lie on the disk at a time: start, best, kept and a new one."""
    run = config.run
    states = {*range(0, run.steps, run.snapshot_every), *range(0, run.steps, config.evaluate.every)}
    return min(run.keep_snapshots + 3, len(states | {run.steps}))
