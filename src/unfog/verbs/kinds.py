"""What several verbs take."""

from typing import Annotated

import tyro

Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")]
Prompts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT")]
Count = Annotated[int, tyro.conf.arg(aliases=["-n"])]
