"""The intent suite; generator.py makes its cases."""
