"""Real tokenizers: special tokens decided once, templates as transformers writes them."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT
from real_text import CHAT, byte_tokenizer, posts
from tokenizers import processors

from sea_jax.errors import InputError
from sea_jax.tasks.conversation import Message, to_text
from sea_jax.tasks.tokenizer import load_tokenizer

END, START, STOP = 0, 1, 2  # <|endoftext|>, <|start|>, <|end|>


@pytest.fixture
def folder(tmp_path):
    byte_tokenizer(posts(20)).save(str(tmp_path / "tokenizer.json"))
    described(tmp_path, eos_token="<|endoftext|>")
    return tmp_path


def described(folder, **fields):
    text = json.dumps(dict(tokenizer_class="PreTrainedTokenizerFast") | fields)
    (folder / "tokenizer_config.json").write_text(text)


def test_without_a_template(folder):
    """EOS pads where nothing else does; what looks like a special token in a text is none."""
    found = load_tokenizer(folder)
    assert (found.eos_id, found.pad_id, found.prefix_ids, found.template) == (END, END, (), None)
    assert found.vocab_size == found.backend.get_vocab_size() == 320
    text = "we ran<|endoftext|> home"
    (ids,) = found.encode([found.chat_pair("we ran", "<|endoftext|> home")])
    assert END not in ids and found.backend.decode(ids) == text
    described(folder, eos_token="<|endoftext|>", pad_token="<|end|>")
    assert load_tokenizer(folder).pad_id == STOP


def test_template_as_transformers_applies_it(folder):
    from transformers import PreTrainedTokenizerFast

    (folder / "chat_template.jinja").write_text(CHAT)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    found = load_tokenizer(folder)
    assert found.eos_id == STOP  # what the template writes after an answer, not <|endoftext|>
    messages = [dict(role="user", content="we ran"), dict(role="assistant", content="home")]
    asked = theirs.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    whole = theirs.apply_chat_template(messages, return_dict=False)
    assert found.encode([found.chat("we ran"), found.chat_pair("we ran", "home")]) == [asked, whole]
    turns = [Message("user", "we"), Message("assistant", "ran"), Message("user", "home")]
    asked = theirs.apply_chat_template(
        [turn._asdict() for turn in turns], add_generation_prompt=True, return_dict=False
    )
    assert found.encode([found.chat(to_text(turns))]) == [asked]
    (ids,) = found.encode([found.chat_pair("we ran", "home<|end|><|start|>user")])
    assert ids.count(STOP) == ids.count(START) == 2  # those of the template
    assert load_tokenizer(folder, chat="no").eos_id == END


def test_a_bos_is_there_once(folder):
    backend = byte_tokenizer(posts(20))
    backend.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", START)]
    )
    backend.enable_truncation(2)
    backend.save(str(folder / "tokenizer.json"))
    found = load_tokenizer(folder)
    (ids,) = found.encode(["we ran home again"])
    assert ids[0] == START and ids.count(START) == 1 and len(ids) > 3
    (folder / "chat_template.jinja").write_text(CHAT)
    assert load_tokenizer(folder).prefix_ids == ()


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (described, {}, "no EOS; valid: eos_token in its tokenizer_config.json"),
        (lambda f: None, dict(eos_token="<stop>"), "eos_token='<stop>': not in the vocabulary"),
        (lambda f: None, dict(chat="yes"), "it has no chat template"),
        (lambda f: None, dict(vocab_size=300), "320 tokens; valid: at most 300"),
        (lambda f: (f / "tokenizer.json").write_text("{"), {}, "cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), {}, "valid: a folder that has one"),
        (lambda f: (f / "chat_template.jinja").write_text("{% if %}"), {}, "its chat template fails"),
    ],
)
def test_what_is_said_of_spoilt_ones(folder, spoil, options, said):
    spoil(folder)
    with pytest.raises(InputError) as error:
        load_tokenizer(folder, **options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_eos_of_the_generation_config(folder):
    described(folder)
    (folder / "generation_config.json").write_text(json.dumps(dict(eos_token_id=[2, 0])))
    assert load_tokenizer(folder).eos_id == STOP


def test_no_torch(folder):
    """Torch is installed where the tests run; reading a tokenizer must not touch it."""
    code = (
        "import sys; from sea_jax.tasks.tokenizer import load_tokenizer;"
        f"load_tokenizer({str(folder)!r}).encode(['a']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_hub_name_may_carry_a_revision(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *args, **kwargs: asked.append((args, kwargs)) or str(folder),
    )
    found = load_tokenizer("a/b@v2")
    assert found.vocab_size == 320 and found.name == "a/b@v2"
    (((name,), options),) = asked
    assert name == "a/b" and options["revision"] == "v2" and "tokenizer.json" in options["allow_patterns"]
