"""The config of a real language model on this machine; its files are not here, so only fields are checked."""

import pytest

from configs import smollm2
from sea_jax.errors import InputError
from sea_jax.experiment import validate
from sea_jax.oracles import function


@pytest.mark.parametrize("oracle", smollm2.ORACLES)
def test_every_oracle_has_a_valid_config(oracle):
    config = smollm2.get_config(oracle)
    validate.validate_fields(config)
    assert config.oracle.kind == ("reward_model" if oracle == "critics" else "function")


def test_the_lexicon_prefers_praise():
    score = function.load(smollm2.get_config("sentiment").oracle.function)
    praise, blame, neither = score.ask([""] * 3, ["A great, moving film.", "A dull, awful film.", "A film."])
    assert 3 >= praise > 1 and -3 <= blame < -1 and neither == 0


def test_an_unknown_oracle_names_the_valid_ones():
    with pytest.raises(InputError, match=r"oracle 'jury': valid is one of \('critics', 'sentiment'\)"):
        smollm2.get_config("jury")
