"""Local web pages over saved runs: FastAPI, Jinja2, Plotly; nothing is fetched from outside."""
