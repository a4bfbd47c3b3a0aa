"""`python -m benchmarks sass`: what the machine code of every GPU kernel promises, on a machine without a GPU."""
