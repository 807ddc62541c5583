"""`python -m vxl2_jax` runs the command `vxl2`."""

import sys

from vxl2_jax.cli import main

sys.exit(main())
