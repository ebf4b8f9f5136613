"""The locator: where does a model lose what it sees? A decision procedure over experiments that it asks for."""

from ._decide import Decision, Facts, Thresholds, decide
from ._locate import locate

__all__ = ["Decision", "Facts", "Thresholds", "decide", "locate"]
