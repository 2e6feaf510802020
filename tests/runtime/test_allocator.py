import pytest

from sea_jax.runtime import allocator


@pytest.mark.parametrize(
    ("platforms", "found"),
    [("cpu", True), ("cuda", False), ("cuda,cpu", False), ("tpu", False), ("cpu,cuda", True)],
)
def test_jax_platforms_decides(monkeypatch, platforms, found):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert allocator.runs_on_cpu() is found
    if not found:
        assert not allocator.keep_freed_memory()


@pytest.mark.parametrize("plugin", [None, "jax_cuda13_plugin", "libtpu"])
def test_else_an_installed_plugin_decides(monkeypatch, plugin):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(allocator.importlib.util, "find_spec", lambda name: name == plugin or None)
    assert allocator.runs_on_cpu() is (plugin is None)
