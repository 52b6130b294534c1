"""What a training imports, some of it only when it is used: a process that is forked after this starts at once."""

import torch._dynamo  # by the first optimizer
import torch.distributed.fsdp  # noqa: F401

import unfog.cli.main
import unfog.reports.plots
import unfog.runs.run  # noqa: F401
