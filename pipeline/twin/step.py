"""One step of a run, recomputed from docs/method.md alone: float64, one rollout at a time.

    sections 1-3  rewards -> c, advantages, sibling, m, route, teacher prompt
    sections 4-6  starting policy and teacher -> log-probabilities, entropies, divergence, weights
    section 15    prefix survival in these weights and losses
    sections 7-9  per mini-batch: token losses, N, the loss and its gradient
    section 13    log-probabilities of the sampled tokens -> factors of the advantage
    section 14    with adapters: merged weights in, the gradient at A and B out

The code under test is never imported. Axes: T response tokens, V vocabulary, K kept ids.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline.twin import formulas, merging, routing
from pipeline.twin.float16_tables import read_rounded, teacher_buckets
from pipeline.twin.formulas import Settings
from pipeline.twin.inputs import BatchTwin, RolloutTwin, StepTwin, TeacherTwin, UpdateTwin

State = Mapping[str, Tensor]
Offered = Mapping[tuple[str, str, str], str]


class _KeepFloat64(TorchFunctionMode):
    """Stay in float64 where transformers casts to float32: inside RMSNorm and eager softmax.

    The rotary angles, made by `.float()`, stay in float32, as for every dtype of the model.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        double = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if double and torch.float32 in (*args[1:], kwargs.get("dtype")):
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs |= {"dtype": torch.float64} if "dtype" in kwargs else {}
        return func(*args, **kwargs)


def _open_model(policy_dir: Path, settings: Settings) -> torch.nn.Module:
    """Open a policy in float64. Section 8: embedding rows of padding ids have gradients, too."""
    model = AutoModelForCausalLM.from_pretrained(
        str(policy_dir),
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
    )
    opened: torch.nn.Module = model.double().eval()
    for module in opened.modules():
        if isinstance(module, torch.nn.Embedding) and not settings.padding_masked:
            module.padding_idx = None
    for parameter in opened.parameters():
        parameter.data = merging.as_stored(parameter.data, settings.base_bfloat16)
    return opened


def _load_state(model: torch.nn.Module, state: State) -> None:
    """Put `state` into the model; only the second name of a tied parameter may be missing."""
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    lost = set(missing) & {name for name, _ in model.named_parameters()}
    if lost or unexpected:
        raise ValueError(f"state dict: missing {sorted(lost)}, unexpected {unexpected}")


def _logits(model: torch.nn.Module, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Return the logits that predict each response token, [T, V], before the temperature."""
    with _KeepFloat64():
        found: Tensor = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
    if found.dtype != torch.float64:
        raise ValueError(f"logits in {found.dtype}, expected float64")
    return found[len(prompt) - 1 : len(prompt) + len(response) - 1]


def _logps(logits_tv: Tensor, temperature: float) -> Tensor:
    """Return the log-softmax of logits over temperature, over the whole vocabulary, [T, V]."""
    return torch.log_softmax(logits_tv / temperature, -1)


def _sampled(logps_tv: Tensor, response: Sequence[int]) -> Tensor:
    return logps_tv.gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)


def _read_rollouts(tables: Mapping[str, pa.Table]) -> list[RolloutTwin]:
    verdicts = {row["rollout_id"]: row for row in tables["verdicts"].to_pylist()}
    routes = {row["rollout_id"]: row for row in tables["routes"].to_pylist()}
    scores = tables["scores"].to_pylist() if "scores" in tables else []
    stored = {row["rollout_id"]: row["old_logprobs"] for row in scores if row["old_logprobs"]}
    return [
        RolloutTwin(
            rollout_id=row["rollout_id"],
            step=row.get("step", 0),
            group=row["group"],
            sample=row["sample"],
            task=row.get("task", ""),
            prompt_id=row.get("prompt_id", ""),
            prompt_ids=row["prompt_ids"],
            response_ids=row["response_ids"],
            temperature=row["temperature"],
            sampled_logprobs=_float64(row["sampled_logprobs"]),
            reward=verdicts[row["rollout_id"]]["reward"],
            mini_batch=routes[row["rollout_id"]]["mini_batch"],
            given_prompt_ids=routes[row["rollout_id"]]["teacher_prompt_ids"],
            feedback=verdicts[row["rollout_id"]].get("feedback"),
            judged=verdicts[row["rollout_id"]].get("error") is None,
            stored_logprobs=_float64(stored[name])
            if (name := row["rollout_id"]) in stored
            else None,
        )
        for row in tables["rollouts"].to_pylist()
    ]


def _float64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _route(
    rollouts: Sequence[RolloutTwin],
    settings: Settings,
    bank: Sequence[Mapping[str, Any]],
    offered: Offered,
) -> None:
    """Sections 1-3, 9 and 12: correctness, advantages, teachers and routes, group by group."""
    groups: dict[int, list[RolloutTwin]] = {}
    for rollout in sorted(rollouts, key=lambda row: (row.group, row.sample)):
        groups.setdefault(rollout.group, []).append(rollout)
    for group in groups.values():
        rewards = [row.reward for row in group]
        judged = [row.judged or settings.early_routing for row in group]
        correct = [reward >= settings.success_threshold for reward in rewards]
        able = [
            correct[j] and judged[j] and not (row.thinking and not settings.early_routing)
            for j, row in enumerate(group)
        ]
        lengths = [len(row.response_ids) for row in group]
        mean, std, advantages = routing.group_advantages(rewards, settings.advantage_scale, judged)
        for index, row in enumerate(group):
            row.correct, row.advantage = correct[index], advantages[index]
            row.group_mean, row.group_std = mean, std
            sibling = routing.sibling_of(settings.demonstration, able, lengths, index)
            if judged[index]:
                _teach(row, None if sibling is None else group[sibling], settings, bank, offered)
            row.available = row.source != "none"
            fits = row.available and bool(row.given_prompt_ids)
            row.route = routing.route_of(settings.method, row.correct, fits, judged[index])
            if settings.method == "rlsd":
                start, steps = settings.credit_lambda, settings.credit_steps
                row.credit = routing.credit_at(row.step, start, steps)


def _teach(
    row: RolloutTwin,
    sibling: RolloutTwin | None,
    settings: Settings,
    bank: Sequence[Mapping[str, Any]],
    offered: Offered,
) -> None:
    """Section 12: the first source that has a solution gives it; else feedback, if it may."""
    for source in settings.sources:
        if source == "sibling" and sibling is not None:
            row.demonstrator, row.solution = sibling.rollout_id, sibling.decoded or ""
        elif source == "bank":
            question = (row.task, row.prompt_id)
            kept = routing.banked(bank, question, row.step, settings.bank_max_age)
            if kept is not None:
                row.demonstrator, row.solution = kept["rollout_id"], kept["response_text"]
        else:
            row.solution = offered.get((source, row.task, row.prompt_id))
        if row.solution is not None:
            if row.demonstrator is not None:
                row.solution = routing.without_thinking(row.solution, settings.early_routing)
            row.source = source
            return
    if settings.feedback_alone and (row.feedback or "").strip():
        row.source = "feedback"


class _Texts:
    """Section 2: texts of a step as the tokenizer makes them, to compare with and to route by."""

    def __init__(self, table: pa.Table, tokenizer: Any, settings: Settings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        ids, messages = (table[name].to_pylist() for name in ("rollout_id", "messages"))
        self._turns = {n: [dict(t) for t in turns] for n, turns in zip(ids, messages, strict=True)}
        self._reasons = dict(zip(ids, table["finish_reason"].to_pylist(), strict=True))

    def _rendered(self, turns: Sequence[Mapping[str, str]]) -> tuple[str, list[int]]:
        random.seed(0)  # a template's chance is the same at every rendering
        turns = routing.folded(turns) if self._settings.system_role == "fold" else turns
        text: str = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **self._settings.chat_template_kwargs
        )
        return text, self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def read(self, row: RolloutTwin) -> None:
        """Render a rollout's prompt and decode its response; see whether it ends thinking."""
        ended = self._reasons[row.rollout_id] == "stop" and not self._settings.stop_in_text
        ids = row.response_ids[:-1] if ended else row.response_ids
        row.decoded = _decoded(self._tokenizer, ids)
        text, row.rendered_ids = self._rendered(self._turns[row.rollout_id])
        row.thinking = routing.ends_thinking(row.decoded, text.rstrip().endswith("<think>"))

    def render_teacher(self, row: RolloutTwin) -> None:
        """Render a rollout's teacher prompt, which is never shortened here."""
        turns = [dict(turn) for turn in self._turns[row.rollout_id]]
        last = max(index for index, turn in enumerate(turns) if turn["role"] == "user")
        told = self._settings.feedback or row.solution is None
        turns[last]["content"] = routing.teacher_question(
            turns[last]["content"],
            row.solution,
            row.feedback if told else None,
            self._settings.early_routing,
            self._settings.templates,
        )
        row.teacher_prompt_text, row.teacher_prompt_ids = self._rendered(turns)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """A response without special tokens, tags of think blocks excepted."""
    tags = ("<think>", "</think>")
    added = tokenizer.added_tokens_decoder
    kept = {i: str(t) for i, t in added.items() if t.special and str(t) in tags}
    text, start = "", 0
    for end in [*(place for place, i in enumerate(ids) if i in kept), len(ids)]:
        text += tokenizer.decode(ids[start:end], skip_special_tokens=True)
        text += kept[ids[end]] if end < len(ids) else ""
        start = end + 1
    return text


def _teacher_row(
    row: RolloutTwin, student: Tensor, teacher: Tensor, settings: Settings
) -> TeacherTwin:
    """Sections 4-6, 13 and 15 from both log-probabilities, [T, V].

    Weights that have a mean per batch are set later.
    """
    ids = student.topk(min(settings.top_k, student.shape[-1]), dim=-1).indices
    whole = ids.shape[-1] == student.shape[-1]
    student_topk, teacher_topk = student.gather(-1, ids), teacher.gather(-1, ids)
    entropy = formulas.entropy(teacher)
    beta = settings.beta if settings.method == "srpo" else 0.0
    both = formulas.buckets(student, ids), formulas.buckets(teacher, ids)
    log_s, log_q = (_sampled(logps, row.response_ids) for logps in (student, teacher))
    raw, survival = formulas.raw_weights(entropy, beta), formulas.survival(log_q, log_s)
    raw = raw * survival if settings.survival == "weight" else raw
    weights = torch.ones_like(raw)
    if row.route == "grpo":
        raw = formulas.raw_credit(log_q, log_s, row.advantage)
        weights = formulas.credit(raw, row.credit, settings.credit_clip)
    return TeacherTwin(
        student_logps=student,
        teacher_logps=teacher,
        topk_ids=ids,
        student_topk=student_topk,
        teacher_topk=teacher_topk,
        student_tail=None if whole else formulas.tail(student_topk),
        teacher_tail=None if whole else formulas.tail(teacher_topk),
        entropy=entropy,
        student_logprob=log_s,
        teacher_logprob=log_q,
        jsd=formulas.divergence("jsd", 0.5, *both),
        survival=survival,
        raw_weights=raw,
        weights=weights,
    )


@torch.no_grad()
def _score(
    rollouts: Sequence[RolloutTwin],
    model: torch.nn.Module,
    policy: State,
    teacher: Sequence[tuple[State, float]],
    settings: Settings,
    progress: Callable[[int], None],
) -> None:
    """Sections 4-6: all passes at the step's start; the teacher's logits are a weighted sum."""
    mixed: dict[str, Tensor] = {}
    for state, coefficient in teacher:
        _load_state(model, state)
        for row in rollouts:
            if row.taught:
                part = coefficient * _logits(model, row.given_prompt_ids, row.response_ids)
                mixed[row.rollout_id] = mixed.get(row.rollout_id, 0.0) + part
    _load_state(model, policy)
    for row in rollouts:
        student = _logps(_logits(model, row.prompt_ids, row.response_ids), row.temperature)
        row.old_logprobs = _sampled(student, row.response_ids)
        row.student_entropy = formulas.entropy(student)
        if row.taught:
            mixture = _logps(mixed[row.rollout_id], row.temperature)
            row.teacher = _teacher_row(row, student, mixture, settings)
        progress(1)
    for batch in {row.mini_batch for row in rollouts}:
        members = [row for row in rollouts if row.mini_batch == batch and not row.credited]
        taught = [row.teacher for row in members if row.teacher]
        normalised = formulas.normalise([teacher_row.raw_weights for teacher_row in taught])
        for teacher_row, weights in zip(taught, normalised, strict=True):
            lost = settings.survival in ("unnormalised", "hand_over")
            teacher_row.weights = weights * teacher_row.survival if lost else weights


def _old_logprobs(
    row: RolloutTwin, new: Tensor, single: bool, settings: Settings
) -> tuple[Tensor, bool]:
    """Section 7: log pi_old, [T], and whether it is the trainer's own, so that TIS applies."""
    if settings.on_policy:
        old = new if single else row.old_logprobs
        assert old is not None
        return old.detach(), True
    if row.stored_logprobs is not None:
        return row.stored_logprobs, True
    return row.sampled_logprobs, False


def _token_losses(
    row: RolloutTwin, logps_tv: Tensor, single: bool, settings: Settings
) -> UpdateTwin:
    """Sections 5, 7, 9, 13 and 15: a rollout's token losses under the current policy, [T, V]."""
    new = _sampled(logps_tv, row.response_ids)
    old, own = _old_logprobs(row, new, single, settings)
    tis = formulas.tis_weight(old, row.sampled_logprobs, settings.tis_clip)
    tis = tis if own else torch.ones_like(tis)
    distilled = divergences = torch.zeros_like(new)
    advantage: float | Tensor = row.advantage
    if row.teacher is not None and row.credited:
        advantage = row.advantage * row.teacher.weights
    elif row.teacher is not None:
        if settings.divergence == "sampled_token":
            losses = formulas.sampled_token_loss(new, row.teacher.teacher_logprob)
        else:
            ids, q_tj = teacher_buckets(row.teacher)
            s_tj = formulas.buckets(logps_tv, ids)
            losses = formulas.divergence(settings.divergence, settings.jsd_alpha, s_tj, q_tj)
            # Rounded rows don't sum to 1, so a divergence close to 0 can come out negative.
            losses = losses + (losses.clamp(min=0.0) - losses).detach()
        divergences = losses.detach()
        corrected = losses * formulas.sdpo_ratio(new, old, settings.sdpo_ratio_clip)
        distilled = row.teacher.weights * corrected * tis
    share = {"grpo": 1.0, "mix": settings.mix_lambda, "sdpo": 0.0}[row.route]
    reinforced = formulas.grpo_loss(new, old, advantage, settings) * tis
    losses = share * reinforced + (1.0 - share) * distilled
    if settings.survival == "hand_over" and row.teacher is not None:
        losses = losses + (1.0 - row.teacher.survival) * reinforced
    gap = (old - row.sampled_logprobs).detach()
    ratios = formulas.ratio(new, old).detach()
    return UpdateTwin(losses, losses.sum(), ratios, tis, gap, divergences)


def _mini_batch(
    rollouts: Sequence[RolloutTwin],
    model: torch.nn.Module,
    single: bool,
    settings: Settings,
    progress: Callable[[int], None],
) -> BatchTwin:
    """Section 8: N, the loss and its gradient at the parameters that `model` holds."""
    model.zero_grad()
    tokens = sum(len(row.response_ids) for row in rollouts if row.route != "none")
    loss = 0.0
    for row in rollouts:
        progress(1)
        if row.route == "none" or not row.response_ids:
            continue
        logps = _logps(_logits(model, row.prompt_ids, row.response_ids), row.temperature)
        row.update = _token_losses(row, logps, single, settings)
        part = formulas.objective([row.update.loss_sum], [tokens])
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.item()
        row.update.token_losses = row.update.token_losses.detach()
        row.update.loss_sum = row.update.loss_sum.detach()
    gradient = {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in model.named_parameters()
    }
    return BatchTwin(tokens, loss, gradient)


def recompute(
    tables: Mapping[str, pa.Table],
    policy_dir: Path,
    teacher: Sequence[tuple[State, float]],
    settings: Settings,
    params_before: Mapping[int, State] | None = None,
    tokenizer_dir: Path | None = None,
    progress: Callable[[int], None] = lambda passes: None,
    start: State | None = None,
    offered: Offered | None = None,
) -> StepTwin:
    """Recompute a step from its rollouts, verdicts and routes tables.

    Args:
        tables: By name. Besides those three, `bank` is read if it is a source, the stored log
            pi_old of `scores` if the step is off-policy, rows of `teacher` if they are in float16.
        policy_dir: Hugging Face folder of the policy that starts the step, or of the model under
            its adapters.
        teacher: State dicts with coefficients; the teacher's logits are the weighted sum.
        settings: The numbers of the run.
        params_before: Float32 parameters just before each optimizer update. The update with the
            lowest number starts at `policy_dir` and needs none; others without any are left out.
        tokenizer_dir: Folder of the tokenizer where it is not `policy_dir`.
        progress: Called with 1 after each rollout that was scored or learned from.
        start: A and B that start the step. All other states are then of A and B, too.
        offered: Solutions and gold answers of tasks, by source, task and question.
    """
    rollouts = _read_rollouts(tables)
    by_id = {row.rollout_id: row for row in rollouts}
    folder = str(tokenizer_dir or policy_dir)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    texts = _Texts(tables["rollouts"], tokenizer, settings)
    for row in rollouts:
        texts.read(row)
    bank = tables["bank"].to_pylist() if "bank" in tables else []
    _route(rollouts, settings, bank, offered or {})
    for row in rollouts:
        if row.available:
            texts.render_teacher(row)
    model = _open_model(policy_dir, settings)
    base = {name: value.detach().clone() for name, value in model.named_parameters()}

    def whole(state: State) -> State:
        """Return all weights of a state, merged if it is of adapters."""
        if start is None:
            return state
        return {**base, **merging.merged(base, state, settings.lora_scale)}

    policy = base if start is None else start
    teacher = [(whole(state), coefficient) for state, coefficient in teacher]
    _score(rollouts, model, whole(policy), teacher, settings, progress)
    if "teacher" in tables:
        read_rounded(rollouts, tables["teacher"])
    numbers = sorted({row.mini_batch for row in rollouts})
    known: dict[int, State] = {numbers[0]: policy, **(params_before or {})} if numbers else {}
    batches, tokens = {}, {}
    for number in numbers:
        members = [row for row in rollouts if row.mini_batch == number]
        tokens[number] = sum(len(row.response_ids) for row in members if row.route != "none")
        if number in known:
            state, single = known[number], len(numbers) == 1
            _load_state(model, whole(state))
            batches[number] = batch = _mini_batch(members, model, single, settings, progress)
            if start is not None:
                batch.gradient = merging.gradient_of_adapters(
                    state, batch.gradient, settings.lora_scale
                )
    return StepTwin(settings, by_id, batches, tokens)
