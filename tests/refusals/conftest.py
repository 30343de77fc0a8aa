"""What is refused when it is loaded needs something to load."""

import pytest

from helpers import tiny_config
from hf_rope import SCHEMES, HfRopeForMaskedLM


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """A masked-LM checkpoint of every scheme."""
    root = tmp_path_factory.mktemp("checkpoints")
    for scheme in SCHEMES:
        HfRopeForMaskedLM(tiny_config(scheme)).save_pretrained(root / scheme)
    return {scheme: str(root / scheme) for scheme in SCHEMES}
