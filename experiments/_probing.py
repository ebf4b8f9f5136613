"""Which probes a study fits: every variable where its object stands, and where the answer is made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
