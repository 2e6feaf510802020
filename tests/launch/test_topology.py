import pytest

from launch import topology
from sea_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("a100-40gb:8", 8, "a100-40gb:8"),
        ("h100:1024", 1024, "h100:1024"),
        ("v5p:64", 64, "v5p:4x4x4"),
        ("v5p:32", 32, "v5p:2x4x4"),
        ("v5e:8", 8, "v5e:2x4"),
        ("v5p:4x4x8", 128, "v5p:4x4x8"),
        ("cpu:3", 3, "cpu:3"),
    ],
)
def test_parse(text, count, name):
    parsed = topology.parse(text)
    assert parsed.count == count and str(parsed) == name


@pytest.mark.parametrize(
    "text", ["a100:8", "v5p", "v5p:0", "v5p:48", "a100-40gb:12", "v5e:2x2x2", "h100:2x4", ""]
)
def test_what_there_is_not_is_named(text):
    with pytest.raises(InputError, match=f"--topology={text}: valid is"):
        topology.parse(text)


def test_a_gpu_is_described_to_the_compiler():
    target = topology._target(topology.DEVICES["a100-40gb"])
    assert "cuda_compute_capability { major: 8 minor: 0 }" in target and "core_count: 108" in target
    assert target.count("{") == target.count("}")
