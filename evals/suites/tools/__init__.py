"""The tool choice suite; generator.py makes its cases."""
