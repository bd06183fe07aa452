"""The dashboard: what the service is doing, as pages that are whole without a script."""
