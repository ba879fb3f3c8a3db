"""The `quire` command: one table of contents, each command in a file of its own and imported only when called."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from quire_api.errors import UserError

USER_ERROR = 2

app = typer.Typer(
    name="quire",
    help="Serve large language models: on one machine with `quire up`, on Kubernetes with the operator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Url = Annotated[str, typer.Option(help="Base address of a Quire gateway or engine.", envvar="QUIRE_URL")]
ApiKey = Annotated[str, typer.Option(help="Key to send, where the server asks for one.", envvar="QUIRE_API_KEY")]


@app.command(epilog="Example:  quire demo --stay")
def demo(
    file: Annotated[str, typer.Option(help="The resource file to run.")] = "manifests/samples/quire-tiny.yaml",
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.")] = 0,
    stay: Annotated[bool | None, typer.Option("--stay/--no-stay", help="Keep serving afterwards.")] = None,
) -> None:
    """Start quire-tiny on two replicas, ask it two questions through the gateway, and show what happened."""
    from quire.demo import run_demo

    run_demo(file, port=port, stay=stay)


@app.command(epilog="Example:  quire up manifests/samples/quire-tiny.yaml")
def up(
    file: Annotated[Path, typer.Argument(help="YAML file with one or more LLMDeployments.")],
    host: Annotated[str, typer.Option(help="Address that the gateway listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.")] = 8000,
    state_dir: Annotated[Path | None, typer.Option(help="Folder for status and logs.")] = None,
) -> None:
    """Serve the LLMDeployments of a file on this machine, follow its edits, until Ctrl-C."""
    from quire.up import run_up

    run_up(file, host=host, port=port, state_dir=state_dir)


@app.command(epilog="Examples:  quire status   |   quire status -o json")
def status(
    state_dir: Annotated[Path | None, typer.Option(help="State folder of the run; by default the latest.")] = None,
    output: Annotated[Literal["table", "json", "yaml"], typer.Option("-o", "--output", help="Form.")] = "table",
) -> None:
    """Show how the deployments of `quire up` stand; exits 1 while one is not Ready."""
    from quire.status import run_status

    raise typer.Exit(run_status(state_dir=state_dir, output=output))


@app.command(epilog="Examples:  quire chat   |   quire chat 'What is a pod?' --model quire-tiny")
def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask this one question and end; without it, a dialogue.")
    ] = None,
    url: Url = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Served name; by default the first that /v1/models lists.")] = "",
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", min=0.0)] = None,
    api_key: ApiKey = "",
) -> None:
    """Talk to a model in the terminal."""
    from quire.chat import run_chat

    run_chat(question, url=url, model=model, system=system, max_tokens=max_tokens, temperature=temperature, key=api_key)


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def serve(context: typer.Context) -> None:
    """Serve one model over the OpenAI API; flags as `vllm serve` (see `quire serve --help`)."""
    from quire.serve import main as serve_main

    serve_main(context.args)


@app.command()
def version() -> None:
    """Print the version of Quire."""
    from importlib.metadata import version as installed

    typer.echo(f"quire {installed('quire')}")


def main() -> None:
    """Run the command line; a mistake of the user's is one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"quire: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
