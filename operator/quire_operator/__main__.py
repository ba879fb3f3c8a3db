"""`python -m quire_operator`."""

import sys

from quire_operator.main import main

sys.exit(main())
