"""Options of config files, as users write them behind the colon."""

import pytest

from configs import tldr
from sea_jax.config.options import parse_options

VALID = dict(size=("1b", "2.8b"), method=None)


def test_parse():
    assert parse_options("", **VALID) == {}
    assert parse_options("size=1b,method=x=y,", **VALID) == {"size": "1b", "method": "x=y"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("sise=1b", "config option 'sise=1b': valid names are size, method"),
        ("size=7b", "config option 'size=7b': valid values are 1b, 2.8b"),
        ("size", "config option 'size': valid values are 1b, 2.8b"),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        parse_options(options, **VALID)


def test_of_a_config_file():
    config = tldr.get_config("size=2.8b,dap=slic,method=ee_ts")
    assert "2.8b" in config.policy.folder and config.train.dap == "slic" and config.methods == ("ee_ts",)
    with pytest.raises(ValueError, match=r"valid values are 1b, 2\.8b, 6\.9b"):
        tldr.get_config("size=12b")
