"""Everything that files work or reads results. Imports schemas and infra, never worker."""
