"""`python -m cee_gym` is `cee-gym`."""

from cee_gym.cli import main

main()
