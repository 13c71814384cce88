"""The configuration: one frozen section per stage, plus run, data and model.

Defaults are the paper's SRPO column (docs/method.md, section 10) and constants of sections 1 to 8;
each number stands here and nowhere else. Presets and user files name only what differs.
"""

import re
from datetime import date, datetime
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.config.data import DataSection
from pipeline.config.field_types import (
    CONTROL_BUT_LINES,
    LARGEST_INT,
    TEMPLATE_NAMES,
    Count,
    Later,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Seconds,
    Section,
    TopK,
    TopP,
    Workers,
)
from pipeline.config.vllm import VllmSection
from pipeline.methods import Method
from pipeline.task import Feedback

TeacherKind = Literal["ema", "live", "frozen", "trust_region", "periodic"]
TeacherSource = Literal["sibling", "bank", "solution", "gold"]
Survival = Literal["off", "weight", "unnormalised", "hand_over"]
Demonstration = Literal["first", "longest"]
Divergence = Literal["jsd", "forward_kl", "reverse_kl", "sampled_token"]
KeptDtype = Literal["float32", "float16"]
EngineName = Literal["transformers", "vllm"]


class RunSection(Section):
    """The run as a whole."""

    steps: Count = Field(100, description="training steps")
    seed: int = Field(
        0, ge=0, le=2**63 - 1, description="seed from which every random choice is derived"
    )
    max_hours: PositiveFloat | None = Field(
        None, description="stop after this much training time (evaluation is not counted)"
    )
    snapshot_every: PositiveInt = Field(10, description="steps between policy snapshots")
    keep_snapshots: PositiveInt = Field(
        3, description="newest snapshots kept; the best by evaluation and the last always stay"
    )
    keep_teacher_tables: PositiveInt | None = Field(
        None,
        description="how many of the newest steps keep their teacher tables once a snapshot covers "
        "them; unset: all (docs/disk.md)",
    )
    threads: Workers = Field(2, description="CPU threads of torch")
    on_alarm: Literal["continue", "stop", "fork"] = Field(
        "continue",
        description="after a severe alarm: go on, stop after the step, or fork once from the last "
        "healthy snapshot and train on there",
    )
    alarm_rate_factor: PositiveFloat = Field(
        0.5, description="on_alarm fork: the fork's learning rate divided by this run's"
    )
    prefect_seconds: PositiveFloat = Field(
        60.0,
        description="time limit for Prefect: for its server's start and end, for a call with its "
        "retries, and for the record of a flow run",
    )
    stall_seconds: PositiveFloat | None = Field(
        3600.0,
        description="after this long without progress in a stage, the process ends with exit code "
        "2 and leaves RUN/stalled-<n>.txt; unset: never",
    )


class LoraSection(Section):
    """Low-rank adapters on a frozen base (docs/method.md, section 14)."""

    rank: PositiveInt = Field(16, description="r, the rank of B A")
    alpha: PositiveFloat = Field(32.0, description="a: adapters add (a/r) B A to a weight")
    targets: list[str] = Field(
        default_factory=lambda: [
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ],
        min_length=1,
        description="linear layers that get an adapter: names, or how names end",
    )
    adapter: str | None = Field(
        None,
        description="folder of an adapter in peft's format to start from; unset: B = 0, A from "
        "run.seed",
    )


class ModelSection(Section):
    """The policy at the start."""

    path: str = Field(
        description="Hugging Face folder or name, or a GGUF file; `demo` is the shipped demo "
        "policy, `smollm2` is SmolLM2-135M-Instruct (docs/models.md)"
    )
    chat_template_kwargs: dict[str, str | bool | int] = Field(
        default_factory=dict, description="passed to the chat template (enable_thinking = false)"
    )
    chat_template: Later[str | None] = Field(
        None,
        description="which of a tokenizer's named chat templates; unset: its only one, or the one "
        "called default",
    )
    system_role: Later[Literal["as_is", "fold"]] = Field(
        "as_is",
        description="fold: put the system text before the user's, for templates that know no "
        "system turn",
    )
    stop_tokens: Later[list[str | int] | None] = Field(
        None,
        description="tokens that end a response, by text or id; unset: those of generation config, "
        "tokenizer and chat template together",
    )
    extra_stop_tokens: Later[list[str | int]] = Field(
        default_factory=list, description="more tokens that end a response, by text or id"
    )
    prompt_time: Later[str | None] = Field(
        None,
        description="local time that chat templates take for now, as 2026-11-30T08:00:00; unset: "
        "when the run starts, which records it here if its template asks for the time",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: forward passes under autocast, logits included; weights, softmax, "
        "losses and optimizer stay float32",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    cpu_offload: bool = Field(
        False,
        description="keep weights, gradients, teacher and optimizer in the host's memory; a GPU "
        "has a layer at a time, or a whole model while `transformers` samples",
    )
    lora: Later[LoraSection | None] = Field(
        None, description="train adapters on a frozen model; unset: train all parameters"
    )
    base_dtype: Later[Literal["float32", "bfloat16"]] = Field(
        "float32", description="with lora: how the matrices of the frozen model are stored"
    )

    @field_validator("stop_tokens", "extra_stop_tokens", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        """Take a token that stands alone."""
        return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value

    @field_validator("prompt_time", mode="before")
    @classmethod
    def _time_as_text(cls, value: Any) -> Any:
        """Take a time that TOML has as one, without quotes."""
        return value.isoformat() if isinstance(value, date) else value

    @field_validator("prompt_time")
    @classmethod
    def _is_local_time(cls, value: str | None) -> str | None:
        """Refuse what is no time, or has a zone: templates get none."""
        if value is None:
            return None
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is no time; expected 2026-11-30T08:00:00") from None
        if time.tzinfo is not None:
            raise ValueError(f"{value!r} has a time zone; expected a local time without one")
        return time.isoformat()


class GenerateSection(Section):
    """Sampling of training rollouts."""

    engine: EngineName = Field("transformers", description="sampling engine")
    timeout: Seconds = Field(
        1800.0,
        description="vllm: seconds that a group may take to be answered, else the run ends",
    )
    max_logprob_gap: PositiveFloat | None = Field(
        None,
        description="nats; an update stops where engine and trainer differ by more in any token",
    )
    questions: Count = Field(32, description="questions per step")
    rollouts: Count = Field(8, description="rollouts per question, the group size G")
    temperature: PositiveFloat = Field(1.0, description="sampling temperature")
    top_p: TopP = Field(1.0, description="nucleus mass; below 1 it biases the ratios")
    top_k: TopK = Field(0, description="keep the k likeliest tokens, 0: all")
    max_response_length: PositiveInt = Field(8192, description="response tokens, EOS included")
    batch_size: PositiveInt = Field(256, description="rollouts sampled side by side")


class VerifySection(Section):
    """Judging of responses."""

    success_threshold: Probability = Field(0.5, description="correct means reward >= this")
    workers: Workers = Field(2, description="child processes")
    timeout_seconds: Seconds = Field(10.0, description="time limit of one verdict")
    memory_mb: PositiveInt = Field(2048, description="address space of one child process")
    unfinished_thinking: Later[Literal["wrong", "judge"]] = Field(
        "wrong",
        description="a response that ends inside its think block, where the chat template thinks: "
        "wrong whatever it says, or judged like any other",
    )
    feedback: Later[Feedback] = Field(
        "full",
        description="what a verdict's feedback says: all that the verifier has to say, or the "
        "task's hint, which never tells the gold answer (docs/tasks.md)",
    )


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class TemplatesSection(Section):
    """The user message that a teacher reads, by what it is shown (docs/method.md, section 12).

    Placeholders are filled in one pass: what is filled in is never searched for placeholders.
    """

    refused_characters = CONTROL_BUT_LINES

    solution: str = Field(
        "{question}\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question.",
        description="with a solution: {question} and {solution}",
    )
    feedback: str = Field(
        "{question}\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
        "{feedback}\n\nCorrectly solve the original question.",
        description="with feedback alone: {question} and {feedback}",
    )
    both: str = Field(
        "{question}\nCorrect solution:\n\n{solution}\nThe following is feedback from your "
        "unsuccessful earlier attempt:\n\n{feedback}\n\nCorrectly solve the original question.",
        description="with a solution and feedback: {question}, {solution} and {feedback}",
    )

    @field_validator("*")
    @classmethod
    def _has_placeholders(cls, value: str, info: ValidationInfo) -> str:
        """Refuse a text without one of its placeholders, or with one that is not filled."""
        name = str(info.field_name)
        needed = ["question", *(("solution", "feedback") if name == "both" else (name,))]
        found = _PLACEHOLDER.findall(value)
        if sorted(found) != sorted(needed):
            wanted, shown = (", ".join(f"{{{key}}}" for key in keys) for keys in (needed, found))
            raise ValueError(f"expected the placeholders {wanted}, once each; found {shown or 0}")
        return value


class RouteSection(Section):
    """Routing, demonstrations and the teacher's scores."""

    method: Method = Field("srpo", description="docs/method.md, sections 3 and 9")
    advantage_scale: Literal["none", "group_std"] = Field(
        "none", description="none: r - mean; group_std: divided by the group's deviation"
    )
    demonstration: Demonstration = Field(
        "first",
        description="which correct sibling becomes the demonstration: the first of the group, or "
        "the longest (the first of equals)",
    )
    sources: Later[list[TeacherSource]] = Field(
        default_factory=lambda: list[TeacherSource](["sibling"]),
        description="where a teacher's solution comes from, the first that has one: a correct "
        "sibling; the bank, an earlier correct rollout of the same question; the task's worked "
        "solution; the gold answer alone",
    )
    bank_max_age: Later[PositiveInt | None] = Field(
        None, description="steps after which a banked rollout is too old; unset: never"
    )
    feedback: bool = Field(
        False, description="put the verifier's feedback into the teacher prompt (may leak gold)"
    )
    feedback_alone: Later[bool] = Field(
        False, description="teach by feedback also where no source has a solution"
    )
    templates: Later[TemplatesSection] = Field(
        TemplatesSection(), description="the user message that a teacher reads"
    )
    max_teacher_prompt_length: PositiveInt = Field(10240, description="teacher prompt tokens")
    mini_batch: PositiveInt | None = Field(
        None, description="questions per optimizer update; unset: all questions of the step"
    )
    rescore: Literal["needed", "all"] = Field(
        "needed", description="which rollouts get old log-probabilities and student entropies"
    )
    top_k: PositiveInt = Field(100, description="K, the student's likeliest tokens that are kept")
    kept_dtype: KeptDtype = Field(
        "float32",
        description="how teacher_logprobs and student_logprobs are stored; float16: half the "
        "bytes, log-probabilities rounded to 11 bits (tails and all else stay float32)",
    )
    keep_student_logprobs: bool = Field(
        True, description="store the student's K log-probabilities, which only audits read"
    )
    teacher: TeacherKind = Field("ema", description="docs/method.md, section 4")
    teacher_rate: Probability = Field(0.05, description="EMA: weight of the new policy per step")
    trust_region_mix: Probability = Field(
        0.05, description="trust region: share of the live policy's logits"
    )
    teacher_period: Later[PositiveInt] = Field(
        20, description="periodic: steps between copies of the policy"
    )
    credit_lambda: Later[Probability] = Field(
        0.5, description="rlsd: share of the advantage that the teacher distributes at step 0"
    )
    credit_steps: Later[PositiveInt] = Field(
        50, description="rlsd: steps in which that share falls to 0"
    )
    micro_batch_tokens: PositiveInt = Field(
        16384, description="tokens of one scoring forward pass at most, shared prompts counted once"
    )
    projection_mb: PositiveFloat = Field(
        256.0, description="MiB for logits: as many positions at a time as fit"
    )


class WeighSection(Section):
    """What each token counts: entropy-aware weights, prefix survival, credit of rlsd."""

    beta: NonNegativeFloat | None = Field(
        None, description="sharpness; unset: 1 for srpo, 0 (weights of 1) for every other method"
    )
    survival: Later[Survival] = Field(
        "off",
        description="srpo: hear a teacher only where it, too, would have come: off; weight; "
        "unnormalised: what is off its path is lost; hand_over: it learns from its advantage there "
        "(docs/method.md, section 15)",
    )
    credit_clip: Later[Probability] = Field(
        0.2, description="rlsd: a token's credit is clipped to 1 - this and 1 + this"
    )


class UpdateSection(Section):
    """Losses and the optimizer."""

    divergence: Divergence = Field("jsd", description="docs/method.md, section 5")
    jsd_alpha: float = Field(
        0.5, gt=0, lt=1, description="weight of the teacher in the mixture of jsd"
    )
    mix_lambda: Probability = Field(0.9, description="advantage_mix: weight of the GRPO loss")
    clip_low: Probability = Field(0.2, description="ratio is clipped below 1 - this")
    clip_high: NonNegativeFloat = Field(0.28, description="ratio is clipped above 1 + this")
    dual_clip: PositiveFloat | None = Field(
        3.0, description="cap of the loss at this times -A for A < 0; 'none' turns it off"
    )
    tis_clip: PositiveFloat = Field(2.0, description="cap of the engine-to-trainer correction")
    sdpo_ratio_clip: PositiveFloat = Field(2.0, description="cap of the SDPO importance ratio")
    learning_rate: PositiveFloat = Field(5e-6, description="AdamW, after warm-up")
    warmup_steps: int = Field(10, ge=0, le=LARGEST_INT, description="steps of linear warm-up")
    weight_decay: NonNegativeFloat = Field(0.01, description="AdamW")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW")
    adam_eps: PositiveFloat = Field(1e-8, description="AdamW")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient is clipped to this norm")
    micro_batch_tokens: PositiveInt = Field(
        4096,
        description="tokens of one forward and backward pass at most, shared prompts counted once",
    )
    projection_mb: PositiveFloat = Field(
        256.0, description="MiB for logits: as many positions at a time as fit"
    )


class EvaluateSection(Section):
    """Evaluation on the test split; its time is no training time."""

    engine: EngineName | None = Field(None, description="sampling engine; unset: generate's")
    every: PositiveInt = Field(10, description="steps between evaluations; 0 and last always run")
    questions: Count | None = Field(
        None, description="first questions of test, of each task; unset: all"
    )
    rollouts: Count = Field(16, description="answers per question, the k of avg@k")
    temperature: PositiveFloat = Field(0.6, description="sampling temperature")
    top_p: TopP = Field(0.95, description="nucleus mass")
    top_k: TopK = Field(0, description="keep the k likeliest tokens, 0: all")
    max_response_length: PositiveInt = Field(8192, description="response tokens, EOS included")
    batch_size: PositiveInt = Field(256, description="answers sampled side by side")


class WarmstartSection(Section):
    """A supervised start from a task's own worked solutions (`srpo warmstart`); runs don't read it.

    What is not here, AdamW's other numbers and the gradient's norm among it, is update's.
    """

    steps: Count = Field(30, description="optimizer steps")
    examples: Count = Field(16, description="worked solutions per step")
    learning_rate: PositiveFloat = Field(1e-4, description="AdamW, constant")
    teacher_share: Probability = Field(
        0.3,
        description="share of the examples that stand behind the teacher's prompt, with the "
        "question's demonstration in it",
    )
    micro_batch_tokens: PositiveInt = Field(
        4096, description="tokens of one forward and backward pass at most"
    )


class Config(Section):
    """A whole run. Sections are what stages depend on; nothing crosses them but what is stored."""

    run: RunSection = RunSection()
    data: DataSection
    model: ModelSection
    generate: GenerateSection = GenerateSection()
    vllm: VllmSection = VllmSection()
    verify: VerifySection = VerifySection()
    route: RouteSection = RouteSection()
    weigh: WeighSection = WeighSection()
    update: UpdateSection = UpdateSection()
    evaluate: EvaluateSection = EvaluateSection()
    warmstart: Later[WarmstartSection] = WarmstartSection()

    @classmethod
    def section_type(cls, name: str) -> type[Section]:
        """Return the class of a section."""
        found = cls.model_fields[name].annotation
        assert isinstance(found, type) and issubclass(found, Section), name
        return found

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, values: object) -> object:
        """Fill in what follows from another section, so that the resolved file says it.

        Evaluations sample with generate's engine; a method has its own beta (section 9). Snapshots
        of adapters are small: one after each step, so that no resume replays any.
        """
        if not isinstance(values, dict):
            return values
        generate, route = values.get("generate", {}), values.get("route", {})
        model = values.get("model", {})
        if isinstance(model, dict) and model.get("lora") is not None:
            values = _filled(values, "run", "snapshot_every", 1)
        if isinstance(generate, dict):
            engine = generate.get("engine", "transformers")
            values = _filled(values, "evaluate", "engine", engine)
        if isinstance(route, dict):
            beta = 1.0 if route.get("method", "srpo") == "srpo" else 0.0
            values = _filled(values, "weigh", "beta", beta)
        return values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Check what involves two settings."""
        method, group = self.route.method, self.generate.rollouts
        for key, value in self.model.chat_template_kwargs.items():
            if key in TEMPLATE_NAMES or key.endswith("_token"):
                raise ValueError(f"model.chat_template_kwargs.{key} is ours to set; remove it")
            if isinstance(value, int) and abs(value) > LARGEST_INT:
                raise ValueError(f"model.chat_template_kwargs.{key} is beyond {LARGEST_INT}")
            if any("\ud800" <= c <= "\udfff" for c in f"{key}{value}"):
                raise ValueError("model.chat_template_kwargs has half of a surrogate pair")
        if self.model.base_dtype != "float32" and self.model.lora is None:
            raise ValueError(
                "model.base_dtype is for the frozen model under adapters; set model.lora, or leave "
                "it out"
            )
        if self.model.lora is not None and self.model.cpu_offload:
            raise ValueError(
                "model.cpu_offload keeps what is trained in the host's memory; with model.lora "
                "that is small, so leave one out"
            )
        if self.model.lora is not None and self.model.path == "random":
            raise ValueError("model.lora trains adapters on a model; a random one has no use")
        if self.vllm.urls and self.vllm.servers:
            raise ValueError("vllm.urls names running servers and vllm.servers starts some: one")
        if self.vllm.sync == "ipc" and (self.vllm.urls or self.vllm.servers):
            raise ValueError("vllm.sync = ipc is for an engine in the run's process; use nccl")
        if self.vllm.data_parallel > 1 and not self.vllm.servers:
            raise ValueError(
                f"vllm.data_parallel is {self.vllm.data_parallel}: replicas live in servers that "
                "the run starts; set vllm.servers = 1"
            )
        if self.weigh.beta is None:
            raise ValueError("weigh.beta must be a number in a resolved configuration")
        if method != "srpo" and self.weigh.beta != 0:
            raise ValueError(
                f"weigh.beta is {self.weigh.beta} but route.method is {method}: only srpo weighs "
                "tokens; leave weigh.beta unset"
            )
        others = set(self.route.sources) - {"sibling"} or self.route.feedback_alone
        if group == 1 and (
            method in ("advantage_mix", "rlsd") or (method != "grpo" and not others)
        ):
            raise ValueError(
                f"generate.rollouts is 1 but route.method {method} needs siblings in a group: "
                "use at least 2, or route.method = 'grpo'"
            )
        if method != "srpo" and self.weigh.survival != "off":
            raise ValueError(
                f"weigh.survival is {self.weigh.survival} but route.method is {method}: only srpo "
                "weighs tokens; leave weigh.survival unset"
            )
        if len(set(self.route.sources)) < len(self.route.sources):
            raise ValueError(f"route.sources names one twice: {', '.join(self.route.sources)}")
        if not self.route.sources and not self.route.feedback_alone and method != "grpo":
            raise ValueError(
                f"route.sources is empty, so {method} has no teacher: name a source (sibling), or "
                "set route.feedback_alone"
            )
        if self.route.bank_max_age is not None and "bank" not in self.route.sources:
            raise ValueError("route.bank_max_age is set, but route.sources has no bank")
        if self.route.mini_batch is not None and self.route.mini_batch > self.generate.questions:
            raise ValueError(
                f"route.mini_batch is {self.route.mini_batch} questions, more than "
                f"generate.questions = {self.generate.questions}"
            )
        return self


def _filled(values: dict[str, Any], section: str, key: str, default: object) -> dict[str, Any]:
    """Return sections as they were given, with a default where a setting is not."""
    given = values.get(section, {})
    if not isinstance(given, dict) or given.get(key) is not None:
        return values
    return {**values, section: {**given, key: default}}
