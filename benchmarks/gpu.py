"""`python -m benchmarks.gpu`: hf_rope beside the native classes on a GPU, in bfloat16; prints and writes a table.

Ratios of the others' time to ours, interleaved in one run, as in `python -m benchmarks`; the clock is stopped when the
device is done. `kernels` counts what one call starts there.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AttentionInterface, PreTrainedModel

from hf_rope import SCHEMES

from . import cases, native
from .measure import compare
from .precision import Autocast, Run

SHAPES = ((32, 128), (8, 512), (4, 2048))
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="paired runs of each case")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--output", type=Path, default=Path("runs/bench_gpu"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    AttentionInterface.register("varlen_of_torch", varlen)
    device = torch.cuda.get_device_name()
    setting = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
    rows: list[dict[str, Any]] = []
    print(setting)
    print(
        "| scheme | work | against | times as fast | quartiles | ms | kernels, ours and theirs |\n" + "|---" * 7 + "|"
    )
    for group in arguments.only:
        for name, work, ours, others in GROUPS[group]():
            kernels = count_kernels(ours)
            for other, ratio in compare(
                repeated(ours), {k: repeated(x) for k, x in others.items()}, arguments.rounds
            ).items():
                row = {"group": group, "scheme": name, "work": work, "against": other, "ratio": ratio.median}
                row |= {"low": ratio.low, "high": ratio.high, "ms": 1000 * ratio.seconds / REPEATS}
                rows.append({**row, "kernels": (kernels, count_kernels(others[other]))})
                spread = f"{ratio.median:.2f} | {ratio.low:.2f} to {ratio.high:.2f} | {rows[-1]['ms']:.2f}"
                print(f"| {name} | {work} | {other} | {spread} | {kernels}, {rows[-1]['kernels'][1]} |", flush=True)
            (arguments.output / "results.json").write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
        torch.cuda.empty_cache()


def varlen(
    module, query, key, value, attention_mask, *, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, **kw
):
    """PyTorch's entrance to the flash kernel for packed sequences, as a function of a user's own."""
    from torch.nn.attention.varlen import varlen_attn

    rows = [x[0].transpose(0, 1).contiguous() for x in (query, key, value)]
    return varlen_attn(*rows, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)[None], None


def repeated(run: Run) -> Run:
    """Some calls in a row, and then waiting for the device."""

    def several():
        for _ in range(REPEATS):
            run()
        torch.cuda.synchronize()

    return several


def count_kernels(run: Run) -> int:
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if event.device_type == DeviceType.CUDA)


def ready(model: PreTrainedModel) -> PreTrainedModel:
    return model.to("cuda", torch.bfloat16)


def on_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: x.cuda() for key, x in batch.items()}


Row = tuple[str, str, Run, dict[str, Run]]


def absolute() -> Iterator[Row]:
    """Rotary beside RoFormer and BERT, learned beside BERT, each with its best attention; full, and half padding."""
    roformer, rotary = map(ready, native.pair("RoFormer", **cases.BASE, max_position_embeddings=2048))
    bert, learned = map(
        ready, native.pair("Bert", attn_implementation="sdpa", **cases.BASE, max_position_embeddings=2048)
    )
    with_bounds = ready(cases.scheme_model("rotary", "varlen_of_torch", max_position_embeddings=2048))
    for shape in SHAPES:
        for kind, make in (("full", cases.full), ("half real", cases.half)):
            inputs = on_device(make(*shape))
            work = f"forward {shape[0]}x{shape[1]} {kind}"
            theirs = {"RoFormer": cases.forward(roformer, **inputs), "BERT sdpa": cases.forward(bert, **inputs)}
            yield "rotary", work, cases.forward(rotary, **inputs), theirs
            yield "learned", work, cases.forward(learned, **inputs), {"BERT sdpa": theirs["BERT sdpa"]}
            yield "rotary, flash by bounds", work, cases.forward(with_bounds, **inputs), theirs


def relative() -> Iterator[Row]:
    settings = {"position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    theirs, ours = map(ready, native.deberta_v2(**cases.BASE, **settings, pos_att_type=["c2p", "p2c"]))
    for shape in SHAPES[:2]:
        inputs = on_device(cases.full(*shape))
        others = {"DeBERTa-v2": cases.forward(theirs, **inputs)}
        yield "deberta", f"forward {shape[0]}x{shape[1]} full", cases.forward(ours, **inputs), others


def costs() -> Iterator[Row]:
    """Here "times as fast" is the scheme's time over that of `none`."""
    control = ready(cases.scheme_model("none"))
    for scheme in SCHEMES:
        model = ready(cases.scheme_model(scheme, max_position_embeddings=512))
        for shape in SHAPES[:2]:
            inputs = on_device(cases.full(*shape))
            others = {scheme: cases.forward(model, **inputs)}
            yield "none", f"cost, forward {shape[0]}x{shape[1]}", cases.forward(control, **inputs), others


def compiled() -> Iterator[Row]:
    """Rotary beside RoFormer and BERT, each compiled, on full batches: there are fewer kernels to be started."""
    roformer, rotary = map(ready, native.pair("RoFormer", **cases.BASE, max_position_embeddings=2048))
    bert = ready(native.build("Bert", "Model", "sdpa", **cases.BASE, max_position_embeddings=2048))
    models = {"rotary": rotary, "RoFormer": roformer, "BERT sdpa": bert}
    for shape in SHAPES:
        torch._dynamo.reset()
        inputs = on_device(cases.full(*shape))
        runs = {name: cases.forward(torch.compile(model), **inputs) for name, model in models.items()}
        yield "rotary, compiled", f"forward {shape[0]}x{shape[1]} full", runs.pop("rotary"), runs


def steps() -> Iterator[Row]:
    """Forward, backward, AdamW of a masked-LM step under autocast, with all logits and with labelled tokens' only."""
    sizes = {**cases.BASE, "max_position_embeddings": 512}
    roformer, rotary = native.pair("RoFormer", "ForMaskedLM", **sizes)
    bert = native.build("Bert", "ForMaskedLM", "sdpa", **sizes)
    sparse = copy.deepcopy(rotary)
    sparse.config.sparse_prediction = True
    models = {"rotary": rotary, "rotary, sparse_prediction": sparse, "RoFormer": roformer, "BERT sdpa": bert}
    how = Autocast("cuda")
    for shape in SHAPES[:2]:
        runs = {name: how.step(model.cuda(), on_device(cases.full(*shape))) for name, model in models.items()}
        others = {name: runs[name] for name in ("RoFormer", "BERT sdpa")}
        for name in ("rotary", "rotary, sparse_prediction"):
            yield name, f"step {shape[0]}x{shape[1]} full", runs[name], others


GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "absolute": absolute,
    "relative": relative,
    "costs": costs,
    "compiled": compiled,
    "steps": steps,
}

if __name__ == "__main__":
    main()
