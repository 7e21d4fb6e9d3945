"""`python -m deit_batch` is the command deit-batch."""

from deit_batch.cli import main

if __name__ == "__main__":
    main(prog_name="deit-batch")
