"""Which probes and experiments exist, and how is one called? Found beside the library, described without running them."""

import ast
import difflib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import typer

from interp.errors import UserError


def available(package: str) -> dict[str, str]:
    """Script name -> first line of its docstring, for every module of the top-level package `package`."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return {}
    found = {}
    for module in pkgutil.iter_modules(list(spec.submodule_search_locations)):
        inner = importlib.util.find_spec(f"{package}.{module.name}")
        if module.ispkg or module.name.startswith("_") or inner is None or inner.origin is None:
            continue
        with open(inner.origin, encoding="utf-8") as file:
            docstring = ast.get_docstring(ast.parse(file.read())) or ""
        found[module.name] = docstring.partition("\n")[0]
    return dict(sorted(found.items()))


def find(package: str, name: str) -> str:
    """The module name for what the user typed (dashes count as underscores); UserError with the nearest names."""
    names = list(available(package))
    wanted = name.replace("-", "_")
    if wanted in names:
        return wanted
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    cure = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names) or 'none'}"
    raise UserError(f"no {name!r} in {package}; {cure}")


def call(command: Callable[..., Any], argv: Sequence[str], name: str, example: str) -> int:
    """Call a script's function with a command line, `--help` and its example included.

    command: a function whose parameters are typer's. name: how the script is called, such as `interp run demo`.
    Typing errors are typer's, bad input is the library's UserError; `interp.cli.main` turns both into one line.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(epilog=f"\b\nExample:\n  {example}")(command)
    return app(list(argv), prog_name=name, standalone_mode=False) or 0
