"""Adapters to other libraries, one module each; each imports its library only when it is imported itself."""
