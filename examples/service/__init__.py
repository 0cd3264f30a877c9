"""A service to copy: an mbexport bundle behind FastAPI. Start reading at app.py."""
