"""What the program stands on, and how it is put on machines. Imports schemas only."""
