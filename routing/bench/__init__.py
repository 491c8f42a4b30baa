"""`inhouse bench`: measuring tools beside the router. Nothing that answers a request imports this package."""
