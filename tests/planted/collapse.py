"""Make a run whose policy seems to collapse at a known step, to see whether anybody notices.

Everything but the sampling engine is the real thing: questions, prompts, verifier, routes, the
teacher's scores, weights, updates, evaluations, store and records. The engine writes what a policy
would write that solves some sums and not others, at lengths and with slips of form that vary. From
`onset` on, more from step to step, it does what the collapse says:

    none     nothing
    format   answers lose their <answer> at temperatures below 1, where evaluations sample; at the
             training's temperature all stays as it was, and so does the reward
    shrink   correct responses, which demonstrate, become short; wrong ones stay as they are

    python -m tests.planted.collapse format RUN [--seed 0] [--onset 7] [--steps 12]
"""

import argparse
import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from data.arithmetic import Problem
from data.registry import file_digest, judge, open_task
from flows.session.session import Session
from flows.session.stage_runner import STAGES
from pipeline.config.load import load_config
from pipeline.forward.packing import TokenSequence, consecutive_slices
from pipeline.forward.scoring import score_student
from pipeline.policy.policy import Policy
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.seeds import derive_seed
from pipeline.stage.contract import Handles
from pipeline.stage.runner import run_stage
from pipeline.task import Verifier
from pipeline.verification.pool import VerifierPool

Collapse = Literal["none", "format", "shrink"]
RAMP = (0.4, 0.7, 0.95)
"""How far a collapse has come at its onset, a step later, and then."""
EASE = (0.2, 0.7)
"""How often a question is solved, from the hardest to the easiest."""
FORMLESS = 0.03
"""Of responses, at all times."""
REASONING = (20, 44)
"""Words of it, fewest and most."""
WORDS = (" units", " tens", " plus", " so", " then", " ones", " carry")

SETTINGS = (
    "run.threads=1",
    "run.snapshot_every=5",
    "generate.questions=8",
    "generate.rollouts=8",
    "update.learning_rate=1e-7",  # the policy stays what it is: the engine does not ask it
    "evaluate.every=2",
    "evaluate.questions=24",
    "evaluate.rollouts=2",
    "verify.workers=1",
)


class PlantedEngine:
    """Writes the responses; `step` is set by whoever makes the run."""

    name = "planted"
    facts: ClassVar[dict[str, object]] = {}

    def __init__(self, policy: Policy, collapse: Collapse, onset: int, step: int) -> None:
        self._policy, self._collapse = policy, collapse
        since = step - onset
        self._far = 0.0 if since < 0 else RAMP[min(since, len(RAMP) - 1)]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Return a response for each seed, with the policy's own log-probabilities."""
        written = [
            (list(prompt), self._response(prompt, seed, own[0], settings.temperature < 1))
            for prompt, own in zip(prompts, seeds, strict=True)
            for seed in own
        ]
        sequences = [
            TokenSequence(prompt, [*self._policy.encode(text), min(self._policy.eos_ids)])
            for prompt, text in written
        ]
        samples = iter(self._scored(sequences, settings.temperature))
        return [[next(samples) for _ in own] for own in seeds]

    def _scored(self, sequences: list[TokenSequence], temperature: float) -> list[Sample]:
        lengths = [len(s.response_ids) for s in sequences]
        temperature_N = torch.full((sum(lengths),), temperature)
        policy = self._policy
        scores = score_student(policy.model, sequences, temperature_N, 1, policy.forward(256.0))
        logprobs = scores.logprob_N.tolist()
        return [
            Sample(sequence.response_ids, logprobs[part], "stop")
            for sequence, part in zip(sequences, consecutive_slices(lengths), strict=True)
        ]

    def _response(self, prompt: Sequence[int], seed: int, group: int, evaluated: bool) -> str:
        found = re.search(r"What is (\d+) ([+-]) (\d+)\?", self._policy.decode(prompt))
        assert found is not None
        problem = Problem(int(found[1]), "+" if found[2] == "+" else "-", int(found[3]))
        draw = np.random.default_rng(seed)
        ease = np.random.default_rng(group).uniform(*EASE)
        right = bool(draw.random() < ease)
        words = int(draw.integers(*REASONING))
        if self._collapse == "shrink" and right:
            words = round(words * (1 - self._far))
        reasoning = "".join(draw.choice(WORDS, size=words))
        answer = problem.answer if right else problem.answer + int(draw.integers(1, 9))
        far = self._far if self._collapse == "format" and evaluated else 0.0
        ending = (
            f" {answer}" if draw.random() < max(FORMLESS, far) else f"<answer>{answer}</answer>"
        )
        return f"<reasoning>{reasoning}</reasoning>{ending}"


def make(root: Path, collapse: Collapse, seed: int, onset: int = 7, steps: int = 12) -> Run:
    """Make the run, step by step, as a training does."""
    config = load_config("demo", [*SETTINGS, f"run.steps={steps}", f"run.seed={seed}"])
    task = config.data.title
    pool = VerifierPool(judge, task, 1, 10.0, config.verify.memory_mb, prepare=open_task)
    with contextlib.closing(Session.create(root, config)) as session, contextlib.closing(pool):

        def sampled(stage: str, step: int) -> None:
            policy = session.prepare(step)
            of = session.questions.of_evaluation if stage == "evaluate" else None
            asked = of(config) if of else session.questions.of_step(config, step)
            handles = Handles(
                seed=derive_seed(seed, "planted"),
                step=step,
                verifier_digest=file_digest(task),
                questions=asked.questions,
                tasks=asked.tasks,
                policy=policy,
                engine=PlantedEngine(policy, collapse, onset, step),
                verifiers={task: Verifier(open_task(task).VERIFIER, pool)},
            )
            run_stage(session.run, STAGES[stage], handles)

        for step in range(steps):
            if session.evaluation_due(step):
                sampled("evaluate", step)
            if session.snapshot_due(step):
                session.snapshot(step)
            sampled("generate", step)
            for stage in STEP_STAGES[1:]:
                session.run_stage(stage, step)
            session.finish_step(step)
        return session.run


def main() -> None:
    """Make one and print its alarms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("collapse", choices=get_args(Collapse))
    parser.add_argument("run", type=Path, help="folder of the new run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--onset", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    run = make(given.run, given.collapse, given.seed, given.onset, given.steps)
    for step in range(run.steps_done()):
        for alarm in run.metrics(step)["alarms"]:
            print(f"step {step}: {alarm}")


if __name__ == "__main__":
    main()
