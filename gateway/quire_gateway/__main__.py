import sys

from quire_gateway.main import main

sys.exit(main())
