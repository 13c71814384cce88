"""What the twin holds of a step: plain records. T response tokens, V vocabulary, K kept ids."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.twin.formulas import Settings


@dataclass
class TeacherTwin:
    """Sections 4-6 for one rollout taught by the teacher."""

    student_logps: Tensor  # [T, V]
    teacher_logps: Tensor  # [T, V]
    topk_ids: Tensor  # [T, K], by falling student probability
    student_topk: Tensor  # [T, K]
    teacher_topk: Tensor  # [T, K]
    student_tail: Tensor | None  # [T]; None where K >= V
    teacher_tail: Tensor | None
    entropy: Tensor  # [T], of the teacher
    student_logprob: Tensor  # [T], of the sampled token
    teacher_logprob: Tensor
    jsd: Tensor  # [T], at alpha = 0.5
    survival: Tensor  # [T], S, whatever the setting
    raw_weights: Tensor  # [T]
    weights: Tensor  # [T]; of a rollout on route grpo: the factor of its advantage
    rounded_ids: Tensor | None = None  # [T, K], as a table in float16 has them
    rounded_logps: Tensor | None = None  # [T, K], log q at these ids as rounded there


@dataclass
class UpdateTwin:
    """Sections 7-9 for one rollout in its optimizer update; all [T] but for `loss_sum`."""

    token_losses: Tensor  # with weight, ratio, TIS and lambda, before the division by N
    loss_sum: Tensor
    ratios: Tensor  # pi / pi_old
    tis: Tensor
    logprob_gap: Tensor  # log pi_old - log pi_engine
    divergences: Tensor  # before weight, ratio and TIS; 0 without a teacher


@dataclass
class RolloutTwin:
    """All numbers of one rollout. `available` is m_i before the question of length."""

    rollout_id: str
    step: int
    group: int
    sample: int
    task: str
    prompt_id: str
    prompt_ids: list[int]
    response_ids: list[int]
    temperature: float
    sampled_logprobs: Tensor
    reward: float
    mini_batch: int
    given_prompt_ids: list[int]  # the teacher prompt of the routes table
    feedback: str | None = None  # of the verifier
    judged: bool = True  # False: the verifier gave an error
    thinking: bool = False  # whether the response ends inside a think block
    stored_logprobs: Tensor | None = None  # of the scores table; None where it has none
    correct: bool = False
    advantage: float = 0.0
    group_mean: float = 0.0
    group_std: float = 0.0
    available: bool = False
    source: str = "none"  # of what the teacher is shown
    demonstrator: str | None = None  # the rollout that it is shown, if it is one
    solution: str | None = None  # as it is shown
    route: str = "none"
    credit: float = 0.0  # lambda of section 13; 0 for all methods but rlsd
    rendered_ids: list[int] | None = None  # the prompt, by the tokenizer
    decoded: str | None = None  # the response, by the tokenizer
    teacher_prompt_text: str | None = None
    teacher_prompt_ids: list[int] | None = None
    old_logprobs: Tensor | None = None
    student_entropy: Tensor | None = None
    teacher: TeacherTwin | None = None
    update: UpdateTwin | None = None

    @property
    def taught(self) -> bool:
        """Whether the teacher has a say: route sdpo, or mix or rlsd with m_i = 1."""
        fits = self.available and bool(self.given_prompt_ids)
        distributes = self.credit > 0 and self.advantage != 0
        return fits and (self.route in ("sdpo", "mix") or distributes)

    @property
    def credited(self) -> bool:
        """Whether the teacher distributes its advantage (section 13)."""
        return self.teacher is not None and self.route == "grpo"


@dataclass
class BatchTwin:
    """Section 8 for one optimizer update."""

    tokens: int  # N
    loss: float
    gradient: dict[str, Tensor]


@dataclass
class StepTwin:
    """A recomputed step; `batches` holds the mini-batches whose parameters were known."""

    settings: Settings
    rollouts: dict[str, RolloutTwin]
    batches: dict[int, BatchTwin]
    batch_tokens: dict[int, int]  # N of every mini-batch
