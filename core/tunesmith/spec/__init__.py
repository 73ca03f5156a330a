"""Specs: configs as plain data, strictly checked both ways.

``dump`` and ``load`` go through dicts, ``read`` and ``write`` through JSON and TOML files, ``parse`` and ``spell``
through the short spelling of command lines: ``top_p(p=0.9)``. Files hold registered names only, never import paths.
"""

from __future__ import annotations

from tunesmith.spec.dumping import dump as dump
from tunesmith.spec.dumping import spell as spell
from tunesmith.spec.files import read as read
from tunesmith.spec.files import read_data as read_data
from tunesmith.spec.files import write as write
from tunesmith.spec.loading import construct as construct
from tunesmith.spec.loading import load as load
from tunesmith.spec.loading import parse as parse

__all__ = ["construct", "dump", "load", "parse", "read", "read_data", "spell", "write"]
