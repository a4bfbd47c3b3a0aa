"""One training: its settings, its loop, its checkpoint, and the machine that it runs on."""
