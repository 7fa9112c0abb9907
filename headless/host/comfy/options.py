"""Switch that lets a real host read its command line; the embedded host has its own and only keeps the flag."""

args_parsing = False


def enable_args_parsing(enable=True):
    """Remember whether `comfy.cli_args` may read `sys.argv`."""
    global args_parsing
    args_parsing = enable
