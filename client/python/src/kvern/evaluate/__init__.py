"""Evaluation: a full cache against policies of Kvern and presses of kvpress, on text.

`kvern eval` runs it. Needs torch, transformers, and kvpress for its presses.
"""

from kvern.evaluate.arms import Arm, parse_policies
from kvern.evaluate.bootstrap import Interval, mean_interval
from kvern.evaluate.items import Item, make_items
from kvern.evaluate.measure import Row, measure
from kvern.evaluate.peers import PEERS

__all__ = [
    "PEERS",
    "Arm",
    "Interval",
    "Item",
    "Row",
    "make_items",
    "mean_interval",
    "measure",
    "parse_policies",
]
