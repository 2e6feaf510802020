"""The prompt of a language model as judge (Fig. 10): a frame that no text within it can leave."""

import functools
import json
import unicodedata

# Fig. 10, word for word, but for the quotation mark after "model_identifier that the figure lacks. Each text
# is one JSON string on one line.
TEMPLATE = """\
I require a leaderboard for various large language models. I'll provide you with prompts given to these \
models and their corresponding outputs. Your task is to assess these responses, and select the model that \
produces the best output from a human perspective.
## Instruction
{instruction}
## Model Outputs
Here are the unordered outputs from the models. Each output is associated with a specific model, identified \
by a unique model identifier.
{{
"model_identifier": "0",
"output": {response0}
}}
{{
"model_identifier": "1",
"output": {response1}
}}
## Task
Evaluate the models on the basis of the quality and relevance of their results, and select the model that \
generated the best result. Reply with the identifier of the best model. Our evaluation will only take into \
account the first character of your answer, so make sure it contains only one of the identifiers and nothing \
else (no quotation marks, no spaces, no new lines, ...)."""
_FRAME = frozenset('"\\{}#\n')  # characters that the frame is made of, besides words
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # controls and surrogates, ends of lines and paragraphs
# Classes of characters that change the order of what is shown.
_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # fmt: skip
_TAGS = range(0xE0000, 0xE0080)  # invisible letters


def judge_prompt(prompt: str, first: str, second: str) -> str:
    """Returns what the judge is asked: which of two responses to a prompt is better.

    Every text is quoted, so there are two entries and three headings whatever the texts contain.
    """
    quoted = map(quote, (prompt, first, second))
    return TEMPLATE.format(**dict(zip(("instruction", "response0", "response1"), quoted, strict=True)))


def quote(text: str) -> str:
    r"""Writes a text as a JSON string on one line; `json.loads` returns the text.

    Letters of all scripts stay as they are. Besides what JSON demands it escapes other ends of lines,
    characters that normalise to a part of the frame (as the full-width quotation mark does), and those that
    hide or reorder what is shown.
    """
    return "".join(map(_spelled, json.dumps(text, ensure_ascii=False)))


@functools.lru_cache(4096)
def _spelled(character: str) -> str:
    if character.isascii() and character.isprintable():
        return character
    hidden = unicodedata.bidirectional(character) in _REORDERING or ord(character) in _TAGS
    control = unicodedata.category(character) in _CONTROL
    if hidden or control or _FRAME & {*unicodedata.normalize("NFKC", character)}:
        return json.dumps(character)[1:-1]
    return character
