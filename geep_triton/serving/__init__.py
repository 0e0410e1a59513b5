"""The HTTP server. It needs the extra `serve`: FastAPI and uvicorn."""
