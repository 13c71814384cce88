"""What a training step costs in seconds and in bytes of memory, by formula: docs/SCALING.md.

Nothing is measured here. Operations are those of `benchmarks.flops`; a machine is described by its
peak rates and the shares of them that are reached. Terms are added up although hardware overlaps
some of them, so times are upper estimates.
"""

from collections.abc import Mapping
from math import ceil, exp, lgamma
from typing import NamedTuple

from benchmarks.flops import TEMPLATE_TOKENS, Network, apart, network, shared

RECOMPUTED = 4
"""Forward passes that an update costs with activation checkpointing: one more than without."""
STATE = 20
"""Bytes per trained parameter: weights, EMA teacher, gradients 4 each, AdamW 8."""
COPY = 2
"""Bytes per parameter of the copy that samples and of weights gathered for a pass: bfloat16."""
SNAPSHOT = 16
"""Bytes per trained parameter of a snapshot: weights, EMA teacher, AdamW's two moments."""
USABLE = 0.9
"""Share of a GPU's memory that plans may use."""
SPREAD = 2.0
"""a + b of the Beta distribution of a question's chance to be answered correctly."""


class Model(NamedTuple):
    """A network, its parameters, and the bytes of keys and values of a token (bfloat16)."""

    network: Network
    parameters: int
    cache: int

    @property
    def multiplied(self) -> int:
        """Return how many weights a decoded token is multiplied with."""
        return self.network.body + self.network.projection


class Gpus(NamedTuple):
    """A number of equal GPUs, and the share of their peak rates that is reached.

    Attributes:
        number: of GPUs, eight to a machine.
        flops: operations per second, peak, of dense bfloat16 products.
        bandwidth: bytes per second of its memory, peak.
        memory: bytes.
        reached: share of `flops`.
        read: share of `bandwidth` while decoding.
        inside, between: bytes per second at which all GPUs gather what is spread over them, in one
            machine (NVLink) and over several, each with eight links of 400 Gbit/s.
    """

    number: int
    flops: float
    bandwidth: float
    memory: float = 0
    reached: float = 0.4
    read: float = 0.6
    inside: float = 315e9
    between: float = 280e9

    @property
    def products(self) -> float:
        """Return the operations per second of all of them."""
        return self.number * self.flops * self.reached

    def gathering(self, size: float) -> float:
        """Return the seconds until each GPU holds all `size` bytes that are spread over them."""
        link = self.inside if self.number <= 8 else self.between
        return size * (self.number - 1) / self.number / link


class Load(NamedTuple):
    """What a step has to do.

    Attributes:
        prompt, response: mean lengths in tokens.
        correct: share of correct rollouts.
        longest: the longest response over the mean one.
        limit: of a response, in tokens.
    """

    response: float
    correct: float
    prompt: int = 300
    questions: int = 32
    group: int = 8
    longest: float = 4
    limit: int = 8192

    @property
    def rollouts(self) -> int:
        """Return how many are sampled."""
        return self.questions * self.group

    @property
    def taught_prompt(self) -> float:
        """Return the length of the teacher's prompt: question and a sibling's response."""
        return self.prompt + self.response + TEMPLATE_TOKENS


class Shares(NamedTuple):
    """Shares of all rollouts.

    Attributes:
        taught: failed ones with a correct sibling; SRPO distils these.
        helped: with a correct sibling, whatever they are; SDPO distils these.
        mixed: in groups with correct and failed ones; only these have a gradient.
    """

    taught: float
    helped: float
    mixed: float


def shares(correct: float, group: int) -> Shares:
    """Return who learns from what when questions differ in difficulty.

    The chance that a question is answered correctly is Beta(2c, 2(1 - c)) with mean c, uniform at
    c = 1/2, and k of a group are then correct with P(k) of the beta-binomial distribution:

        taught = sum over k >= 1 of P(k) (G - k)/G      helped = 1 - P(0) - P(1)/G
    """
    a, b = SPREAD * correct, SPREAD * (1 - correct)

    def log_beta(x: float, y: float) -> float:
        return lgamma(x) + lgamma(y) - lgamma(x + y)

    def probability(k: int) -> float:
        ways = lgamma(group + 1) - lgamma(k + 1) - lgamma(group - k + 1)
        return exp(ways + log_beta(k + a, group - k + b) - log_beta(a, b))

    found = [probability(k) for k in range(group + 1)]
    return Shares(
        taught=sum(p * (group - k) / group for k, p in enumerate(found) if k),
        helped=1 - found[0] - found[1] / group,
        mixed=1 - found[0] - found[-1],
    )


def sampling(model: Model, gpus: Gpus, load: Load) -> float:
    """Return the seconds of sampling, with a whole copy of the model on each GPU.

    steps · 2 w / (r M)      each decoding step reads the weights w; as many as the longest has
    (B/n) T (P + T/2) c / (r M)      each token reads the keys and values before it
    operations / (n u F)
    """
    steps = min(load.limit, load.longest * load.response)
    context = load.response * (load.prompt + load.response / 2)
    read = COPY * model.multiplied * steps
    read += load.rollouts / gpus.number * context * model.cache
    work = shared(model.network, load.prompt, load.response, load.group, 1).total
    return read / (gpus.read * gpus.bandwidth) + load.questions * work / gpus.products


def reference_step(
    model: Model, gpus: Gpus, load: Load, taught: float
) -> tuple[float, float, float]:
    """Return sampling, student and teacher seconds of a trainer that shares no prompts.

    It computes every rollout by itself, whether or not it has a gradient: the student once for
    old log-probabilities and then forward and backward, the teacher for a share of them.
    """
    net = model.network
    student = apart(
        net, load.prompt + load.response, load.response, load.rollouts, 1 + RECOMPUTED
    ).total
    length = load.taught_prompt + load.response
    teacher = apart(net, length, load.response, load.rollouts * taught, 1).total
    return sampling(model, gpus, load), student / gpus.products, teacher / gpus.products


class Step(NamedTuple):
    """Seconds of the parts of one of our SRPO steps.

    Attributes:
        sample: all responses.
        score: student and teacher over the taught rollouts.
        update: forward and backward over the rollouts that have a gradient.
        gather: weights and gradients that travel between ranks in both.
        write: what writing tables takes beyond the update, during which it runs.
        send: new weights to the copies that sample.
    """

    sample: float
    score: float
    update: float
    gather: float
    write: float
    send: float


def our_step(
    model: Model, gpus: Gpus, load: Load, micro_batch: tuple[int, int], written: float, disk: float
) -> Step:
    """Return what one of our SRPO steps costs.

    Args:
        micro_batch: tokens of a pass on each rank, of scoring and of the update.
        written: bytes of the step's tables.
        disk: bytes per second that one writer writes, hashes and syncs.
    """
    found, net = shares(load.correct, load.group), model.network
    groups = load.questions * found.mixed
    taught = load.group * found.taught / found.mixed
    response, prompt = load.response, load.prompt

    def flops(start: float, rows: float, passes: int) -> float:
        return groups * shared(net, start, response, rows, passes).total

    score = flops(prompt, taught, 1) + flops(load.taught_prompt, taught, 1)
    update = flops(prompt, load.group, RECOMPUTED) / gpus.products
    size = COPY * model.parameters

    def turns(start: float, rows: float, budget: int) -> int:
        return ceil(groups * (start + rows * response) / gpus.number / budget)

    scored = turns(prompt, taught, micro_batch[0]) + turns(
        load.taught_prompt, taught, micro_batch[0]
    )
    # Forward and backward gather the weights; gradients travel once, in float32.
    updated = turns(prompt, load.group, micro_batch[1]) * 4
    return Step(
        sample=sampling(model, gpus, load),
        score=score / gpus.products,
        update=update,
        gather=gpus.gathering((scored + updated) * size),
        write=max(0.0, written / disk - update),
        send=gpus.gathering(size),
    )


class Memory(NamedTuple):
    """Bytes per GPU: training state, a whole copy that samples, and what is left for the rest."""

    state: float
    copy: float
    left: float


def memory(model: Model, gpus: Gpus, base: int = COPY) -> Memory:
    """Return what a GPU holds while it samples: training state, and the copy that samples.

    The state is spread over all GPUs. With adapters each holds all of it: the frozen base once,
    in `base` bytes a parameter, and what is trained.
    """
    state, copy = STATE * model.parameters / gpus.number, float(COPY * model.parameters)
    if adapters := model.network.adapters:
        state = float(base * model.parameters + STATE * adapters)
    return Memory(state, copy, USABLE * gpus.memory - state - copy)


def activations(sizes: Mapping[str, int], tokens: float, checkpointing: bool) -> float:
    """Return the bytes that a pass in float32 keeps for its backward pass.

    4 T L (4 D + 3 H + 2 K + 4 I)      T tokens, L layers; D hidden, I inside, H of all queries,
                                       K of all keys: inputs of norms and products, attention's
                                       queries, keys, values and output
    4 T (L D + the same of a layer)    with checkpointing, which keeps each layer's input
    """
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    queries = sizes["num_attention_heads"] * sizes["head_dim"]
    keys = sizes["num_key_value_heads"] * sizes["head_dim"]
    layer = 4 * hidden + 3 * queries + 2 * keys + 4 * sizes["intermediate_size"]
    return 4 * tokens * (layers * hidden + layer if checkpointing else layers * layer)


def _qwen3(hidden: int, inner: int, layers: int, heads: int, tied: bool, rank: int = 0) -> Model:
    sizes = {
        "vocab_size": 151_936,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    net = network(sizes, rank)
    embeddings = net.projection if tied else 2 * net.projection
    return Model(net, net.body + embeddings, cache=COPY * 2 * layers * 8 * 128)


MODELS = {
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen3-8B": _qwen3(4096, 12_288, 36, 32, tied=False),
    "Qwen3-32B": _qwen3(5120, 25_600, 64, 64, tied=False),
}
ADAPTED = _qwen3(4096, 12_288, 36, 32, tied=False, rank=16)
"""Qwen3-8B with adapters of rank 16 on the seven linear layers of each block."""
