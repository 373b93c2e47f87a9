"""`python -m giblet`, which torchrun starts on every rank."""

import sys

from giblet.cli import main

sys.exit(main())
