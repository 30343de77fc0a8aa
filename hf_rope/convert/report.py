"""Report: what a conversion did with every tensor."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """What a conversion did.

    Args:
        source: class of the source model, and where it came from.
        target: class of the model that was built.
        scheme: its position scheme; None for a native model.
        copied: how many of the source's tensors are in the target.
        dropped: the source's tensors that are not, each with the reason.
        new: the target's tensors that did not come from the source, each with what fills it.
        needs_training: whether the target computes something else than the source until it is trained.
        notes: what else there is to know, a sentence each.
    """

    source: str
    target: str = ""
    scheme: str | None = None
    copied: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    needs_training: bool = False
    notes: list[str] = field(default_factory=list)
