"""Our side of a measurement: one fresh process that prints one line of JSON.

    python -m benchmarks.ours FIXTURE --mode update|memory|sample|step [--method srpo|grpo]
        [--precision float32|bfloat16] [--lora] [--steps 3] [--warmup 1] [--threads 2]
        [--micro-batch-tokens N]

    update   route + weigh + update through `Stage.run`, on canned rollouts
    memory   the same with all rollouts in one micro-batch, unless --micro-batch-tokens is given
    sample   the transformers engine alone; nothing stops early
    step     generate, verify, route, weigh and update through `run_stage`, tables committed to
             disk. Sampling counts for its time; the update learns from canned rollouts

Everything that happens in these stages is inside the timed part: decisions, teacher prompts,
tables, scoring, losses, clipping, the optimizer's step, the EMA and its checksum. The engine's
log-probabilities of canned rollouts are made by the trainer beforehand, so that the correction
between engine and trainer is about 1.
"""

import argparse
import ctypes
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.clock import Clock
from benchmarks.fixture import CannedEngine, Fixture, KnownRewards, expect_full_length
from flows.session.new_run import teacher_settings
from pipeline.config.load import validate_config
from pipeline.config.sections import Config, RouteSection
from pipeline.distributed.process_setup import configure_process
from pipeline.machine.peak_memory import PeakMemory
from pipeline.policy.snapshots import open_policy
from pipeline.run.run import Run
from pipeline.sampling.engine import Sample, sampling_settings
from pipeline.sampling.transformers_engine import TransformersEngine
from pipeline.stage.contract import Handles, silent
from pipeline.stage.runner import run_stage
from pipeline.tables.arrow_writing import Writer
from pipeline.task import Verifier
from stages.generate import STAGE as GENERATE
from stages.route import STAGE as ROUTE
from stages.update import STAGE as UPDATE
from stages.verify import STAGE as VERIFY
from stages.weigh import STAGE as WEIGH

MODES = ("update", "memory", "sample", "step")
LEARNING = (ROUTE, WEIGH, UPDATE)
EVERYTHING_AT_ONCE = 10**7
Tables = dict[str, pa.Table]


class Job(NamedTuple):
    """What to measure.

    Attributes:
        questions: questions per step.
        micro_batch_tokens: budget of a pass; None: the configuration's default.
        lora: train adapters of the default rank on a float32 base.
    """

    fixture: Path
    mode: str
    method: str = "srpo"
    precision: str = "float32"
    steps: int = 3
    warmup: int = 1
    threads: int = 2
    questions: int = 8
    micro_batch_tokens: int | None = None
    lora: bool = False


class Bench:
    """A policy over a fixture, ready to run the stages of one step after another."""

    def __init__(self, job: Job) -> None:
        configure_process(job.threads)
        self.job, self.fixture = job, Fixture(job.fixture)
        self.config = config_of(job, self.fixture)
        teacher = teacher_settings(self.config)
        self.policy = open_policy(str(job.fixture), self.config.model, teacher)
        self.policy.eos_ids = frozenset()  # nothing may stop early
        self._samples = [self._canned(step) for step in range(job.warmup + job.steps)]
        return_free_memory()

    def handles(self, step: int, rehearse: bool = False) -> Handles:
        """Return what the stages of a step may use."""
        rehearsal = TransformersEngine(self.policy) if rehearse else None
        return Handles(
            seed=0,
            step=step,
            tasks=["benchmark"] * self.job.questions,
            questions=self.fixture.questions(step, self.job.questions),
            policy=self.policy,
            engine=CannedEngine(self._samples[step], rehearsal),
            verifiers=self._verifiers(step),
        )

    def _verifiers(self, step: int) -> dict[str, Verifier]:
        rewards = self.fixture.rewards(step, self.job.questions)
        return {"benchmark": Verifier("known/1", KnownRewards(rewards))}

    def given(self, handles: Handles) -> Tables:
        """Return the tables that route starts from: canned rollouts and their verdicts."""
        tables: Tables = {}
        for stage in (GENERATE, VERIFY):
            tables.update(stage.run(tables, self.config, handles).tables)
        return tables

    def finish(self, step: int) -> None:
        """Set the policy's version after an update that ran outside of a run folder."""
        self.policy.finish_update(f"{step + 1:06d}-benchmark")

    def _canned(self, step: int) -> list[list[Sample]]:
        """Return a step's canned rollouts, with log-probabilities by the initial policy."""
        completions = self.fixture.completions(step, self.job.questions)
        blank = [[Sample(ids, [0.0] * len(ids), "length") for ids in own] for own in completions]
        route = RouteSection(method="grpo", rescore="all")
        config = self.config.model_copy(update={"route": route})
        handles = Handles(
            seed=0,
            step=step,
            tasks=["benchmark"] * self.job.questions,
            questions=self.fixture.questions(step, self.job.questions),
            policy=self.policy,
            engine=CannedEngine(blank),
            verifiers=self._verifiers(step),
        )
        scores = ROUTE.run(self.given(handles), config, handles).tables["scores"]
        logprobs = iter(scores.column("old_logprobs").to_pylist())
        return [[s._replace(logprobs=next(logprobs)) for s in own] for own in blank]


def config_of(job: Job, fixture: Fixture) -> Config:
    """Return the settings that both sides share: K = 100, EMA 0.05, JSD, constant rate 1e-6."""
    size = job.micro_batch_tokens
    budget = {} if size is None else {"micro_batch_tokens": size}
    group, length = fixture.meta["group"], fixture.meta["completion_tokens"]
    return validate_config(
        {
            "run": {"threads": job.threads},
            "data": {"task": "benchmark"},
            "model": {
                "path": str(job.fixture),
                "device": "cpu",
                "precision": job.precision,
                **({"lora": {}} if job.lora else {}),
            },
            "generate": {
                "questions": job.questions,
                "rollouts": group,
                "max_response_length": length,
            },
            "route": {
                "method": job.method,
                "top_k": 100,
                "teacher": "live" if job.method == "grpo" else "ema",  # as the presets say
                "teacher_rate": 0.05,
                **budget,
            },
            "update": {"learning_rate": 1e-6, "warmup_steps": 0, **budget},
        },
        "benchmark",
    )


def return_free_memory() -> None:
    """Return freed memory to the system, so that peaks are those of the stages."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def measure(job: Job) -> dict[str, Any]:
    """Run a job in this process and return its figures."""
    if job.mode == "memory" and job.micro_batch_tokens is None:
        job = job._replace(micro_batch_tokens=EVERYTHING_AT_ONCE)
    bench, clock = Bench(job), Clock()
    run = {"sample": _sample, "step": _steps}.get(job.mode, _update)
    found = run(bench, clock)
    return {
        **{k: v for k, v in job._asdict().items() if k != "fixture"},
        "fixture": str(job.fixture),
        **clock.summary(job.warmup),
        **found,
        "load1": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
    }


def _update(bench: Bench, clock: Clock) -> dict[str, Any]:
    """Time route, weigh and update apart from the store, and note their peak memory."""
    peaks: dict[str, float] = {}
    facts: list[dict[str, Any]] = []
    for step in range(bench.job.warmup + bench.job.steps):
        handles = bench.handles(step)
        tables = bench.given(handles)
        clock.next_step()
        for stage in LEARNING:
            memory = PeakMemory()
            with clock.phase(stage.name):
                output = stage.run(tables, bench.config, handles)
            tables.update(output.tables)
            if step >= bench.job.warmup:
                peaks[stage.name] = max(peaks.get(stage.name, 0), round(memory.megabytes()))
        bench.finish(step)
        facts.append(_facts(output.facts, tables))
    peaks["all"] = max(peaks.values())
    return {"peak_mb": peaks, "by_step": facts}


def _sample(bench: Bench, clock: Clock) -> dict[str, Any]:
    """Time the engine alone."""
    engine, settings = TransformersEngine(bench.policy), sampling_settings(bench.config.generate)
    for step in range(bench.job.warmup + bench.job.steps):
        questions = bench.fixture.questions(step, bench.job.questions)
        prompts = [bench.policy.render(q.messages)[1] for q in questions]
        group = bench.config.generate.rollouts
        first = step * len(prompts)
        seeds = [[(first + i) * group + j for j in range(group)] for i in range(len(prompts))]
        clock.next_step()
        with clock.phase("sample"):
            drawn = engine.sample(prompts, seeds, settings, silent)
        expect_full_length(drawn, settings.max_response_length)
    return {"tokens": sum(len(s.response_ids) for group in drawn for s in group)}


def _steps(bench: Bench, clock: Clock) -> dict[str, Any]:
    """Time whole steps; all tables of one are on disk when its update ends, as in training."""
    facts = []
    with tempfile.TemporaryDirectory() as scratch, Writer() as writer:
        run = Run.create(Path(scratch) / "run", bench.config, {})
        for step in range(bench.job.warmup + bench.job.steps):
            handles = bench.handles(step, rehearse=True)
            clock.next_step()
            for stage in (GENERATE, VERIFY, *LEARNING):
                with clock.phase(stage.name):
                    run_stage(run, stage, handles, writer)
            tables = {name: run.read(name, step) for name in ("rollouts", "routes", "updates")}
            facts.append(_facts(run.manifest("updates", step).facts, tables))
        size = sum(f.stat().st_size for f in run.root.rglob("*") if f.is_file())
    return {"by_step": facts, "written_mb": round(size / 1e6, 1)}


def _facts(facts: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return facts that show that a step did the work it should."""
    updates, corrections = tables["updates"], tables["updates"].column("mean_tis").drop_null()
    gaps = [abs(tis - 1) for tis in corrections.to_pylist()]
    routes = updates.column("route").to_pylist()
    return {
        "loss": facts["loss"],
        "grad_norm": facts["grad_norm"],
        "rollouts": updates.num_rows,
        "computed": pc.sum(updates.column("computed")).as_py(),
        "sdpo": routes.count("sdpo"),
        "largest_tis_gap": max(gaps, default=0.0),
    }


def main() -> None:
    """Read the arguments, measure, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixture", type=Path, help="folder of the fixture")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--method", default="srpo", choices=("srpo", "grpo"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--lora", action="store_true", help="train adapters (model.lora)")
    for name, default in (("steps", 3), ("warmup", 1), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--micro-batch-tokens", type=int, help="budget of a pass")
    print(json.dumps(measure(Job(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
