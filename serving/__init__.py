"""A model, from the hub to a GPU: catalog, fetch, fit, deploy. Imports no sibling room."""
