"""What docs/guides/security.md promises: nothing is unpickled, no code of a model runs, no key is written down.

What the services listen on is tested where they are started: tests/serve, tests/actors, tests/multi_device.
"""

import ast
import gc
import io
import json
import logging as std_logging
import os
import re
import shutil
import socket
import subprocess
import sys

import jax.numpy as jnp
import msgpack
import numpy as np
import pyarrow as pa
import pytest
from helpers import ROOT, Bomb, bomb
from pyarrow import parquet
from real_text import user_files
from services import Http, Judging, completion, oracle_http

from configs import quickstart, tldr
from sea_jax import models
from sea_jax.actors import proposals, ray_pool
from sea_jax.config.printing import describe
from sea_jax.errors import InputError, ServiceError
from sea_jax.experiment import run as experiment
from sea_jax.experiment.base_config import sections_of
from sea_jax.experiment.validate import validate_fields, validate_parts
from sea_jax.oracles import messages
from sea_jax.oracles.judge import Judge
from sea_jax.oracles.remote import RemoteOracle, RequestLimits
from sea_jax.pretraining import cache
from sea_jax.runtime import process
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.tasks import sources
from sea_jax.tasks.tokenizer import load_tokenizer

OURS = [
    file
    for folder in ("sea_jax", "configs", "launch", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
]
KEY = "sk-known-to-nobody-but-this-test-0123456789"
JSON = {"content-type": "application/json"}


# --- pickles --------------------------------------------------------------------------------------

UNPICKLES = {  # modules whose readers run code; Ray's own use between its processes is in the guide
    "pickle", "_pickle", "cPickle", "pickle5", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve",
}  # fmt: skip
READERS = {"read_pickle", "unsafe_load", "full_load", "serialize_ipc", "deserialize_ipc"}


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_file_of_ours_can_unpickle():
    """Neither by a module that unpickles, nor by an option of one that need not."""
    wrong = []
    for file in OURS:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Attribute):
                names = [node.attr]
            wrong += [(file, name) for name in names if {*name.split(".")} & (UNPICKLES | READERS)]
        for call in calls(tree):
            called = ast.unparse(call.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            wrong += [(file, called)] * (called in ("torch.load", "yaml.load"))
            wrong += [(file, f"{called} allow_pickle")] * (options.get("allow_pickle", "False") != "False")
    assert not wrong and len(OURS) > 100


def npz(array):
    file = io.BytesIO()
    np.savez(file, tokens=array, allow_pickle=True)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.fixture
def made(tmp_path):
    """A file that exists when a bomb went off."""
    yield tmp_path / "made"
    assert not (tmp_path / "made").exists()


def test_arrays_of_a_journal_are_no_objects(made):
    objects = np.array([Bomb(made)], object)
    for content in (npz(objects), npy(objects), bomb(made)):
        with pytest.raises((ValueError, OSError)):
            proposals.unpack(content)


def test_weights_are_no_pickles(made, tmp_path):
    """As the file that is read, and as the format that PyTorch has."""
    content = bomb(made)
    (tmp_path / "part").mkdir()
    cache.writer({"a": np.ones(2, np.float32)})(tmp_path / "part")
    (tmp_path / "part" / "params.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"params\.safetensors"):
        cache.read_params(tmp_path / "part")
    policy = models.PythiaConfig(vocab_size=9, num_layers=1, width=16, num_heads=2, mlp_width=8, max_length=8)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(policy.to_hf()))
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"PyTorch \.bin weights only"):
        models.load(str(folder))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        models.load(str(folder))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # futures of TensorStore that failed
def test_checkpoints_are_no_pickles(made, tmp_path):
    """Each file in turn is a pickle: the checkpoint is damaged, or the file is not read."""
    content, tree = bomb(made), dict(w=jnp.ones(3))
    with CheckpointFolder(tmp_path / "c", 0, 2) as folder:
        folder.save(1, {}, tree=tree)
    files = [file for file in (tmp_path / "c").rglob("*") if file.is_file()]
    assert len(files) > 5
    for file in files:
        before = file.read_bytes()
        file.write_bytes(content)
        with CheckpointFolder(tmp_path / "c", 0, 2) as folder:
            try:
                folder.newest(tree=tree)
            except InputError as error:
                assert "none of its checkpoints can be read" in str(error)
        assert not made.exists(), file
        file.write_bytes(before)
    gc.collect()


def test_messages_of_the_oracle_service_are_no_pickles(made):
    """A client's to the service, the service's to a client, and msgpack's own extensions."""
    content = bomb(made)
    extended = msgpack.packb(
        {"version": 2, "id": "", "endpoint": "rewards", "prompts": msgpack.ExtType(5, content)}
    )
    for body in (content, extended, msgpack.packb(msgpack.ExtType(5, content))):
        with pytest.raises(messages.RefusedError):
            messages.read_request(body)
        with pytest.raises(ValueError, match=r"msgpack map|version|an answer to|list of numbers"):
            messages.read_answer(body, "", "rewards", 1)
    with oracle_http(lambda request, good: content) as server:
        oracle = RemoteOracle(server.url, limits=RequestLimits(1.0, 2.0, 1))
        with pytest.raises(ServiceError, match="not a msgpack map"):
            oracle.rewards(["x"], ["y"])


def test_columns_of_parquet_are_no_objects(made, tmp_path):
    """Arrow once unpickled extension types."""
    marks = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bomb(made)}
    schema = pa.schema([pa.field("prompt", pa.string(), metadata=marks)])
    parquet.write_table(pa.table([["x"]], schema=schema), tmp_path / "train.parquet")
    tables = sources.read_path(str(tmp_path / "train.parquet"), {"prompt"})
    assert tables["train"].rows == [{"prompt": "x"}]


# --- code of models -------------------------------------------------------------------------------


def test_no_call_trusts_remote_code():
    """No call of ours lets a repository's code run, nor names one of transformers' classes that could."""
    trusting, named = [], []
    for file in OURS:
        tree = ast.parse(file.read_text())
        trusting += [
            (file, ast.unparse(call)) for call in calls(tree) for option in call.keywords
            if option.arg == "trust_remote_code" and ast.unparse(option.value) != "False"
        ]  # fmt: skip
        named += [
            (file, node.value) for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            and re.fullmatch(r"-*trust[_-]remote[_-]code|VLLM_TRUST\w*|HF_\w*TRUST\w*", node.value)
        ]  # fmt: skip
        if file.parts[len(ROOT.parts)] in ("sea_jax", "launch"):
            named += [
                (file, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                and str(node.module).partition(".")[0] == "transformers" for alias in node.names
                if alias.name != "PreTrainedTokenizerFast"
            ]  # fmt: skip
    assert not trusting and not named


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    user_files(folder, chat=True)
    return folder


def test_code_in_a_models_folder_does_not_run(made, files, tmp_path):
    """Its configs name Python files that lie beside them, as trust_remote_code would read."""
    folder = shutil.copytree(files / "policy", tmp_path / "policy")
    code = f"import pathlib; pathlib.Path({str(made)!r}).touch()\nclass Custom: pass\n"
    for name in ("modeling_custom", "configuration_custom", "tokenization_custom"):
        (folder / f"{name}.py").write_text(code)
    autos = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    for file, described in {
        "config.json": dict(auto_map=dict.fromkeys(autos, "modeling_custom.Custom")),
        "tokenizer_config.json": dict(
            auto_map=dict(AutoTokenizer=["tokenization_custom.Custom"] * 2), tokenizer_class="Custom"
        ),
    }.items():
        before = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(before | described | dict(trust_remote_code=True)))
    models.load(str(folder))
    assert load_tokenizer(folder).encode(["my dog"])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch made') }}",
    ],
)
def test_a_chat_template_is_in_a_sandbox(files, tmp_path, template):
    folder = shutil.copytree(files / "policy", tmp_path / "policy")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match="its chat template fails"):
        load_tokenizer(folder)


def test_the_sidecars_engine_takes_no_option_of_a_user():
    """The names of its options are ours, and LLM(trust_remote_code=False) stands beside them."""
    sidecar = ast.parse((ROOT / "sea_jax/actors/vllm_sidecar.py").read_text())
    (engine,) = (call for call in calls(sidecar) if ast.unparse(call.func) == "LLM")
    assert {k.arg: ast.unparse(k.value) for k in engine.keywords}["trust_remote_code"] == "False"
    sampler = ast.parse((ROOT / "sea_jax/actors/vllm_sampler.py").read_text())
    (options,) = (
        node.value for node in ast.walk(sampler)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "engine"
    )  # fmt: skip
    assert all(option.arg for option in options.keywords) and not options.args


# --- keys -----------------------------------------------------------------------------------------


def echo(status, text="refused {}"):
    """A server that sends back what it was sent, with the key."""

    def answer(path, headers, body):
        said = text.format(headers["authorization"])
        return status, JSON, json.dumps({"error": {"message": f"{said}\n{body.decode()}"}}).encode()

    return answer


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_key_that_is_sent_back_is_in_no_error_and_no_log(status, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Http(echo(status)) as server, caplog.at_level(std_logging.DEBUG):
        judge = Judge(f"{server.url}/v1", f"model {KEY}", limits=RequestLimits(1.0, 1.0, 2, 1))
        with pytest.raises(ServiceError) as error:
            judge.answers([f"x {KEY}"], ["a"], ["b"])
    seen = f"{error.value!s} {error.value!r} {caplog.text} {judge.metrics()}"
    if status < 429:  # else it is asked again, and the last attempt may be cut short
        assert f"status {status}: refused Bearer [OPENAI_API_KEY]" in seen
    assert KEY not in seen and KEY[:20] not in seen


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_token_that_is_sent_back_is_in_no_error(status, monkeypatch, caplog):
    """Nor the part of it that stands before the end of what is shown."""
    monkeypatch.setenv("SEA_JAX_ORACLE_TOKEN", KEY)
    for before in ("", "a" * 190):
        refusal = (
            messages.pack_answer("", error=f"{before}{KEY}", kind="token")
            if status == 200
            else f"{before}{KEY}"
        )
        content = refusal if isinstance(refusal, bytes) else refusal.encode()
        with (
            Http(lambda *_, sent=content: (status, {}, sent)) as server,
            pytest.raises(ServiceError) as error,
        ):
            RemoteOracle(server.url, limits=RequestLimits(1.0, 1.0, 1)).check()
        assert KEY[:8] not in f"{error.value!s}{caplog.text}"


@pytest.fixture
def quick(monkeypatch):
    import tenacity

    from sea_jax.oracles import patience

    monkeypatch.setattr(patience, "_BACKOFF", tenacity.wait_fixed(0.05))


@pytest.mark.parametrize(("key", "sent"), [(f"{KEY}\n", KEY), (f"  {KEY}", KEY), ("", "none")])
def test_white_space_around_a_key_is_not_sent(key, sent, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with Http(judging := Judging()) as server:
        Judge(f"{server.url}/v1", "gpt").check()
    assert judging.seen[0][1] == f"Bearer {sent}"


@pytest.mark.parametrize("key", [f"{KEY}\nmore", f"{KEY}é", f"{KEY}\x7f"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=r"OPENAI_API_KEY .*not shown; valid is printable ASCII") as error:
        Judge("http://127.0.0.1:1/v1", "gpt")
    assert KEY not in str(error.value)


URLS = [
    "http://user:pa55word@127.0.0.1:8000", "http://pa55word@127.0.0.1:8000/v1", "user:pa55word@127.0.0.1",
    "http://user:pa55/word@127.0.0.1", "http://127.0.0.1:8000/v1?key=pa55word", "http://127.0.0.1/#pa55word",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_a_url_with_a_password_is_refused_and_not_shown(url):
    for make in (RemoteOracle, lambda url: Judge(url, "gpt")):
        with pytest.raises(InputError, match=r"valid is http\(s\)://host") as error:
            make(url)
        assert "pa55" not in str(error.value)
    for kind, name in (("remote", "url"), ("judge", "base_url")):
        config = quickstart.get_config()
        config.oracle.update({"kind": kind, "model": "gpt", name: url})
        with pytest.raises(InputError, match=rf"config\.oracle\.{name}='.*\[credentials\]") as error:
            validate_parts(config)
        assert "pa55" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("oracle.model", f"gpt {KEY}"),
        ("task.path", "https://me:pa55word@host/x"),
        ("oracle.url", f"http://h/{KEY}"),
    ],
)
def test_a_config_with_a_key_is_refused_since_it_is_written(field, value, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = quickstart.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=rf"config\.{field}='.*': valid is a value without keys") as error:
        validate_fields(config)
    printed = describe(config, sections_of(config))
    assert KEY not in f"{error.value}{printed}" and "pa55" not in f"{error.value}{printed}"


def holders(folder, secret):
    """The files below a folder that have the secret in them, or in their names."""
    found = [file for file in folder.rglob("*") if file.is_file()]
    assert found
    return [file for file in found if secret.encode() in file.read_bytes() or secret in str(file)]


def with_a_judge(files, url):
    """The fields of a tiny run whose oracle is a judge."""
    return {
        "policy.folder": str(files / "policy"), "task.path": str(files / "posts"), "task.num_train": 0,
        "task.num_tuning": 4, "task.num_heldout": 4, "task.prompt_length": 64, "task.response_length": 6,
        "oracle.kind": "judge", "oracle.model": "gpt", "oracle.base_url": url, "eval.num_prompts": 4,
        "eval.num_pairs": 4, "eval.batch_size": 4, "eval.every_queries": 4, "methods": ("passive",), "mesh.fsdp": 1,
        "train.batch_size": 4, "train.micro_batch": 2, "train.token_chunk": 3, "train.query_budget": 8,
        "sampler.micro_batch": 2, "num_seeds": 1, "checkpoint.every_s": 0.0, "progress": False,
    }  # fmt: skip


@pytest.mark.slow
def test_a_command_whose_judge_refuses_leaves_no_key(files, tmp_path):
    """A whole process: its output with logs at their loudest, and every file of its work directory.

    The judge answers 500, which is logged, then 401.
    """
    replies = [echo(500), echo(401)]

    def answer(*request):
        return replies.pop(0)(*request)

    with Http(answer) as server:
        fields = with_a_judge(files, f"{server.url}/v1")
        done = subprocess.run(
            [sys.executable, "-m", "sea_jax.main", "--config=configs/tldr.py", f"--workdir={tmp_path / 'runs'}", "-v=2",
             *(f"--config.{k}={v}" for k, v in fields.items())],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"},
        )  # fmt: skip
    assert done.returncode == 2 and not replies, done.stderr
    for status in (500, 401):
        assert f"status {status}: refused Bearer [OPENAI_API_KEY]" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert (tmp_path / "runs" / "config.json").exists() and not holders(tmp_path / "runs", KEY)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_run_whose_judge_refuses_leaves_no_key(status, files, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = tldr.get_config()
    with Http(echo(status)) as server, caplog.at_level(std_logging.INFO):
        config.update_from_flattened_dict(
            with_a_judge(files, f"{server.url}/v1") | {"oracle.patience_s": 0.5}
        )
        with pytest.raises(ServiceError) as error:
            experiment.run(config, str(tmp_path / "runs"))
    assert KEY not in f"{error.value}{caplog.text}{capsys.readouterr()}"
    assert ("the environment's OPENAI_API_KEY" in str(error.value)) == (status == 401)
    assert (tmp_path / "runs" / "config.json").exists() and not holders(tmp_path / "runs", KEY)


@pytest.mark.usefixtures("quick")
def test_a_run_whose_judge_repeats_the_key_leaves_none(files, tmp_path, monkeypatch, caplog, capsys):
    """Journal, checkpoints, metrics, samples, report and config of a run to its end; some calls fail first."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def repeat(n, top):
        told = json.loads(completion(top))
        told.update(id=KEY, model=KEY)
        told["choices"][0]["message"]["content"] = KEY
        good = 200, JSON | {"x-request-id": KEY}, json.dumps(told).encode()
        return good if n % 3 else (500, JSON, json.dumps({"error": {"message": KEY}}).encode())

    config = tldr.get_config()
    with Http(judging := Judging(spoil=repeat)) as server, caplog.at_level(std_logging.INFO):
        config.update_from_flattened_dict(with_a_judge(files, f"{server.url}/v1"))
        report = experiment.run(config, str(tmp_path))
    assert {call[1] for call in judging.seen} == {f"Bearer {KEY}"} and len(judging.seen) > 20
    assert KEY not in report + caplog.text + "".join(capsys.readouterr())
    names = {file.name for file in tmp_path.rglob("*")}
    assert {
        "labels.sqlite",
        "metrics.jsonl",
        "samples.jsonl",
        "config.json",
        "checkpoints",
        "report.txt",
    } <= names
    assert not holders(tmp_path, KEY)


def test_workers_of_ray_are_given_no_key(monkeypatch):
    """Ray writes the variables that it is given to its logs."""
    for name in ("OPENAI_API_KEY", "SEA_JAX_ORACLE_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("HF_HOME", "/hub")
    forwarded = ray_pool._forwarded()
    assert forwarded["HF_HOME"] == "/hub" and KEY not in forwarded.values()


# --- what listens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "there", "bound"),
    [
        ("127.0.0.1:5", None, "127.0.0.1:5"),
        ("localhost:5", None, "127.0.0.1:5"),
        ("127.0.0.3:5", None, "127.0.0.3:5"),
        ("[::1]:5", None, "[::1]:5"),
        ("node0:5", ["127.0.0.1"], None),
        ("node0:5", [], None),
        ("node0:5", ["192.0.2.1", "2001:db8::1"], None),
        ("192.0.2.1:5", None, None),
    ],
)  # fmt: skip
def test_the_coordinator_listens_at_the_host_that_is_given(address, there, bound, monkeypatch, caplog):
    """Else on all interfaces, and says so: a name that means loopback, another machine's address."""
    if there is not None:
        monkeypatch.setattr(process, "_addresses", lambda host: there)
    if "::1" in address and not has_ipv6():
        pytest.skip("no IPv6 here")
    assert process.bind_address(address) == bound
    assert ("listens on all its interfaces" in caplog.text) == (bound is None)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
