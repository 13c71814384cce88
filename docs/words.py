"""Texts of the generated pages that the code doesn't hold; docs/generate.py puts them in."""

ROW_OF = {
    "rollouts": "rollout",
    "verdicts": "rollout",
    "bank": "earlier correct answer to a question of this step",
    "routes": "rollout",
    "scores": "rollout",
    "teacher": "response token of a rollout that the teacher scored",
    "weights": "response token of a rollout that the teacher scored",
    "updates": "rollout",
    "evaluations": "sampled answer to a test question",
}

KEPT_VARIANTS = (
    '`route.kept_dtype = "float16"` stores `teacher_logprobs` and `student_logprobs` as '
    "`list<halffloat>[K]`, so a log-probability is off by up to 2^-11 of itself. All other columns "
    "are computed before rounding and stay float32. `route.keep_student_logprobs = false` leaves "
    "the column `student_logprobs` out. Training does not read it. Without it `srpo check` can't "
    "recompute `jsd`, and audits know token losses only for the divergences `jsd` at alpha = 0.5 "
    "and `sampled_token`."
)
ORIGIN_KEYS = {
    "schema_version": "version of the schemas and of the run folder",
    "table": "name of the table",
    "step": "training step; for evaluations: steps done",
    "stage": "stage that made it",
    "stage_version": "that stage's version, raised by hand",
    "inputs": "SHA-256 of every table that was read; digests of questions, seed and verifier if "
    "the stage uses them; `earlier`, for `bank`, a digest of the SHA-256s of the rollouts and "
    "verdicts of all steps before",
    "settings": "all settings of the configuration sections that the stage declares",
    "policy_version": "version of the policy that was used; null without one",
    "teacher_version": "kind and version of the teacher, as in `ema@000012-1a2b3c4d5e6f`",
}
MANIFEST_KEYS = {
    "origin": "what the table was made from; equal in equal runs. The Arrow file has it too, as "
    "`srpo` in its schema's metadata",
    "rows": "number of rows",
    "bytes": "size of the Arrow file",
    "sha256": "SHA-256 of the Arrow file",
    "facts": "numbers of the stage as a whole, see below",
    "index": "token tables: first row and number of rows of each rollout; else null",
    "cost": "what it cost to make the table; differs between equal runs",
    "digest": "SHA-256 of the rest of this record",
}
COST_KEYS = {
    "seconds": "time in the stage's `run`, without reading, checking and committing tables",
    "tokens": "tokens handled",
    "peak_memory_mb": "largest resident set of the process so far, not of this stage alone",
    "created": "UTC time at which the table was made",
    "write_seconds": "time of writing, hashing and syncing the table; older manifests lack it",
}
FACTS = {
    "generate": "`rollouts`; `truncated`, those cut at the length limit; `asked`, where questions "
    "have worked solutions, the SHA-256 of all else of them",
    "verify": "`errors`, responses that could not be judged",
    "bank": "none",
    "route": "`teacher_passes`, rollouts that the teacher scored; `tokens_computed` and "
    "`tokens_naive`, see below",
    "weigh": "none",
    "update": "`learning_rate`; `loss`, `grad_norm` (before clipping) and `tokens` (N), one number "
    "per mini-batch; `checksum` of every bit of weights, teacher and optimizer after it; "
    "`tokens_computed` and `tokens_naive`; `next_policy_version`",
    "evaluate": "`asked`, likewise",
}
KEYS = ("key", "type", "default", "range", "meaning")

LORA = """\
### Adapters

A table `[model.lora]`, which may be empty, trains low-rank adapters on a frozen model
([method.md, section 14](method.md#14-lora); [adapters.md](adapters.md)):

```toml
[model]
path = "Qwen/Qwen3-8B"
base_dtype = "bfloat16"

[model.lora]
rank = 16
```

On the command line, `--set model.lora.rank=16` is enough."""

MIXTURE = """\
### Several tasks in one run

Instead of `data.task`, give a table for each of two or more tasks:

```toml
[data]
max_prompt_length = 1024

[data.mixture.arithmetic] # the task of that name
weight = 2

[data.mixture.capitals]
task = "tasks/capitals.py"

[data.mixture.chemistry]
task = "science_qa"
path = "/data/sciknoweval/chemistry"
weight = 0.5
```

On the command line: `--set data.mixture.arithmetic.weight=3`, `--set data.mixture=none`. A name
has at most 40 letters, digits, `_` and `-`. Rollouts have it in their column `task` and in front
of the `prompt_id` of their question, as in `capitals/Peru`. The order of the tables doesn't
matter.

- Weights are shares of the training questions, exact at any step: so far, every task has had its
  share of all questions, rounded up or down. Nothing is drawn at random. Each task has seeded
  epochs of its own.
- `generate.questions` counts the questions of all tasks together, so a task with a small share
  is missing from some steps.
- Each answer is judged by its own task's verifier, in `verify.workers` child processes that load
  no other task. All other settings hold for all tasks.
- An evaluation asks the first `evaluate.questions` test questions of every task. Overall
  accuracy counts every question the same, so a task with more questions counts more; training
  weights don't matter. To give every task the same number of questions, set `evaluate.questions`
  to what the smallest task has. Best snapshots, comparisons and alarms use overall accuracy; each
  task's own is reported beside it."""

WIDER = {
    "teacher_source": "none, sibling, bank, solution, gold or feedback (alone)",
    "teacher_rollout_id": "the demonstrating rollout, of this step or in the bank",
    "raw_weight": "exp(-beta * H), times S with weigh.survival = weight; "
    "rlsd: exp(sign(A) * log(q / s))",
    "weight": "raw weight over its mean in the mini-batch, times S with weigh.survival = "
    "unnormalised or hand_over; rlsd: the token's factor of A",
}
"""What columns mean with settings younger than their descriptions in the files."""

METRICS = {
    "step": "training step",
    "rollouts": "rollouts of the step",
    "reward_mean": "mean reward, of rollouts that could be judged, as the next two",
    "correct_share": "share of correct rollouts",
    "format_rate": "share of responses in the task's output format",
    "verifier_errors": "responses that could not be judged",
    "truncated_share": "share of responses cut at the length limit",
    "response_tokens_mean": "mean response length",
    "response_tokens_max": "longest response",
    "duplicate_share": "share of responses that are at least 16 tokens long and that another "
    "question got too",
    "judged": "responses that could; absent before version 4 of `route`, whose shares are those "
    "of all rollouts",
    "share_grpo": "share of rollouts on the GRPO route",
    "share_sdpo": "share on the SDPO route",
    "share_mix": "share on the mix route",
    "share_none": "share on no route: left out of the loss",
    "teacher_available": "share of rollouts whose teacher is shown something that fits; with other "
    "sources than siblings, their shares are in source_sibling, source_bank and so on",
    "distils": "whether the method asks a teacher; `rlsd` stops when its share has fallen to 0",
    "silent_questions": "share of questions of which no rollout has a gradient",
    "demonstrations": "number of responses that demonstrate",
    "demonstration_tokens_mean": "their mean length; null if there are none",
    "other_tokens_mean": "mean length of all other responses",
    "correct_tokens_mean": "mean length of correct responses; null if there are none",
    "wrong_tokens_mean": "mean length of wrong responses; null if there are none",
    "taught_tokens": "response tokens that the teacher scored",
    "teacher_entropy_mean": "mean entropy of the teacher on them, nats; null if there are none",
    "jsd_mean": "mean JSD at alpha = 0.5 on them, nats; null if there are none",
    "weight_std": "standard deviation of their weights; null if there are none",
    "weight_max": "largest of their weights",
    "effective_tokens": "(sum of w)^2 / sum of w^2: how many of them are really heard",
    "off_path_share": "share of the sum of w * jsd where survival S is below 0.1 and the teacher "
    "would not have come; null if nothing diverges",
    "loss": "mean loss of the step's optimizer updates",
    "grad_norm": "mean gradient norm before clipping",
    "learning_rate": "learning rate of the step",
    "updates": "optimizer updates",
    "routed_tokens": "sum of N over the updates",
    "computed_tokens": "response tokens of rollouts with a gradient",
    "logprob_gap_max": "largest |log pi_old - log pi_engine| of any computed token, nats; null "
    "if not known",
    "logprob_gap_mean": "mean over computed rollouts of their largest such gap, nats; null if "
    "not known",
    "logprob_gap_token_mean": "mean over computed tokens of |log pi_old - log pi_engine|, nats",
    "engine_kl": "mean over computed tokens of the estimate of KL(engine || pi_old), nats",
    "tis_cut_share": "share of computed tokens whose correction `update.tis_clip` cuts",
    "clipped_fraction": "mean of `clipped_fraction` over computed rollouts",
    "tokens_computed": "tokens that `route` and `update` sent through models, padding included",
    "tokens_naive": "the same without shared prompts and without leaving rollouts out",
    "work_share": "`tokens_computed` over `tokens_naive`; null if nothing was computed",
    "seconds_generate": "seconds in generate",
    "seconds_verify": "seconds in verify",
    "seconds_route": "seconds in route",
    "seconds_weigh": "seconds in weigh",
    "seconds_update": "seconds in update",
    "seconds": "sum of these, and of `seconds_bank` where there is a bank; what `run.max_hours` "
    "counts",
    "tokens": "sampled tokens",
    "alarms": "alarms raised at this step, see [health](health.md)",
    "digest": "SHA-256 of the rest of this record",
}

ALARM = {
    "rule": "the rule that raised it",
    "step": "first step, or first evaluated state, that shows the trouble",
    "healthy": "newest state, in steps done, that is not known to be affected",
    "message": "what was found and what was expected",
    "evidence": "up to five rollouts that show it; ids of evaluations begin with e",
    "command": "a command that shows the evidence",
    "severe": "whether `run.on_alarm` acts on it",
}

RUN_FOLDER = """\
    RUN/run.json                     resolved configuration, versions, hardware, digests; of a fork
                                     also its parent, and what it changed
    RUN/tokenizer/                   the tokenizer, so that tables can be read as text
    RUN/steps/000012/NAME.arrow      a table of step 12 (steps count from 0)
    RUN/steps/000012/NAME.json       its manifest; a table without one does not exist
    RUN/steps/000012/metrics.json    the step's flat record; it exists when the step is complete
    RUN/steps/000012/profile.json    where its time went, by `srpo train --profile`; nothing
                                     depends on it
    RUN/policy/000020/               the policy after 20 steps: a Hugging Face folder, with these
                                     (over 4 GiB in parts: teacher-00001-of-00008.safetensors):
        teacher.safetensors          the teacher in float32 (not for the live teacher)
        optimizer.safetensors        AdamW's state (not before the first update)
        state.json                   steps done, versions (also of the policy that a periodic
                                     teacher is a copy of), SHA-256 of every other file
    RUN/evaluations/000020.arrow     answers of the policy after 20 steps, and its manifest .json
    RUN/evaluations/taught-000020-….arrow   answers with a teacher prompt and without, by
                                     `--taught` or `--preflight`, and their figures .json: the
                                     columns of evaluations, `part` (sampled, alone, taught),
                                     `source`, `teacher_rollout_id`, `teacher_prompt_text`"""

METRICS_OF_FEEDBACK = """\
Where `route.feedback` or `route.feedback_alone` is set, `feedback_gold_share` is the mean share of
the gold answer in the feedback that teachers are shown ([tasks.md](tasks.md#feedback)); null if it
has none."""

METRICS_OF_RLSD = """\
Method `rlsd` adds `credit_lambda`, the share of the advantage that the teacher distributes;
`credit_change_mean`, the mean of |A_t / A - 1| over the tokens that the teacher scored; and
`credit_clipped_share`, the share of those whose credit `weigh.credit_clip` clips. The last two are
null where it scored none."""

METRICS_OF_TASKS = """\
In a run of several tasks, some of these are also given for each task's own rollouts:
`rollouts/NAME`, `reward_mean/NAME`, `correct_share/NAME`, `format_rate/NAME`,
`verifier_errors/NAME`, `truncated_share/NAME`, `response_tokens_mean/NAME`, `share_sdpo/NAME`
and `teacher_available/NAME`. In a step without questions of that task, counts are 0 and the rest
is null. The record of an evaluation, which commands and pages compute from its table, has all its
numbers for each task: `accuracy/NAME`, `low/NAME`, `high/NAME`, `pass_at_4/NAME`,
`questions/NAME` and so on."""

PLANTED_ALARM = """\
    ALARM evaluated_format_falls, step 12: format rate 78% at evaluation after 12 steps, at best
    100% before; in training it is 95%; srpo audit runs/planted --rollout e000012-0000-00"""
