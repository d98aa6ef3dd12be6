"""`audiogen-fast demo`."""

import argparse
import json
import logging
import os
import sys
import tempfile
import threading

from audiogen_fast.cli.parser import PROGRAM
from audiogen_fast.cli.sounds import load_model
from audiogen_fast.pretrained import labelled
from audiogen_fast.web import check_port, import_gradio, launch


def demo(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; the exit status."""
    # Before the model, which takes time to load.
    import_gradio()
    check_port(args.host, args.port)
    print(f"{PROGRAM}: loading {labelled(args.model)}", file=sys.stderr, flush=True)
    model = load_model(args)
    # Where gradio keeps the sounds that it has sent.
    with tempfile.TemporaryDirectory(prefix=PROGRAM, ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("GRADIO_TEMP_DIR", folder)
        page = launch(model, host=args.host, port=args.port, browser=args.browser)
        try:
            if args.json:
                print(json.dumps({"command": "demo", "model": args.model, "url": page.local_url}))
            else:
                print(f"open {page.local_url} in a browser; Ctrl-C ends this")
            sys.stdout.flush()
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{PROGRAM}: ended", file=sys.stderr)
        finally:
            # At once, not when every browser has closed the page, and without a word about those.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            page.server.force_exit = True
            page.close(verbose=False)
    return 0
