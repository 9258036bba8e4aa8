"""The command line: four commands and their options."""
