"""Make up a run of real size, to measure the commands that read runs; no model is involved.

The run goes through the project's own session, stages and tables. Everything that needs no policy
is computed by the project's own code: rendering, verification, routes, teacher prompts, weights, N
and shares, manifests, versions, invariants, metrics. What would need a policy is made up:

    the engine       random words, an answer that is right as often as the question is easy, EOS
    scoring          a token's student distribution is one of a few thousand prototypes, its teacher
                     a disturbed copy: K ids around the sampled one, and a tail spread evenly over
                     all others. What the tables hold of them follows from these.
    optimizer steps  ratios and engine corrections are 1, so losses are -A, or weight x divergence;
                     the weights of the policy stay as they are, though its version moves

So `srpo check` finds nothing, but recomputing scores or updates gives other numbers.

    python benchmarks/big_run.py RUN [--steps 5] [--questions 32] [--rollouts 8] [--tokens 1000]
        [--top-k 100] [--seed 0]
"""

import argparse
import contextlib
import hashlib
import re
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

import flows.session.engines
import stages.route.stage
import stages.update.stage
from data.random_policy import write_random_policy
from flows.session.session import Session
from pipeline.config.load import validate_config
from pipeline.config.sections import Config, UpdateSection
from pipeline.forward.distributions import buckets_NC, jsd_N, log_tail_N
from pipeline.forward.scoring import Forward
from pipeline.policy.policy import Policy
from pipeline.run.step_layout import STEP_STAGES
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.seeds import derive_seed
from stages.route.scores import ScoredRollout, ScoringJob, TaughtTokens
from stages.update.batch import Rollout
from stages.update.stage import MiniBatchResult, Statistics

PROTOTYPES = 4096
WORDS = 3000
TRUNCATED, NO_NUMBER = 0.02, 0.05
"""Shares of responses that are cut at the limit, and whose answer is no number."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def generator(purpose: str, *indices: int) -> np.random.Generator:
    """Return random numbers that depend on the arguments and on nothing else."""
    return np.random.Generator(np.random.Philox(derive_seed(0, purpose, *indices)))


class Prototypes:
    """P student distributions over V ids: K log-probabilities, likeliest first, then that of each
    id outside of them."""

    def __init__(self, kept: int, vocabulary: int) -> None:
        draw = generator("prototypes", kept, vocabulary)
        self.kept, self.outside = kept, vocabulary - kept
        steepness = draw.uniform(0.5, 4.0, size=(PROTOTYPES, 1))
        likeliest = draw.normal(0, 0.5, (PROTOTYPES, kept)) - steepness * np.log(
            1 + np.arange(kept)
        )
        likeliest = -np.sort(-likeliest, axis=1)
        rest = likeliest[:, -1:] - draw.uniform(3.0, 9.0, size=(PROTOTYPES, 1))
        self.logprobs = log_softmax(np.concatenate([likeliest, rest], axis=1), self.outside)
        self.cumulated = np.cumsum(np.exp(self.logprobs[:, :-1]), axis=1)
        self.entropy = entropy(self.logprobs, self.outside)

    def of_response(self, response_ids: Sequence[int]) -> tuple[Ints, Ints]:
        """Return prototype and rank (K: outside of the K) of each token of a response."""
        digest = hashlib.sha256(np.asarray(response_ids, dtype=np.int32).tobytes()).digest()
        draw = generator("tokens", int.from_bytes(digest[:8], "big"))
        chosen = draw.integers(0, PROTOTYPES, size=len(response_ids))
        ranks = (draw.random((len(chosen), 1)) > self.cumulated[chosen]).sum(axis=1)
        return chosen, ranks


def log_softmax(logits: Floats, outside: int) -> Floats:
    """Normalise rows of K logits and one, the last, that stands for each of `outside` ids."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    mass = np.exp(shifted)
    mass[:, -1] *= outside
    return np.asarray(shifted - np.log(mass.sum(axis=1, keepdims=True)))


def entropy(logprobs: Floats, outside: int) -> Floats:
    """Return H over the full vocabulary, nats, of rows as `log_softmax` makes them."""
    terms = -np.exp(logprobs) * logprobs
    terms[:, -1] *= outside
    return np.asarray(terms.sum(axis=1))


class MadeUp:
    """What would need a policy, made up; one object for a whole run."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._prototypes: Prototypes | None = None
        self._jsd: dict[str, Floats] = {}

    def install(self) -> None:
        """Replace the engine, the scoring passes and the optimizer's steps."""
        flows.session.engines.TransformersEngine = self.engine  # type: ignore[assignment,misc]
        stages.route.stage.score_rollouts = self.score
        stages.update.stage._optimize = self.optimize

    def prototypes(self, policy: Policy) -> Prototypes:
        """Return the student's distributions, the same for the whole run."""
        if self._prototypes is None:
            self._prototypes = Prototypes(self._kept, policy.vocabulary)
        return self._prototypes

    def engine(self, policy: Policy) -> "Engine":
        """Return the engine for the policy that a stage got."""
        return Engine(policy, self.prototypes(policy))

    def score(
        self,
        policy: Policy,
        jobs: Sequence[ScoringJob],
        kept: int,
        budget: int,
        forward: Forward,
        report: Callable[[int], None],
    ) -> tuple[dict[str, ScoredRollout], int]:
        """Score the rollouts, as `stages.route.scores.score_rollouts` does; nothing is computed."""
        prototypes, words = self.prototypes(policy), len(policy.tokenizer)
        scored = {job.rollout_id: scored_rollout(prototypes, job, words) for job in jobs}
        self._jsd = {i: s.teacher.jsd_T for i, s in scored.items() if s.teacher is not None}
        return scored, 0

    def optimize(
        self,
        policy: Policy,
        rollouts: Sequence[Rollout],
        kept: int,
        settings: UpdateSection,
        report: Callable[[int], None],
        max_gap: float | None,
    ) -> MiniBatchResult:
        """Return what `stages.update.stage._optimize` would return if all ratios were 1."""
        statistics = {r.rollout_id: self._statistics(r) for r in rollouts if r.computed}
        tokens = sum(r.tokens for r in rollouts if r.route != "none")
        loss = sum(s.loss_sum for s in statistics.values()) / max(tokens, 1)
        return MiniBatchResult(tokens, 0, loss, 0.1, statistics)

    def _statistics(self, rollout: Rollout) -> Statistics:
        loss, divergence = -rollout.advantage * rollout.tokens, None
        if rollout.taught is not None:
            jsd = self._jsd[rollout.rollout_id].astype(np.float64)
            loss, divergence = float(jsd @ rollout.taught.weight_T), float(jsd.mean())
        return Statistics(loss, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, divergence)


class Engine:
    """A sampling engine that writes words, and the right answer to a share of each group."""

    name = "made-up"
    facts: ClassVar[dict[str, object]] = {}

    def __init__(self, policy: Policy, prototypes: Prototypes) -> None:
        self._policy, self._prototypes = policy, prototypes
        known = policy.tokenizer.get_vocab()
        self._words = sorted(i for text, i in known.items() if re.fullmatch("Ġ[a-z]{3,}", text))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Return one response of exactly `max_response_length` tokens for each seed."""
        size = settings.max_response_length
        return [
            [self._sample(self._answer(prompt), own[0], seed, size) for seed in own]
            for prompt, own in zip(prompts, seeds, strict=True)
        ]

    def _answer(self, prompt: Sequence[int]) -> int:
        found = re.search(r"What is (\d+) ([+-]) (\d+)\?", self._policy.decode(prompt))
        assert found is not None
        left, right = int(found[1]), int(found[3])
        return left + right if found[2] == "+" else left - right

    def _sample(self, gold: int, group: int, seed: int, size: int) -> Sample:
        draw, share = generator("response", seed), generator("ease", group).uniform(0.2, 0.65)
        answer = str(gold if draw.random() < share else gold + 1 + int(draw.integers(0, 9)))
        if draw.random() < NO_NUMBER:
            answer = "some number"
        head = self._policy.encode("<reasoning>")
        tail = self._policy.encode(f"</reasoning>\n<answer>{answer}</answer>")
        cut = draw.random() < TRUNCATED
        tail = [] if cut else [*tail, min(self._policy.eos_ids)]
        words = draw.choice(self._words, size=size - len(head) - len(tail)).tolist()
        ids = [*head, *words, *tail]
        chosen, ranks = self._prototypes.of_response(ids)
        logprobs = self._prototypes.logprobs[chosen, ranks].astype(np.float32).tolist()
        return Sample(ids, logprobs, "length" if cut else "stop")


def scored_rollout(prototypes: Prototypes, job: ScoringJob, words: int) -> ScoredRollout:
    """Return the scores of one rollout; `words` is the number of ids that mean something."""
    response = np.asarray(job.sequence.response_ids, dtype=np.int64)
    chosen, ranks = prototypes.of_response(job.sequence.response_ids)
    student = prototypes.logprobs[chosen]
    old = student[np.arange(len(ranks)), ranks].astype(np.float32)
    entropies = prototypes.entropy[chosen].astype(np.float32)
    if job.teacher_prompt_ids is None:
        return ScoredRollout(old, entropies)
    draw = generator("teacher", int(response.sum()), int(chosen.sum()))
    sharper = draw.choice([1.0, 1.3, 2.0], size=(len(ranks), 1))
    disturbed = student * sharper + draw.normal(0, 0.7, student.shape)
    teacher = log_softmax(disturbed, prototypes.outside)
    kept = [torch.from_numpy(rows[:, :-1].astype(np.float32)) for rows in (student, teacher)]
    tails = [log_tail_N(rows) for rows in kept]
    buckets = [buckets_NC(rows, tail) for rows, tail in zip(kept, tails, strict=True)]
    tokens = TaughtTokens(
        topk_ids_TK=kept_ids(response, ranks, prototypes.kept, words),
        teacher_logprobs_TK=kept[1].numpy(),
        student_logprobs_TK=kept[0].numpy(),
        teacher_tail_T=tails[1].numpy(),
        student_tail_T=tails[0].numpy(),
        entropy_T=entropy(teacher, prototypes.outside).astype(np.float32),
        teacher_logprob_T=teacher[np.arange(len(ranks)), ranks].astype(np.float32),
        student_logprob_T=old,
        jsd_T=jsd_N(buckets[0], buckets[1], 0.5).clamp(min=0).numpy(),
    )
    return ScoredRollout(old, entropies, tokens)


def kept_ids(response: Ints, ranks: Ints, kept: int, words: int) -> npt.NDArray[np.int32]:
    """Return K distinct ids per token, with the sampled one at its rank (K: not among them).

    They lie a fixed stride apart, which shares no factor with the number of ids.
    """
    stride = next(s for s in range(words // 3, words) if np.gcd(s, words) == 1)
    ids = (response[:, None] + stride * (np.arange(kept) - ranks[:, None])) % words
    return ids.astype(np.int32)


def write_policy(folder: Path) -> None:
    """Write a small policy whose tokenizer knows some thousand made-up words."""
    draw = generator("words")
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ai", "en")]
    words = [
        " ".join("".join(draw.choice(syllables, size=draw.integers(2, 4))) for _ in range(20))
        for _ in range(WORDS // 20)
    ]
    forms = ["<reasoning> </reasoning>\n<answer>17</answer>", "some number", "What is 31 + 46?"]
    write_random_policy(folder, [f" {line}" for line in words] + forms, seed=0)


def settings_of(arguments: argparse.Namespace, policy: Path) -> Config:
    """Return the configuration of the run: the paper's, on arithmetic questions."""
    return validate_config(
        {
            "run": {"steps": arguments.steps, "seed": arguments.seed, "snapshot_every": 1000},
            "data": {"task": "arithmetic", "max_prompt_length": 256},
            "model": {"path": str(policy), "device": "cpu"},
            "generate": {
                "questions": arguments.questions,
                "rollouts": arguments.rollouts,
                "max_response_length": arguments.tokens,
            },
            "route": {"top_k": arguments.top_k},
            "evaluate": {"questions": 8, "rollouts": 4, "max_response_length": 32},
        },
        "big_run",
    )


def make(arguments: argparse.Namespace) -> None:
    """Make the run, step by step."""
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder))
        config = settings_of(arguments, Path(folder))
        MadeUp(arguments.top_k).install()
        with contextlib.closing(Session.create(arguments.run, config)) as session:
            for step in range(arguments.steps):
                started = time.perf_counter()
                if step == 0:
                    session.run_stage("evaluate", 0)
                for stage in STEP_STAGES:
                    session.run_stage(stage, step)
                metrics = session.finish_step(step)
                print(
                    f"step {step}: {metrics['rollouts']} rollouts, {metrics['tokens']} tokens, "
                    f"{metrics['share_sdpo']:.0%} taught, {time.perf_counter() - started:.1f} s"
                )
            session.run_stage("evaluate", arguments.steps)


def main() -> None:
    """Read the arguments, make the run, print its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the new run")
    for name, default in (
        ("steps", 5),
        ("questions", 32),
        ("rollouts", 8),
        ("tokens", 1000),
        ("top-k", 100),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments: Any = parser.parse_args()
    started = time.perf_counter()
    make(arguments)
    size = sum(path.stat().st_size for path in arguments.run.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.run}: {size / 1e6:,.0f} MB, {time.perf_counter() - started:.0f} s, ", end="")
    print(f"peak memory {peak:,.0f} MB")


if __name__ == "__main__":
    main()
