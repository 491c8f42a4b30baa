"""The text-to-SQL suite; generator.py makes its cases and databases."""
