"""`python -m geep_triton`: the same as the command `geep`."""

from geep_triton.cli.app import run

if __name__ == "__main__":
    run()
