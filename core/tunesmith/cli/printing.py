"""What commands print that programs read."""

from __future__ import annotations

import codecs
import json
import sys
from typing import Any

import click


def print_json(record: Any, *, allow_nan: bool = False) -> None:
    """Print a record as one line of JSON.

    Letters stand as themselves where the output is UTF-8, and as JSON's own escapes elsewhere: those that standard output
    puts in place of what its encoding lacks (``\\xe9``) are none of JSON.
    """
    encoding = codecs.lookup(sys.stdout.encoding or "ascii").name
    click.echo(json.dumps(record, ensure_ascii=encoding != "utf-8", allow_nan=allow_nan))
