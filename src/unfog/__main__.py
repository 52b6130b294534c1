"""`python -m unfog`, and so `torchrun -m unfog`."""

import sys

from unfog.cli import main

sys.exit(main())
