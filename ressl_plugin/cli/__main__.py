"""`python -m ressl_plugin.cli`, as torchrun starts it."""

from ressl_plugin.cli.main import main

raise SystemExit(main())
