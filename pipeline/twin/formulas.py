"""The equations of docs/method.md as pure functions: a second time, as plainly as can be.

Axes: T response tokens, V vocabulary, K kept ids, J buckets (K and the rest, or V).
Everything is float64 and in nats; nothing here knows a table, a model or the code under test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.twin.routing import METHODS

DIVERGENCES = ("jsd", "forward_kl", "reverse_kl", "sampled_token")
SURVIVALS = ("off", "weight", "unnormalised", "hand_over")


@dataclass(frozen=True)
class Settings:
    """The numbers of a run that docs/method.md names.

    Attributes:
        max_teacher_prompt_length: longer teacher prompts are shortened in the tables.
        feedback: whether the teacher prompt holds the verifier's feedback.
        feedback_alone: whether feedback teaches where no source has a solution.
        sources: where solutions come from, in order.
        bank_max_age: in steps; None: any.
        templates: texts of the teacher's user message that are not the paper's.
        on_policy: whether the updated policy is the one that sampled. If not, log pi_old is the
            stored one, or else the engine's.
        early_routing: the step is of a time when `route` took a rollout that nobody could judge for
            a wrong one, let a response demonstrate that ends inside a think block, kept white space
            after thinking, and announced blank feedback.
        padding_masked: the step is of a time when padding ids' embedding rows had no gradient.
        float32_norm: the step is of a time when gradient norms were summed in float32.
        system_role: `fold`: the system's text stands before the user's.
        stop_in_text: whether responses' texts have the token that ended them, if it is no special
            one, as old tables do.
        survival: whether weights have prefix survival: off, weight, unnormalised or hand_over.
        lora_scale: a/r of adapters.
        credit_lambda, credit_steps: lambda of section 13 at step 0, and where it is 0.
        credit_clip: epsilon_w of section 13.
        base_bfloat16: whether matrices of the model under adapters are stored in bfloat16.
    """

    method: str = "srpo"
    advantage_scale: str = "none"
    success_threshold: float = 0.5
    demonstration: str = "first"
    top_k: int = 100
    beta: float = 1.0
    survival: str = "off"
    divergence: str = "jsd"
    jsd_alpha: float = 0.5
    mix_lambda: float = 0.9
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0
    tis_clip: float = 2.0
    sdpo_ratio_clip: float = 2.0
    max_teacher_prompt_length: int | None = None
    feedback: bool = False
    feedback_alone: bool = False
    sources: Sequence[str] = ("sibling",)
    bank_max_age: int | None = None
    templates: Mapping[str, str] = field(default_factory=dict)
    on_policy: bool = True
    early_routing: bool = False
    padding_masked: bool = False
    float32_norm: bool = False
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    system_role: str = "as_is"
    stop_in_text: bool = False
    lora_scale: float = 1.0
    base_bfloat16: bool = False
    credit_lambda: float = 0.5
    credit_steps: int = 50
    credit_clip: float = 0.2

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r}, expected one of {METHODS}")
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence {self.divergence!r}, expected one of {DIVERGENCES}")
        if self.survival not in SURVIVALS:
            raise ValueError(f"survival {self.survival!r}, expected one of {SURVIVALS}")
        if self.advantage_scale not in ("none", "group_std"):
            raise ValueError(f"advantage_scale {self.advantage_scale!r}")


def entropy(logp_tv: Tensor) -> Tensor:
    """Section 4: H = -sum of p log p over the whole vocabulary, [T]."""
    return -(logp_tv.exp() * logp_tv).sum(-1)


def tail(kept_tk: Tensor) -> Tensor:
    """Section 5: log of the mass outside the kept ids, log(-expm1(min(lse, -1e-7))), [T]."""
    return torch.log(-torch.expm1(torch.logsumexp(kept_tk, -1).clamp(max=-1e-7)))


def buckets(logp_tv: Tensor, ids_tk: Tensor) -> Tensor:
    """Section 5: log-probabilities of the kept ids and of the rest, [T, J]; no rest if K >= V."""
    kept = logp_tv.gather(-1, ids_tk)
    if ids_tk.shape[-1] >= logp_tv.shape[-1]:
        return kept
    return torch.cat([kept, tail(kept).unsqueeze(-1)], -1)


def kl(a_tj: Tensor, b_tj: Tensor) -> Tensor:
    """KL(a || b) = sum of a (log a - log b) over the buckets, [T]."""
    return (a_tj.exp() * (a_tj - b_tj)).sum(-1)


def divergence(name: str, alpha: float, s_tj: Tensor, q_tj: Tensor) -> Tensor:
    """Section 5: the divergence of student `s` and teacher `q` over the buckets, [T]."""
    if name == "forward_kl":
        return kl(q_tj, s_tj)
    if name == "reverse_kl":
        return kl(s_tj, q_tj)
    if name != "jsd" or not 0.0 < alpha < 1.0:
        raise ValueError(f"no divergence {name!r} with alpha = {alpha}")
    mixture = torch.log((1.0 - alpha) * s_tj.exp() + alpha * q_tj.exp())
    return (1.0 - alpha) * kl(s_tj, mixture) + alpha * kl(q_tj, mixture)


def sampled_token_loss(log_s: Tensor, log_q: Tensor) -> Tensor:
    """Section 5: stopgrad(log s(y_t) - log q(y_t)) log s(y_t), [T]; it may be negative."""
    return (log_s - log_q).detach() * log_s


def raw_weights(entropy_t: Tensor, beta: float) -> Tensor:
    """Section 6: exp(-beta H), [T]."""
    return torch.exp(-beta * entropy_t)


def normalise(raw: Sequence[Tensor]) -> list[Tensor]:
    """Section 6: divide by the mean over all the tokens of all the rollouts given."""
    if not raw:
        return []
    mean = torch.cat(list(raw)).mean()
    return [weights / mean for weights in raw]


def survival(log_q: Tensor, log_s: Tensor) -> Tensor:
    """Section 15: S_1 = 1, S_t = S_{t-1} min(1, q(y_{t-1}) / s(y_{t-1})), [T]."""
    factors = torch.exp(log_q - log_s).clamp(max=1.0).tolist()
    found, product = [], 1.0
    for factor in factors:
        found.append(product)
        product *= factor
    return torch.tensor(found, dtype=torch.float64)


def ratio(log_new: Tensor, log_old: Tensor) -> Tensor:
    """Section 7: exp of the difference, which is clamped to +-20, [T]."""
    return torch.exp((log_new - log_old).clamp(-20.0, 20.0))


def grpo_loss(
    log_new: Tensor, log_old: Tensor, advantage: float | Tensor, settings: Settings
) -> Tensor:
    """Section 7: -min(rho A, clip(rho) A), at most -c A where A < 0, [T]; without TIS.

    A may differ from token to token (section 13).
    """
    advantage = torch.as_tensor(advantage, dtype=torch.float64)
    rho = ratio(log_new, log_old)
    clipped = rho.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    loss = -torch.minimum(rho * advantage, clipped * advantage)
    if settings.dual_clip is None:
        return loss
    capped = torch.minimum(loss, -settings.dual_clip * advantage)
    return torch.where(advantage < 0.0, capped, loss)


def raw_credit(log_q: Tensor, log_s: Tensor, advantage: float) -> Tensor:
    """Section 13: w = exp(sign(A) (log q - log s)) of the sampled tokens, [T]."""
    return torch.exp((1.0 if advantage > 0 else -1.0) * (log_q - log_s))


def credit(raw: Tensor, share: float, clip: float) -> Tensor:
    """Section 13: (1 - lambda) + lambda clip(w, 1 - eps, 1 + eps), the factor of A, [T]."""
    return (1.0 - share) + share * raw.clamp(1.0 - clip, 1.0 + clip)


def tis_weight(log_old: Tensor, log_engine: Tensor, clip: float) -> Tensor:
    """Section 7: stopgrad(min(exp(log pi_old - log pi_engine), clip)), [T]."""
    return torch.exp(log_old - log_engine).clamp(max=clip).detach()


def engine_kl(gap: Tensor) -> Tensor:
    """Section 7's gap g, within +-20: exp(g) - 1 - g, an estimate of KL(engine || pi_old), [T]."""
    bounded = gap.clamp(-20.0, 20.0)
    return torch.exp(bounded) - 1.0 - bounded


def sdpo_ratio(log_new: Tensor, log_old: Tensor, clip: float) -> Tensor:
    """Section 5: stopgrad(min(exp(log s - log s_old), clip)), [T]; the same form as TIS."""
    return torch.exp(log_new - log_old).clamp(max=clip).detach()


def objective(loss_sums: Sequence[Tensor], tokens: Sequence[int]) -> Tensor:
    """Section 8: the sum of all token losses over N, N = tokens of all routed rollouts."""
    count = sum(tokens)
    total = torch.stack(list(loss_sums)).sum() if loss_sums else torch.zeros((), dtype=torch.double)
    return total / count if count else total * 0.0
