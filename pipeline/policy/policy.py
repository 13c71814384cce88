"""The policy: network, tokenizer, teacher and optimizer, resident or opened from a snapshot.

Weights, teacher and optimizer state are float32, whatever precision forward passes run in; only a
frozen base may be stored in bfloat16. The teacher of a step is fixed when the step starts; it moves
in `advance_teacher`, once per step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.config.field_types import Later, Section
from pipeline.config.sections import ModelSection, TeacherKind
from pipeline.distributed import ranks
from pipeline.distributed.sharding import (
    ExactProducts,
    Spread,
    copied,
    is_spread,
    local,
    placed,
    reshard,
    shard,
)
from pipeline.errors import PolicyError
from pipeline.forward.attention import UnsupportedAttention, install
from pipeline.forward.packing import TokenSequence
from pipeline.forward.projection import logits_NV
from pipeline.forward.scoring import Component, Forward, enough_tokens, response_hidden_ND
from pipeline.policy.adapters import sharing_base, stirred, trainable
from pipeline.policy.prompts import Prompts, encode_prompt, special_tags
from pipeline.policy.stop_tokens import stop_tokens
from pipeline.task import Message
from pipeline.text import one_line
from pipeline.thinking import unclosed_thinking

_IN_FLUX = "in flux"
_LOUD = 300.0
"""Logits at which every cap that is in use shows."""


class TeacherSettings(Section):
    """Which teacher a policy carries (docs/method.md, section 4).

    Attributes:
        kind: ema, live, frozen, trust_region or periodic.
        rate: EMA: weight of the new policy at each step.
        mix: trust region: share of the live policy's logits.
        period: periodic: steps between copies of the policy.
    """

    kind: TeacherKind
    rate: float
    mix: float
    period: Later[int] = 20

    def copied_after(self, steps_done: int) -> int:
        """Return after how many steps a periodic teacher was the policy: n floor(s / n)."""
        return self.period * (steps_done // self.period)

    def copies_anew(self, former: "TeacherSettings") -> bool:
        """Tell whether this is a periodic teacher that isn't the copy that `former` is."""
        same = former.kind == "periodic" and former.period == self.period
        return self.kind == "periodic" and not same


class FrozenBase(NamedTuple):
    """The model under a policy's adapters, which snapshots name and don't hold.

    Attributes:
        path: its folder.
        sha256: of its files, by name.
    """

    path: str
    sha256: dict[str, str]


class Policy:
    """A language model under training.

    Attributes:
        version: "{steps done:06d}-{lineage digest}"; see `stage.next_version`.
        model: the transformers causal language model, float32; this rank's part of it, if there
            are several. With `model.lora`, all of it, with adapters.
        teacher: which teacher it carries.
        prompts: renders conversations.
        eos_ids: token ids that end a response and belong to it; `stops` says who names them.
        teacher_model: the EMA, the initial or a copied model, float32; None where it is `live`.
        copied_version: version of the policy that a `periodic` teacher is a copy of.
        optimizer: AdamW over what is trained; `update` sets its hyperparameters at every step.
        base: the frozen model under adapters; None without.
        lora: what its adapters are; None without.
        notes: what its user should know of the model's files and of its chat template.
        unshared: why the responses to a prompt can't share one encoded copy of it; empty: they do.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: ModelSection,
        teacher: TeacherSettings,
        version: str,
        base: FrozenBase | None = None,
    ) -> None:
        _check_parts(model, tokenizer)
        self.device = resolve_device(settings.device)
        self.model = placed(model, self.device, settings.cpu_offload).eval()
        self.tokenizer = tokenizer
        self.version = version
        self.teacher = teacher
        self.base = base
        self.lora = settings.lora
        self._settings = settings
        self.unshared = _why_not_shared(self.model, self.device)
        self.teacher_model = None if teacher.kind == "live" else self._frozen(self.model)
        self.prompts = Prompts(tokenizer, settings)
        self.stops = stop_tokens(
            model.generation_config, tokenizer, settings, self.vocabulary, model.name_or_path
        )
        self.eos_ids = frozenset(self.stops.sources)
        self._special_tags = special_tags(tokenizer)
        self.initial_version = self.copied_version = version
        self._kept: dict[int, tuple[str, Any]] = {}
        self.notes: list[str] = []
        if settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        try:
            _check_projection(self)
        except PolicyError:
            raise
        except Exception as error:  # whatever the code of a model that doesn't fit itself raises
            name = model.name_or_path
            raise PolicyError(f"{name}: the model can't be run: {one_line(error)}") from error
        self.optimizer = torch.optim.AdamW(self.trainable().values(), lr=0.0, fused=True)

    @property
    def base_dtype(self) -> torch.dtype:
        """Return the type in which a frozen base's matrices are stored."""
        return torch.bfloat16 if self._settings.base_dtype == "bfloat16" else torch.float32

    @property
    def vocabulary(self) -> int:
        """Return V, the number of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def trained_part(self) -> str:
        """Say how many of the parameters adapters are, for who uses them."""
        assert self.lora is not None
        own = sum(p.numel() for p in self.trainable().values())
        total = sum(p.numel() for p in self.model.parameters())
        return f"adapters of rank {self.lora.rank}: {own:,} of {total:,} parameters"

    @property
    def steps_done(self) -> int | None:
        """Return after how many steps it is; None: an update left it half-way."""
        head = self.version.partition("-")[0]
        return int(head) if head.isdecimal() else None

    @property
    def teacher_version(self) -> str:
        """Return kind and source of the teacher that scores the step that starts here."""
        kind = self.teacher.kind
        sources = {
            "frozen": self.initial_version,
            "trust_region": f"{self.initial_version}+{self.version}",
            "periodic": self.copied_version,
        }
        return f"{kind}@{sources.get(kind, self.version)}"

    def teacher_components(self) -> list[Component]:
        """Return the models whose weighted logits are the teacher's."""
        if self.teacher_model is None:
            return [Component(self.model, 1.0)]
        if self.teacher.kind == "trust_region":
            mix = self.teacher.mix
            return [Component(self.teacher_model, 1.0 - mix), Component(self.model, mix)]
        return [Component(self.teacher_model, 1.0)]

    def models(self) -> list[Any]:
        """Return the model, and the teacher's if it has one of its own."""
        return [self.model] if self.teacher_model is None else [self.model, self.teacher_model]

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Free the weights that forward passes gathered when a block ends (`sharding.reshard`)."""
        try:
            yield
        finally:
            for model in self.models():
                reshard(model)

    @torch.no_grad()
    def advance_teacher(self, steps_done: int) -> None:
        """Move the teacher, in float32, as the state after `steps_done` steps has it.

        EMA: teacher <- (1 - rate) teacher + rate policy. Periodic: teacher <- policy, if due.
        """
        if self.teacher_model is None:
            return
        if self.teacher.kind == "ema":
            policy = self.trainable()
            for name, teacher in trainable(self.teacher_model).items():
                parameter = policy[name]
                teacher.mul_(1 - self.teacher.rate).add_(parameter, alpha=self.teacher.rate)
        elif self._copies_now(steps_done):
            policy = self.trainable()
            for name, teacher in trainable(self.teacher_model).items():
                teacher.copy_(policy[name])

    def _copies_now(self, steps_done: int) -> bool:
        """Tell whether a periodic teacher becomes the policy after so many steps."""
        teacher = self.teacher
        return teacher.kind == "periodic" and teacher.copied_after(steps_done) == steps_done

    def keep(self) -> None:
        """Keep a copy of the model for a periodic teacher to come; every rank must call it."""
        assert self.steps_done is not None
        self._kept[self.steps_done] = (self.version, self._frozen(self.model))

    def adopt_teacher(self, teacher: TeacherSettings, initial: Callable[["Policy"], Any]) -> None:
        """Switch to another teacher, as a fork does; every rank must call it.

        An existing EMA continues at its new rate; a new one starts from the current weights. A
        teacher that needs the initial weights, and doesn't have them, gets them from
        `initial(self)`; a new periodic one is the current policy, or what `keep` kept.

        Raises:
            PolicyError: a periodic teacher is a copy of an earlier policy, which was not kept.
        """
        anchored = ("frozen", "trust_region")
        if teacher.kind == "live":
            self.teacher_model = None
        elif teacher.kind == "ema" and self.teacher.kind != "ema":
            self.teacher_model = self._frozen(self.model)
        elif teacher.kind in anchored and self.teacher.kind not in anchored:
            self.teacher_model = self._frozen(initial(self))
        elif teacher.copies_anew(self.teacher):
            self.copied_version, self.teacher_model = self._copied(teacher)
        self.teacher = teacher

    def _copied(self, teacher: TeacherSettings) -> tuple[str, Any]:
        """Return version and model of the policy that a periodic teacher is a copy of."""
        assert self.steps_done is not None
        wanted = teacher.copied_after(self.steps_done)
        if wanted == self.steps_done:
            return self.version, self._frozen(self.model)
        if wanted not in self._kept:
            raise PolicyError(
                f"a periodic teacher is the policy after {wanted} steps, which was not kept on the "
                f"way to that after {self.steps_done}"
            )
        return self._kept.pop(wanted)

    def _frozen(self, model: Any) -> Any:
        """Return a copy of a model that gets no gradients; adapters share the policy's base."""
        settings = self._settings
        copy = sharing_base(model) if settings.lora else copied(model, spreading(settings))
        copy = placed(copy, self.device, settings.cpu_offload)
        return copy.requires_grad_(False).eval()

    @torch.no_grad()
    def checksum(self) -> str:
        """Return 16 hex digits that depend on every bit of what is trained, and of its optimizer.

        That is the policy, its teacher and the optimizer's state; a frozen base is not in it. It is
        a weighted sum of the bits as integers: exact in any order of addition, so the same for any
        number of ranks, and as fast as reading memory.
        """
        policy = self.trainable().values()
        teacher = () if self.teacher_model is None else trainable(self.teacher_model).values()
        state = [s for p in policy for s in self.optimizer.state[p].values()]
        total = 0
        for place, tensor in enumerate([*policy, *teacher, *state], start=1):
            part = local(tensor.detach())
            if ranks.rank() and not is_spread(tensor):
                continue  # every rank has it (a count of steps, an adapter): rank 0 counts it
            bits = part.to(torch.float32).view(torch.int32)
            total += place * int(bits.sum(dtype=torch.int64))
        return f"{sum(ranks.exchanged(total)) % 2**64:016x}"

    def begin_update(self) -> None:
        """Mark the weights as in flux, so that a failed update leaves an unusable policy."""
        if self.version == _IN_FLUX:
            raise PolicyError("an earlier update failed half-way; open the policy anew")
        self.version = _IN_FLUX
        self._recompute_activations(True)

    def finish_update(self, version: str) -> None:
        """Give the updated weights their version, on all ranks."""
        ranks.together(Policy._finished, self, version)

    def _finished(self, version: str) -> None:
        self._recompute_activations(False)
        self.version = version
        if self.steps_done is not None and self._copies_now(self.steps_done):
            self.copied_version = version

    def _recompute_activations(self, on: bool) -> None:
        """Turn gradient checkpointing on or off, if the settings want it.

        transformers uses it in a layer's training mode only, in which the layer also drops the
        cache that sampling needs. So it is on during updates alone. Only the flag of the layer
        itself is set, so that dropout modules inside stay in evaluation mode.
        """
        for module in self.model.modules() if self._settings.gradient_checkpointing else ():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = on

    def forward(self, megabytes: float) -> Forward:
        """Return how forward passes of this policy run, with `megabytes` of memory for logits."""
        bfloat16 = self._settings.precision == "bfloat16"
        enough = enough_tokens(self.model, self.device)
        return Forward(self.device, bfloat16, not self.unshared, megabytes, enough)

    def render(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """Return the prompt text and ids: the chat template with its header for the answer."""
        return self.prompts.render(messages)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt; nothing is added."""
        return encode_prompt(self.tokenizer, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a response without special tokens and the one that ended it.

        Tags of think blocks stay, also where they are special tokens.
        """
        ended = bool(token_ids) and token_ids[-1] in self.eos_ids
        parts: list[list[int]] = [[]]
        for token in token_ids[:-1] if ended else token_ids:
            if token in self._special_tags:
                parts += [[]]
            else:
                parts[-1].append(token)
        tags = [self._special_tags[token] for token in token_ids if token in self._special_tags]
        texts = [str(self.tokenizer.decode(part, skip_special_tokens=True)) for part in parts]
        return texts[0] + "".join(tag + text for tag, text in zip(tags, texts[1:], strict=True))

    def leaves_thinking_open(self, prompt: str, response_ids: Sequence[int]) -> bool:
        """Tell whether a response ends inside a think block; its tags may be special tokens."""
        text = str(self.tokenizer.decode(response_ids, skip_special_tokens=False))
        return unclosed_thinking(text, self.prompts.opens_thinking(prompt))

    def trainable(self) -> dict[str, Tensor]:
        """Return what training changes, by name (`adapters.trainable`)."""
        return trainable(self.model)


def resolve_device(name: str) -> torch.device:
    """Return the torch device of the setting `model.device`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise PolicyError("model.device is cuda but torch finds no GPU; use cpu or auto")
    return torch.device(name)


def spreading(settings: ModelSection) -> Spread | None:
    """Return the function that shards a model over the ranks; None if it stays whole.

    Under adapters it does, on every rank: there is neither optimizer state nor a teacher of its
    size, and passes gather nothing.
    """
    if settings.lora or (ranks.size() == 1 and not settings.cpu_offload):
        return None
    return partial(
        shard,
        device=resolve_device(settings.device),
        offload=settings.cpu_offload,
        bfloat16=settings.precision == "bfloat16",
    )


def _check_parts(model: Any, tokenizer: Any) -> None:
    """Refuse a model without decoder or output projection, or with another model's tokenizer."""
    name = model.name_or_path
    output = model.get_output_embeddings()
    if output is None or not hasattr(model, "get_decoder") or model.get_decoder() is None:
        raise PolicyError(f"{name}: no decoder with an output projection; not supported")
    largest, vocabulary = max(tokenizer.get_vocab().values(), default=0), output.weight.shape[0]
    if largest >= vocabulary:
        raise PolicyError(
            f"{name}: its tokenizer has ids up to {largest}, the model only {vocabulary} logits"
        )


@torch.no_grad()
def _check_projection(policy: Policy) -> None:
    """Refuse a model whose logits are not its output projection of its hidden states.

    Some architectures scale or cap logits after the projection; chunked scoring would then be
    silently wrong. A cap at 30 shows nothing in the small logits of small weights, so hidden states
    are scaled until the largest logit is `_LOUD`, and the model projects those.
    """
    last = policy.vocabulary - 1
    probe = TokenSequence([1, 2], [last // 2, last])
    forward = Forward(policy.device, bfloat16=False, shares=False, megabytes=1)
    ids = torch.tensor([probe.prompt_ids + probe.response_ids], device=policy.device)
    with policy.passing(), ExactProducts(), stirred(policy.model):
        hidden_ND = response_hidden_ND(policy.model, [probe], forward)
        largest = float(logits_NV(forward.head(policy.model), hidden_ND).abs().max())
        scale = _LOUD / largest if largest > 0 else 1.0
        ours_NV = logits_NV(forward.head(policy.model), hidden_ND * scale)

        def scaled(_: Any, __: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state * scale
            return output

        hook = policy.model.get_decoder().register_forward_hook(scaled)
        try:
            theirs_NV = policy.model(input_ids=ids, use_cache=False).logits[0, 1:3].float()
        finally:
            hook.remove()
    gap = float((ours_NV - theirs_NV).abs().max())
    if not gap <= 1e-3 * (1 + float(theirs_NV.abs().max())):
        raise PolicyError(
            f"{policy.model.name_or_path}: its logits are not projection(hidden states) (they "
            f"differ by {gap:.3g}); this architecture is not supported"
        )


@torch.no_grad()
def _why_not_shared(model: Any, device: torch.device) -> str:
    """Compare packed with padded rows on a few tokens; return why a model can't be packed."""
    sequences = [TokenSequence([1, 2, 3], [2, 1, 2]), TokenSequence([1, 2, 3], [3, 3])]
    plain, packed = (Forward(device, False, shares, megabytes=1) for shares in (False, True))
    try:
        if not install(model):
            return "its attention is not of the kinds we know"
        with ExactProducts(), stirred(model):
            expected_ND = response_hidden_ND(model, sequences, plain)
            gap = float((response_hidden_ND(model, sequences, packed) - expected_ND).abs().max())
    except (UnsupportedAttention, TypeError, RuntimeError, ValueError) as error:
        return one_line(error)
    finally:
        reshard(model)
    if gap <= 1e-4 * (1 + float(expected_ND.abs().max())):
        return ""
    return f"hidden states would differ by {gap:.3g}"
