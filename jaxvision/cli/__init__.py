"""`python -m jaxvision predict|evaluate|info|convert`: trained runs and weights, from the shell."""

import os
import sys
from typing import Annotated

import tyro

from jaxvision.cli.convert import Convert, convert
from jaxvision.cli.evaluate import Evaluate, evaluate
from jaxvision.cli.info import Info, info
from jaxvision.cli.predict import Predict, predict
from jaxvision.errors import exit_on_user_error

Command = (
    Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a user's mistake is one line on stderr and exit status 1."""
    try:
        try:
            run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its exit
        sys.exit(1)


def run(arguments: list[str] | None) -> None:
    command = tyro.cli(Command, prog="jaxvision", description=__doc__, args=arguments)
    with exit_on_user_error():
        match command:
            case Predict():
                predict(command)
            case Evaluate():
                evaluate(command)
            case Info():
                info(command)
            case Convert():
                convert(command)
