"""`python -m unfog`, and so `torchrun -m unfog`."""

import sys

from unfog.cli.main import main

sys.exit(main())
