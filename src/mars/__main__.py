# SPDX-License-Identifier: Apache-2.0
"""`python -m mars` is the `mars` command of this interpreter."""

from mars.cli.main import main

main()
