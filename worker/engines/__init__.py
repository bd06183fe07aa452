"""Engines: the things that run the model. `base.py` says what an engine is; the rest are engines."""
