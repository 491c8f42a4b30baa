"""An HTTP request, from caller to answer: the task router. Of the siblings it may import `serving.catalog` only."""
