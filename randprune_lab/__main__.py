"""``python -m randprune_lab``: the command ``randprune``, as launchers of several processes start it."""

from randprune_lab.cli import main

if __name__ == "__main__":
    main()
