"""DeBERTa v1 (He et al. 2020): one fused projection without a key bias, positions through projections of their own."""

import re

import torch

from .from_deberta_v2 import DebertaV2Source

FUSED = re.compile(r"^(encoder\.layer\.\d+\.attention\.self\.)in_proj\.weight$")


class DebertaSource(DebertaV2Source):
    names = {
        **{key: name for key, name in DebertaV2Source.names.items() if ".pos_" not in key},
        "encoder.layer.{}.attention.self.pos_proj": "layers.{}.attention.position.key_projection",
        "encoder.layer.{}.attention.self.pos_q_proj": "layers.{}.attention.position.query_projection",
    }
    reads = ("cls_dropout", "embedding_size", "pooler_hidden_size", "talking_head")

    def options(self, config):
        own = {"position_buckets": 0, "share_att_key": False, "norm_rel_ebd": False}
        return {**super().options(config), **own}

    def adapt(self, tensors, config, head, report):
        """Splits `in_proj`, whose rows are query, key and value of the first head, then of the second, and so on."""
        super().adapt(tensors, config, head, report)
        heads, size = config.num_attention_heads, config.hidden_size
        for key in [*tensors]:
            if not (match := FUSED.match(key)):
                continue
            fused, here = tensors.pop(key), match[1]
            if fused.shape != (3 * size, size):
                raise ValueError(f"{key} has shape {tuple(fused.shape)}; the configuration says {(3 * size, size)}.")
            query, key_, value = fused.view(heads, 3, size // heads, size).transpose(0, 1).reshape(3, size, size)
            tensors |= {f"{here}query_proj.weight": query, f"{here}key_proj.weight": key_}
            tensors[f"{here}value_proj.weight"] = value
            for theirs, ours in (("q_bias", "query_proj.bias"), ("v_bias", "value_proj.bias")):
                if here + theirs in tensors:
                    tensors[here + ours] = tensors.pop(here + theirs)
            zero = [f"{here}key_proj.bias"]
            if config.relative_attention and "c2p" in config.pos_att_type:
                zero.append(f"{here}pos_proj.bias")
            for name in zero:
                tensors[name] = torch.zeros(size, dtype=fused.dtype, device=fused.device)
                report.new[name] = "zero: the source has no such bias"
        report.notes.append(
            "Training differs: the key biases, zero here and absent in the source, are trained as well."
        )
