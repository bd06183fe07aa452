"""Side-by-side measurements. Each compares things in one run, since a time by itself says more of the machine."""
