"""The chat suite; generator.py makes its cases."""
