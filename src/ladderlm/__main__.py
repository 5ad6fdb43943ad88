import sys

from ladderlm.cli.main import main

sys.exit(main())
