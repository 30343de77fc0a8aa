"""hf_rope itself, for another position scheme or rotary's other pairing."""

from dataclasses import fields

from ..model.configuration_hf_rope import HfRopeConfig
from .source import Source


class HfRopeSource(Source):
    prefix = "model"
    decodes = True

    def settings(self, config, head):
        own = {field.name for field in fields(HfRopeConfig)} - {"architectures", "dtype", "transformers_version"}
        return {key: value for key, value in config.to_dict().items() if key in own}

    def names_of(self, config):
        return None
