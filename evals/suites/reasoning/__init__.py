"""The reasoning suite; generator.py makes its cases."""
