"""What a training saves is the model that it trained, or nothing."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from data.errors import StageFailed
from pco.training import loop


@pytest.mark.parametrize("spoilt", ["lost", "added"])
def test_weights_that_are_not_the_model_s_are_not_saved(tiny: Path, tmp_path: Path, spoilt: str) -> None:
    fresh: Any = AutoModelForCausalLM.from_pretrained(tiny)
    state = {name: parameter.detach() for name, parameter in fresh.named_parameters()}
    name, value = next(iter(state.items()))
    if spoilt == "lost":
        del state[name]
    else:
        state["model.extra.weight"] = value
    with pytest.raises(StageFailed, match="trained weights are not the model's"):
        loop.save(state, fresh, tiny, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
