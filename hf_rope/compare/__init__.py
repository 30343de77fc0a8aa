"""The same budget for every position scheme: studies as files, their cells, and what came out.

A study names tasks, schemes, seeds and learning rates; a cell is one of each, trained by the stock Trainer on the same
data in the same order with the same masks, from the same initial values of all that the schemes share.
"""

from .report import report
from .runner import compare
from .study import Study, read_study

__all__ = ["Study", "compare", "read_study", "report"]
