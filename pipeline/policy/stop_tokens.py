"""Stop tokens: which tokens end a response. Engines, evaluations and texts all have them from here.

Generation config, tokenizer and chat template each name some, and they need not agree: a model may
be trained to end its turns with `<|im_end|>` while its generation config says `<|endoftext|>`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.config.sections import ModelSection
from pipeline.errors import PolicyError
from pipeline.policy.prompts import (
    ANSWERED,
    ASKED,
    ASSISTANT,
    SYSTEM,
    USER,
    Prompts,
    encode_prompt,
)
from pipeline.task import Message
from pipeline.text import printable

CONFIG, TOKENIZER, TEMPLATE = "generation config", "tokenizer", "chat template"


class Closing(NamedTuple):
    """How a chat template closes an assistant's turn.

    Attributes:
        token: the id of the token; None: there is none.
        note: why there is none.
    """

    token: int | None
    note: str = ""


@dataclass
class StopTokens:
    """The tokens that end a response.

    Attributes:
        sources: who names each, by id.
        names: the text of each, by id.
        note: why the chat template names none, if so.
    """

    sources: dict[int, list[str]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    note: str = ""

    @property
    def closing(self) -> int:
        """Return the one that a worked solution ends with: as the chat template closes a turn."""
        for source in (TEMPLATE, TOKENIZER):
            for token, sources in self.sources.items():
                if source in sources:
                    return token
        return next(iter(self.sources))

    @property
    def line(self) -> str:
        """Say in one line what they are, and who says so."""
        return ", ".join(
            f"{printable(self.names[token], 60)} ({token}: {', '.join(sources)})"
            for token, sources in self.sources.items()
        )

    def record(self) -> list[dict[str, Any]]:
        """Return what run.json holds of them."""
        return [
            {"id": token, "token": self.names[token], "from": sources}
            for token, sources in self.sources.items()
        ]


def stop_tokens(
    generation_config: Any, tokenizer: Any, settings: ModelSection, vocabulary: int, name: str
) -> StopTokens:
    """Return the union of what is named, or what the settings name instead and besides.

    Args:
        generation_config: transformers' of the model; None: it has none.
        vocabulary: V, the number of logits.
        name: the model's, for errors.

    Raises:
        PolicyError: nobody names any, or one is no token of the model.
    """
    found = StopTokens()
    closing = closing_token(tokenizer, Prompts(tokenizer, settings))
    named: list[tuple[int, str]] = []
    if settings.stop_tokens is not None:
        named += [
            (_token(given, tokenizer, "model.stop_tokens"), "model.stop_tokens")
            for given in settings.stop_tokens
        ]
    else:
        eos = generation_config.eos_token_id if generation_config else None
        named += [(token, CONFIG) for token in _listed(eos, name, CONFIG)]
        named += [(token, TOKENIZER) for token in _listed(tokenizer.eos_token_id, name, TOKENIZER)]
        named += [(closing.token, TEMPLATE)] if closing.token is not None else []
        found.note = closing.note
    named += [
        (_token(given, tokenizer, "model.extra_stop_tokens"), "model.extra_stop_tokens")
        for given in settings.extra_stop_tokens
    ]
    for token, source in named:
        if not 0 <= token < vocabulary:
            raise PolicyError(
                f"{name}: EOS is {token} by its {source}, the model has {vocabulary} logits"
            )
        sources = found.sources.setdefault(token, [])
        if source not in sources:
            sources.append(source)
        found.names[token] = _name(tokenizer, token)
    if not found.sources:
        raise PolicyError(
            f"{name}: model.stop_tokens is empty; name a token, or leave the setting out"
            if settings.stop_tokens is not None
            else f"{name}: neither generation config nor tokenizer names an EOS token, and "
            f"{closing.note}; name one with model.stop_tokens"
        )
    return found


def closing_token(tokenizer: Any, prompts: Prompts) -> Closing:
    """Find the token with which the chat template closes an assistant's turn: render one, and look.

    A turn that closes with white space, with a text of several tokens or not at all gives none.
    """
    turns = [Message(USER, ASKED), Message(ASSISTANT, ANSWERED)]
    tried: Sequence[Sequence[Message]] = (turns, [Message(SYSTEM, ASKED), *turns])
    text, reason = "", ""
    for conversation in tried:
        try:
            text = prompts.text(conversation, header=False)
            break
        except Exception as error:  # of somebody else's program
            reason = reason or printable(" ".join(str(error).split()), 200)
    else:
        return Closing(None, f"the chat template renders no turn of an assistant ({reason})")
    _, answered, tail = text.rpartition(ANSWERED)
    if not answered:
        return Closing(None, "the chat template leaves the assistant's turn out")
    added = _first_added(tokenizer, tail)
    if added is not None and added[0] not in prompts.header:
        return Closing(added[1])
    closing = tail.strip() if added is None else tail.partition(added[0])[0].strip()
    if not closing:
        return Closing(None, "the chat template closes an assistant's turn with no token")
    ids = encode_prompt(tokenizer, closing)
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return Closing(ids[0])
    return Closing(
        None,
        f"the chat template closes an assistant's turn with {printable(repr(closing), 60)}, which "
        f"is no single token but {len(ids)}",
    )


def _first_added(tokenizer: Any, text: str) -> tuple[str, int] | None:
    """Return the first token in a text that the tokenizer knows as a whole; of equals the longest.

    White space aside, which some tokenizers add as tokens too.
    """
    known = tokenizer.get_added_vocab()
    found = [(text.find(word), -len(word), word) for word in known if word.strip() and word in text]
    return (word := min(found)[2], known[word]) if found else None


def _listed(eos: Any, name: str, source: str) -> list[int]:
    """Return EOS ids, which may be one, several or none."""
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise PolicyError(
            f"{name}: EOS is {printable(repr(eos), 60)} by its {source}; expected ids of tokens"
        )
    return ids


def _token(given: str | int, tokenizer: Any, setting: str) -> int:
    """Return the id of a token that a setting names, by its text or id."""
    if isinstance(given, int):
        return given
    known = tokenizer.get_vocab().get(given)
    ids = [known] if known is not None else encode_prompt(tokenizer, given)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise PolicyError(
            f"{setting}: {printable(repr(given), 60)} is no single token of this tokenizer but "
            f"{len(ids)}: {ids[:8]}; name a token by its text or id"
        )
    return int(ids[0])


def _name(tokenizer: Any, token: int) -> str:
    found = tokenizer.convert_ids_to_tokens(token)
    return str(found) if found is not None else "without a text"
