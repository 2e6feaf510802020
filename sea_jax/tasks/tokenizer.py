"""Loads tokenizers of real models, with their special tokens and chat templates.

Reads files through transformers, which needs no torch for this: `pip install sea_jax[hub]`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from sea_jax import hub
from sea_jax.errors import InputError
from sea_jax.tasks.conversation import Message, to_messages
from sea_jax.tasks.protocol import utf8

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "chat_template.jinja", "chat_template.json", "generation_config.json")  # fmt: skip
CHAT = ("auto", "yes", "no")
# Some templates write today's date into the prompt, and runs would differ from day to day.
_DATE = "26 Jul 2024"
_PROBE = "sea0probe"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's tokenizer and its special tokens.

    Attributes:
      name: folder or hub name.
      folder: of its files.
      backend: neither pads nor truncates; call it with add_special_tokens=False.
      eos_id: the one id that ends a response; see `load_tokenizer`.
      pad_id: the tokenizer's own padding token, else `eos_id`: all arrays carry masks, and masked tokens are
        never read.
      vocab_size: the highest id + 1; the embedding of a model must have as many rows.
      prefix_ids: tokens that the tokenizer puts before a text by default, mostly a BOS or nothing. Empty
        with a chat template, which writes its own BOS.
      template: transformers' tokenizer, if its chat template is in use.
      special: matches the text of a special token; None if there are none.
    """

    name: str
    folder: Path
    backend: tokenizers.Tokenizer
    eos_id: int
    pad_id: int
    vocab_size: int
    prefix_ids: tuple[int, ...]
    template: Any | None
    special: re.Pattern[str] | None

    def chat(self, prompt: str) -> str:
        """Renders the text that a policy continues: the turns of a prompt and the header of the answer.

        Returns the prompt itself without a template. A special token that the prompt spells out gets a space
        after its first character, so that it stays text.
        """
        if self.template is None:
            return prompt
        return self._render(to_messages(prompt), add_generation_prompt=True)

    def chat_pair(self, prompt: str, response: str) -> str:
        """Renders the whole conversation, user and assistant, as reward models read it.

        Returns prompt + response without a template. Special tokens stay text as in `chat`: no response can
        close its own turn.
        """
        if self.template is None:
            return prompt + response
        return self._render([*to_messages(prompt), Message("assistant", response)])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises texts made by `chat` or `chat_pair`, with at most one BOS.

        Args:
          texts: B texts.

        Returns:
          B lists of ids, neither padded nor truncated.
        """
        # Without a template no special token is intended, and text must not become one.
        self.backend.encode_special_tokens = self.template is None
        encodings = self.backend.encode_batch([utf8(text) for text in texts], add_special_tokens=False)
        return [[*self.prefix_ids, *encoding.ids] for encoding in encodings]

    def _render(self, messages: list[Message], **options: Any) -> str:
        assert self.template is not None
        if self.special is not None:
            spaced = lambda found: f"{found[0][0]} {found[0][1:]}"  # noqa: E731
            messages = [m._replace(content=self.special.sub(spaced, m.content)) for m in messages]
        turns = [message._asdict() for message in messages]
        return self.template.apply_chat_template(turns, tokenize=False, date_string=_DATE, **options)


def load_tokenizer(
    name: str | Path, *, chat: str = "auto", eos_token: str = "", vocab_size: int | None = None
) -> Tokenizer:
    """Reads a tokenizer in Hugging Face's layout.

    The EOS is the first of: `eos_token`; the special token that the chat template in use writes after an
    answer (Llama 3 Instruct: <|eot_id|>); the tokenizer's own `eos_token` (Llama 3: <|end_of_text|>);
    `eos_token_id` of generation_config.json, the first of a list.

    Args:
      name: a folder with tokenizer.json, or a hub name, which may be 'name@revision'.
      chat: use of the chat template, one of `CHAT`; "auto": if there is one.
      eos_token: text of the token that ends a response; empty: as above.
      vocab_size: the model's, to check the tokenizer's against.

    Raises:
      InputError: no such folder or hub name, broken files, no EOS, a requested template that is absent or
        broken, more tokens than the model has, or transformers is not installed.
    """
    folder = _folder(str(name))
    loaded = _read(str(name), folder)
    if chat == "yes" and loaded.chat_template is None:
        raise InputError(
            f"tokenizer {str(name)!r}: chat='yes', but it has no chat template; "
            "valid: 'no', or a chat_template.jinja beside tokenizer.json"
        )
    backend = loaded.backend_tokenizer
    # A tokenizer.json may store padding and truncation, which would truncate prompts.
    backend.no_padding()
    backend.no_truncation()
    uses_chat = chat != "no" and loaded.chat_template is not None
    added = backend.get_added_tokens_decoder().values()
    spelled = sorted((re.escape(token.content) for token in added if token.special), key=len, reverse=True)
    plain = Tokenizer(
        name=str(name), folder=folder, backend=backend, eos_id=-1, pad_id=-1,
        vocab_size=max(backend.get_vocab().values(), default=-1) + 1,
        prefix_ids=() if uses_chat else _prefix(backend),
        template=loaded if uses_chat else None,
        special=re.compile("|".join(spelled)) if spelled else None,
    )  # fmt: skip
    if vocab_size is not None and plain.vocab_size > vocab_size:
        raise InputError(f"tokenizer {str(name)!r}: {plain.vocab_size} tokens; valid: at most {vocab_size}, "
                         "the model's vocabulary")  # fmt: skip
    eos_id = _eos_id(plain, loaded, eos_token)
    pad_id = eos_id if loaded.pad_token is None else loaded.pad_token_id
    return dataclasses.replace(plain, eos_id=eos_id, pad_id=pad_id)


def _folder(name: str) -> Path:
    """Returns the folder of the tokenizer's files, fetched from the hub unless the name is a folder."""
    folder = Path(name)
    if not folder.is_dir():
        folder = hub.download(name, FILES, "tokenizer")
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"tokenizer {name!r}: no {folder / 'tokenizer.json'}; valid: a folder that has one")
    return folder


def _read(name: str, folder: Path) -> Any:
    # Not AutoTokenizer, which imports torch if it is installed and rebuilds some tokenizers from their
    # vocabulary. This class takes tokenizer.json as it is.
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise InputError(
            f"tokenizer {name!r}: transformers is not installed; valid: pip install sea_jax[hub]"
        ) from None
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = hub.first_line(error)
        raise InputError(f"tokenizer {name!r}: the files in {folder} cannot be read ({reason})") from None


def _prefix(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Returns the tokens before a text when the tokenizer adds its special tokens."""
    text = backend.encode(_PROBE, add_special_tokens=False).ids
    full = backend.encode(_PROBE, add_special_tokens=True).ids
    start = next(i for i in range(len(full)) if full[i : i + len(text)] == text)
    return tuple(full[:start])


def _eos_id(tokenizer: Tokenizer, loaded: Any, eos_token: str) -> int:
    backend = tokenizer.backend
    if eos_token:
        chosen = backend.token_to_id(eos_token)
        if chosen is None:
            raise InputError(
                f"eos_token={eos_token!r}: not in the vocabulary of tokenizer {tokenizer.name!r}; "
                "valid: a token of it"
            )
        return chosen
    if tokenizer.template is not None and (ends := _end_of_turn(tokenizer)) is not None:
        return ends
    if loaded.eos_token is not None:
        return loaded.eos_token_id
    given = _generation_eos(tokenizer)
    if given is None:
        raise InputError(
            f"tokenizer {tokenizer.name!r}: no EOS; valid: eos_token in its tokenizer_config.json, "
            "or the option eos_token"
        )
    return given


def _end_of_turn(tokenizer: Tokenizer) -> int | None:
    """Returns the special token that the template writes after an answer, None if there is none."""
    try:
        text = tokenizer.chat_pair("hello", _PROBE)
        tokenizer.chat("hello")
    except Exception as error:  # raised by the template's own code
        reason = hub.first_line(error)
        raise InputError(f"tokenizer {tokenizer.name!r}: its chat template fails ({reason})") from None
    found = tokenizer.special and tokenizer.special.match(text.rpartition(_PROBE)[2].lstrip())
    return tokenizer.backend.token_to_id(found[0]) if found else None


def _generation_eos(tokenizer: Tokenizer) -> int | None:
    file = tokenizer.folder / "generation_config.json"
    if not file.exists():
        return None
    try:
        ids = json.loads(file.read_text())["eos_token_id"]
    except (ValueError, KeyError, TypeError):
        return None
    first = ids[0] if isinstance(ids, list) and ids else ids
    return first if type(first) is int and 0 <= first < tokenizer.vocab_size else None
