"""Every shape that data takes, on the wire and at rest. Imports nothing of ours."""
