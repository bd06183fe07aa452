"""Everything that carries work out. Imports schemas and infra, never producer."""
