"""The policy suite; generator.py makes its cases."""
