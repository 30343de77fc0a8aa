"""export: a checkpoint as a folder with an ONNX graph, its tokenizer and what sentence-transformers reads."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..convert import Report, convert
from ..convert.check import LIMIT, equal
from ..convert.checkpoint import read_object, read_tokenizer, sentence_transformer_files, use_own_encoder
from ..folders import check_free, new_folder, save_beside
from .graph import to_onnx
from .int8 import FEED_FORWARD, to_int8
from .session import Session, greatest_difference, least_cosine, texts_per_second
from .texts import make_batches

GRAPH = "onnx/model.onnx"
INT8 = "onnx/model_quantized.onnx"
"""Where the files lie in a folder, as optimum and sentence-transformers name them."""
LEAST_COSINE = 0.99
"""Of what the model and its int8 graph give for a text: below it, --check refuses."""
Batches = dict[str, dict[str, torch.Tensor]]
"""`texts.BATCHES` of a model, by name."""
TIMED = "middle"
"""The batch of `texts.BATCHES` that is timed."""


@dataclass
class Exported:
    """What an export wrote and measured.

    Args:
        report: the conversion's.
        sizes: bytes of each ONNX file, by its path in the folder.
        inputs, outputs: the names in the graph.
        difference: the greatest one from the model, None where it was not checked.
        size: of the outputs where it was found.
        cosine: the least one of the int8 graph's embeddings or outputs, None where it was not checked.
        speeds: texts a second of each graph and of "PyTorch", of 8 texts at a time.
        tokens: of these texts, on average.
        threads: that all of them were given.
    """

    report: Report
    sizes: dict[str, int] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    difference: float | None = None
    size: float | None = None
    cosine: float | None = None
    speeds: dict[str, float] = field(default_factory=dict)
    tokens: float = 0.0
    threads: int = 0


def stages(int8: bool, check: bool) -> list[str]:
    """What `export` tells of its progress, in this order."""
    return ["reading", "tracing", *["int8"] * int8, *["checking"] * check, "timing"]


def export(
    source: str | Path,
    target: str | Path,
    *,
    int8: bool = False,
    check: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Exported:
    """Writes a checkpoint as text-embeddings-inference's ONNX backend and sentence-transformers read it, in float32.

    The folder gets `onnx/model.onnx` (see `to_onnx`), config.json with its code, tokenizer.json, and the pooling,
    projections and prompts of sentence-transformers where the source has them. It is complete or not there.

    Args:
        source: a folder or a name on the Hub, of hf_rope or of anything that `hf_rope.convert` takes.
        target: the folder to write; new or empty.
        int8: whether to write `onnx/model_quantized.onnx` too, with int8 weights and activations.
        check: whether to compare the graphs, in ONNX Runtime, with the model on padded batches of real text.
        on_stage: called with what is about to be done, one of `stages`.

    Raises:
        TypeError, ValueError: the source cannot be read or converted, the target is taken, or a check fails; in one
            sentence, and nothing is written.
    """
    if not isinstance(source, str | Path):
        raise TypeError(
            f"The source is a {type(source).__name__}; it must be a folder or a name on the Hub: save the model first, "
            "or write its graph alone with hf_rope.export.to_onnx."
        )
    name, target = str(source), Path(target)
    check_free(target)
    on_stage("reading")
    model, report = convert(name, return_report=True)
    model.float()
    tokenizer, others = read_tokenizer(name), sentence_transformer_files(name)
    with new_folder(target) as folder:
        save_config(model, folder)
        save_beside(folder, tokenizer, others)
        report.notes += use_own_encoder(folder)
        if not (folder / "tokenizer.json").exists():
            report.notes.append("The source has no tokenizer that can be saved as tokenizer.json: give the folder one.")
        if others:
            report.notes.append(f"The files of sentence-transformers are carried over: {', '.join(sorted(others))}.")
        (folder / GRAPH).parent.mkdir()
        on_stage("tracing")
        to_onnx(model, folder / GRAPH)
        if int8:
            on_stage("int8")
            to_int8(folder / GRAPH, folder / INT8)
        sessions = {file: Session(folder / file) for file in (GRAPH, INT8) if (folder / file).exists()}
        exported = Exported(report, inputs=sessions[GRAPH].inputs, outputs=sessions[GRAPH].outputs)
        batches = make_batches(model, tokenizer, exported.inputs)
        if check:
            on_stage("checking")
            compare(exported, model, sessions[GRAPH], batches)
            if int8:
                sessions[INT8] = compare_int8(exported, model, sessions[INT8], folder, batches, pools_first(others))
        on_stage("timing")
        exported.speeds = texts_per_second({"PyTorch": model, **sessions}, batches[TIMED])
        exported.tokens = float(batches[TIMED]["attention_mask"].sum(-1).float().mean())
        exported.threads = torch.get_num_threads()
        for path in sorted((folder / GRAPH).parent.iterdir()):
            exported.sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return exported


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """config.json, with the configuration's code; whole, since text-embeddings-inference asks for labels by default."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    model.config.save_pretrained(folder)
    model.config.to_json_file(folder / CONFIG_NAME, use_diff=False)


def pools_first(others: dict[str, Path]) -> bool:
    """Whether a SentenceTransformer pools by the first token; the forms of sentence-transformers 5.4 and before."""
    settings = [read_object(path) for name, path in others.items() if name.endswith("Pooling/config.json")]
    return any(x.get("pooling_mode") == "cls" or x.get("pooling_mode_cls_token") is True for x in settings)


def compare(exported: Exported, model: PreTrainedModel, graph: Session, batches: Batches) -> None:
    """Fills in the difference; raises ValueError where it is beyond the limit."""
    exported.difference, exported.size = greatest_difference(model, graph, batches.values())
    if not equal(exported.difference, exported.size):
        raise ValueError(
            f"The greatest difference of the graph from the model is {exported.difference:.2g}, of outputs up to "
            f"{exported.size:.2g}; {LIMIT * max(1, exported.size):.2g} is allowed, so nothing is written."
        )


def compare_int8(
    exported: Exported, model: PreTrainedModel, graph: Session, folder: Path, batches: Batches, first: bool
) -> Session:
    """Fills in the cosine of the int8 graph, and returns it: as it is, or written anew with more of it in float32.

    Raises:
        ValueError: neither is as near as is asked for.
    """
    exported.cosine = least = least_cosine(model, graph, batches.values(), first)
    if least < LEAST_COSINE:
        to_int8(folder / GRAPH, folder / INT8, FEED_FORWARD)
        graph = Session(folder / INT8)
        exported.cosine = least_cosine(model, graph, batches.values(), first)
        exported.report.notes.append(
            f"The feed-forward stays in float32: the least cosine of the int8 graph is {exported.cosine:.4f} so, and "
            f"{least:.4f} with the first product of the feed-forward in int8."
        )
    if exported.cosine < LEAST_COSINE:
        raise ValueError(
            f"The least cosine of the int8 graph with the model is {exported.cosine:.4f}; {LEAST_COSINE} is asked for, "
            "so nothing is written: export without int8."
        )
    return graph
