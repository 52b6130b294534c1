"""The playground: a web page to sample, compare, edit with and inspect runs."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(prefix="unfog-app-"))
"""Holds uploads and results; removed when the process ends."""
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER)  # here, since Gradio reads both when it is imported
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
