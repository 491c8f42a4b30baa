"""The extraction suite; generator.py makes its cases."""
