"""A web page that makes sounds of what is typed there, and plays them while they are made."""

import socket
from typing import Any

from audiogen_fast.api import AudioGen
from audiogen_fast.errors import InvalidInputError, MissingDependencyError
from audiogen_fast.report import figure_class, spectrogram_picture

_WARM_UP = 0.5


def import_gradio() -> Any:
    """The package gradio.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise MissingDependencyError(
            "the page needs gradio: pip install gradio, or 'audiogen-fast[web]'"
        ) from error
    return gradio


def check_port(host: str, port: int) -> int:
    """The port, or one that is free for 0.

    Raises:
        InvalidInputError: the port is in use, or the host is not an address of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As the server does: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        raise InvalidInputError(
            f"host and port must be free to listen at (port 0 takes any that is), got {host} and "
            f"{port}: {error.strerror or error}"
        ) from None


def launch(
    model: AudioGen, *, host: str = "127.0.0.1", port: int = 7860, browser: bool = False
) -> Any:
    """Serve the page in the background.

    Args:
        host: address to listen at.
        port: 0 takes one that is free.
        browser: open the page in this machine's browser.
    Returns:
        The gradio Blocks; `local_url` is the address of the page, `close()` ends it.
    Raises:
        InvalidInputError: the port is in use.
        MissingDependencyError: gradio or matplotlib is not installed.
    """
    port = check_port(host, port)
    page = build_page(model)
    from audiogen_fast.web.page import CSS, theme

    # What is done once (loading of libraries, compilation) is not part of any sound's time.
    model.set_generation_params(duration=_WARM_UP, extend_stride=min(2, model.max_duration / 2))
    spectrogram_picture(model.generate([None], seed=0)[0], model.sample_rate)
    page.queue(default_concurrency_limit=1)
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        theme=theme(),
        css=CSS,
    )
    return page


def build_page(model: AudioGen) -> Any:
    """The page as gradio Blocks; see `launch` about what is raised."""
    import_gradio()
    figure_class()
    from audiogen_fast.web.page import Page

    return Page(model).blocks
