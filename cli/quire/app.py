"""The `quire` command: one table of contents, each command in a file of its own and imported only when called."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

app = typer.Typer(
    name="quire",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Url = Annotated[str, typer.Option(help="Base address of a Quire gateway or engine.", envvar="QUIRE_URL")]
GatewayUrl = Annotated[str, typer.Option(help="Base address of a Quire gateway.", envvar="QUIRE_URL")]
InternalKey = Annotated[
    str, typer.Option(help="Key of the gateway's inner pages, where it has one.", envvar="QUIRE_INTERNAL_KEY")
]


def _complete(context: typer.Context, incomplete: str) -> list[str]:
    from quire.cluster.names import complete_deployment

    return complete_deployment(context, incomplete)


DeploymentName = Annotated[
    str, typer.Argument(help="Only this deployment.", autocompletion=_complete, show_default=False)
]
Namespace = Annotated[
    str, typer.Option("-n", "--namespace", help="Namespace in the cluster; by default that of the context.")
]
AllNamespaces = Annotated[bool, typer.Option("-A", "--all-namespaces", help="All namespaces of the cluster.")]
Kubeconfig = Annotated[
    Path | None, typer.Option(help="Kubeconfig of the cluster; by default $KUBECONFIG or ~/.kube/config.")
]
Context = Annotated[str, typer.Option(help="Context of the kubeconfig; by default the current one.")]
StateDir = Annotated[
    Path | None, typer.Option(help="State folder of a `quire up`; by default the latest.", show_default=False)
]
ApiKey = Annotated[str, typer.Option(help="Key to send, where the server asks for one.", envvar="QUIRE_API_KEY")]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from quire_api.version import __version__

        typer.echo(f"quire {__version__}")
        raise typer.Exit


@app.callback()
def quire(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Serve large language models: on one machine with `quire up`, on Kubernetes with the operator."""


@app.command(epilog="Example:  quire demo --stay")
def demo(
    file: Annotated[str, typer.Option(help="The resource file to run.")] = "manifests/samples/quire-tiny.yaml",
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.", min=0, max=65535)] = 0,
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
    gateway_workers: Annotated[
        int, typer.Option(help="Processes of the gateway, for loads that one core cannot carry.", min=1, max=64)
    ] = 1,
) -> None:
    """Serve the LLMDeployments of a file on this machine, follow its edits, until Ctrl-C."""
    from quire.up import run_up

    run_up(file, host=host, port=port, state_dir=state_dir, gateway_workers=gateway_workers)


@app.command(epilog="Examples:  quire status   |   quire status -A   |   quire status qwen3 -n models -v -o json")
def status(
    name: DeploymentName = "",
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Conditions of Ready deployments too.")] = False,
    output: Annotated[Literal["table", "json", "yaml"], typer.Option("-o", "--output", help="Form.")] = "table",
    kubeconfig: Kubeconfig = None,
    context: Context = "",
    state_dir: StateDir = None,
) -> None:
    """Show how deployments stand, of a cluster or of `quire up`; exits 1 while one is not Ready.

    A running `quire up` is meant unless a flag names a cluster; without one, the cluster of the kubeconfig.
    """
    from quire.cluster.choice import Where
    from quire.status import run_status

    where = Where(state_dir, namespace, all_namespaces, kubeconfig, context)
    raise typer.Exit(run_status(where, name=name, output=output, is_verbose=verbose))


@app.command(epilog="Examples:  quire doctor   |   quire doctor -n models --strict   |   quire doctor -o json")
def doctor(
    namespace: Namespace = "",
    system_namespace: Annotated[str, typer.Option(help="Where the chart is installed.")] = "quire-system",
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for warnings too.")] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="Form.")] = "text",
    kubeconfig: Kubeconfig = None,
    context: Context = "",
    state_dir: StateDir = None,
) -> None:
    """Find what is wrong with an installation: each finding has a code and a next step; exits 1 on errors.

    Looks at the LLMDeployments of all namespaces, or of the one named. Where `quire up` runs and no flag names a
    cluster, it is examined instead.
    """
    from quire.cluster.choice import Where
    from quire.doctor import run_doctor

    is_cluster = bool(namespace or kubeconfig or context)
    where = Where(state_dir, namespace, is_cluster and not namespace, kubeconfig, context)
    raise typer.Exit(run_doctor(where, system=system_namespace, output=output, is_strict=strict))


@app.command(
    epilog="Examples:  quire logs qwen3 -n models -f   |   quire logs qwen3 --previous   |   "
    "quire logs qwen3 --container agent"
)
def logs(
    name: Annotated[
        str, typer.Argument(help="Name of the LLMDeployment.", autocompletion=_complete, show_default=False)
    ],
    namespace: Namespace = "",
    container: Annotated[
        str, typer.Option("-c", "--container", help="engine, agent, or another of the pod's.")
    ] = "engine",
    previous: Annotated[bool, typer.Option("-p", "--previous", help="The run that ended, after a restart.")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes.")] = False,
    tail: Annotated[int, typer.Option(help="Latest lines of each replica; -1 shows all.", min=-1)] = 100,
    replica: Annotated[str, typer.Option(help="Only this pod, or this process of `quire up`.")] = "",
    kubeconfig: Kubeconfig = None,
    context: Context = "",
    state_dir: StateDir = None,
) -> None:
    """Show what the replicas of a deployment say, in a cluster or under `quire up`."""
    from quire.cluster.choice import Where
    from quire.logs import run_logs

    where = Where(state_dir, namespace, False, kubeconfig, context)
    run_logs(name, where, container=container, is_previous=previous, is_followed=follow, tail=tail, replica=replica)


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


@app.command(epilog="Examples:  quire top   |   quire top --once --url http://gateway:8000")
def top(
    url: GatewayUrl = "http://127.0.0.1:8000",
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end, as for scripts.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two pictures.", min=0.2)] = 1.0,
    internal_key: InternalKey = "",
) -> None:
    """Watch deployments and replicas: requests, queues, caches, latencies."""
    from quire.top import run_top

    run_top(url=url, internal_key=internal_key, every_s=every, is_once=once)


@app.command(epilog="Examples:  quire explain 'What is a pod?'   |   quire explain --raw - < prompt.txt")
def explain(
    prompt: Annotated[str, typer.Argument(help="The prompt, as a user's message; - reads it from standard input.")],
    url: GatewayUrl = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Served name; by default the first that /v1/models lists.")] = "",
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Plain text for /v1/completions, without chat template.")] = False,
    output: Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="Form.")] = "table",
    api_key: ApiKey = "",
    internal_key: InternalKey = "",
) -> None:
    """Show where the gateway would send a prompt now, with every replica's score; nothing is sent."""
    from quire.explain import run_explain

    run_explain(
        prompt,
        url=url,
        model=model,
        system=system,
        is_raw=raw,
        api_key=api_key,
        internal_key=internal_key,
        output=output,
    )


@app.command(
    epilog="Examples:  quire bench http://127.0.0.1:8000 --concurrency 16   |   "
    "quire bench http://127.0.0.1:8000 --rate 5 --requests 300 --json result.json"
)
def bench(
    url: Annotated[str, typer.Argument(help="Base address of any OpenAI-compatible endpoint.")],
    model: Annotated[str, typer.Option(help="Served name; by default the first that /v1/models lists.")] = "",
    api: Annotated[Literal["chat", "completions"], typer.Option(help="Which of the two is asked.")] = "chat",
    requests: Annotated[int, typer.Option(help="Requests in all.", min=1)] = 100,
    concurrency: Annotated[int, typer.Option(help="Closed loop: clients that ask one after the other.", min=1)] = 8,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests a second, at random times.", min=0.001)
    ] = None,
    input_words: Annotated[int, typer.Option(help="Words of a prompt.", min=1)] = 128,
    shared_words: Annotated[int, typer.Option(help="Of these, words that all prompts begin with.", min=0)] = 0,
    output_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Write on to the longest answer; Quire and vLLM know how.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Chooses prompts and arrival times.")] = 0,
    json_file: Annotated[str, typer.Option("--json", help="Write the figures to this file; - prints them.")] = "",
    plot: Annotated[bool, typer.Option("--plot", help="Draw the distribution of the time to first token.")] = False,
    api_key: ApiKey = "",
) -> None:
    """Load an endpoint with streamed requests and show throughput and latencies."""
    from quire.bench import plan_for, run_bench

    plan = plan_for(
        url,
        model=model,
        api=api,
        requests=requests,
        concurrency=concurrency,
        rate=rate,
        input_words=input_words,
        shared_words=shared_words,
        output_tokens=output_tokens,
        temperature=temperature,
        ignore_eos=ignore_eos,
        seed=seed,
    )
    run_bench(plan, key=api_key, json_file=json_file, has_plot=plot)


class _Serve(typer.core.TyperCommand):
    """Its flags are read in `quire.serve`; the shell learns of them here."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        from quire.serve import complete_flag

        return complete_flag(ctx, incomplete)


@app.command(
    cls=_Serve,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def serve(context: typer.Context) -> None:
    """Serve one model over the OpenAI API; flags as `vllm serve` (see `quire serve --help`)."""
    if {"-h", "--help", "--explain"}.intersection(context.args):
        from quire.serve import main as serve_main

        serve_main(context.args)
        return
    from quire_runtime.engine.child import early_child

    # The engine's process imports for seconds: it begins before its settings are read here.
    with early_child() as child:
        from quire.serve import main as serve_main

        serve_main(context.args, child)


@app.command(
    add_help_option=False,
    epilog="Example:  quire agent --source hf://Qwen/Qwen3-8B --destination /models/qwen3",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def agent(context: typer.Context) -> None:
    """Fetch a model into a directory and tell how far it is: what runs beside the engine in a pod."""
    from quire_runtime.agent.main import run

    run(context.args)


@app.command(epilog="Example:  quire version")
def version() -> None:
    """Print the version of Quire."""
    _print_version(True)
