"""`python -m dsd_kernels` is `dsd-kernels`."""

from dsd_kernels.cli import main

if __name__ == "__main__":
    main()
