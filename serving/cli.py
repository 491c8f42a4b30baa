"""`inhouse models`: list, search, fetch, verify, fit, bundle, schema. Arguments in, text or JSON out; the work is done elsewhere."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from serving.catalog import SHIPPED, Catalog, Model, json_schema, read_catalog
from serving.strict import ConfigError
from serving.table import fit_row, scaled, show

if TYPE_CHECKING:
    from serving.fit import Subject
    from serving.machines import Node

Command = TypeVar("Command", bound=Callable[..., Any])


def catalog_option(command: Command) -> Command:
    """`--catalog`: which models.yaml."""
    return click.option("--catalog", "catalog_path", envvar="INHOUSE_MODELS", default=SHIPPED, show_default="the shipped one",
                        type=click.Path(path_type=Path), help="The models.yaml to read (INHOUSE_MODELS).")(command)


def home_option(command: Command) -> Command:
    """`--home`: where what is written lives."""
    return click.option("--home", envvar="INHOUSE_HOME", default=".inhouse", show_default=True, type=click.Path(path_type=Path),
                        help="Where models and state live (INHOUSE_HOME).")(command)


def json_option(command: Command) -> Command:
    """`--json`: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can cause ends as one line on stderr and exit code 1."""
    from serving.architecture import ArchitectureError
    from serving.bundle import BundleError
    from serving.hub import HubError
    from serving.manifest import IntegrityError

    try:
        yield
    except (ArchitectureError, BundleError, ConfigError, HubError, IntegrityError) as error:
        raise click.ClickException(" ".join(str(error).split("\n"))) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'the disk'}: {error.strerror or error}") from error


@click.group()
def models() -> None:
    """Find, fetch and size the models of the catalog."""


@models.command("list")
@catalog_option
@home_option
@json_option
def list_(catalog_path: Path, home: Path, as_json: bool) -> None:
    """Show what the catalog hosts and whether it is here.

    Example: inhouse models list --json
    """
    from serving import manifest

    with one_line_errors():
        rows = []
        for model in read_catalog(catalog_path).models:
            folder = model.folder(home, catalog_path.parent)
            here = (folder / "config.json").is_file() if model.path is not None else manifest.is_finished(folder)
            rows.append({"name": model.name, "source": model.path or f"{model.repo}@{str(model.revision)[:12]}", "license": model.license,
                         "gpus": model.gpus, "replicas": model.replicas, "here": here, "folder": str(folder),
                         "description": model.description})
    show(rows, as_json, ["name", "source", "license", "gpus", "replicas", "here", "description"])


@models.command()
@click.argument("query")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1, 100), help="At most so many.")
@json_option
def search(query: str, limit: int, as_json: bool) -> None:
    """Search the hub: licence, size, downloads, gated or not, and the revision to pin.

    Example: inhouse models search Qwen/Qwen3-8B
    """
    from serving import hub

    with one_line_errors():
        found = hub.search(query, limit=limit)
    rows = [asdict(one) for one in found]
    if as_json:
        show(rows, as_json, [])
        return
    for row in rows:
        row["parameters"] = scaled(row["parameters"])
        row["size"] = "no safetensors" if row["weight_bytes"] is None else f"{row['weight_bytes'] / 1e9:.1f} GB"
        row["downloads"] = scaled(row["downloads"])
    show(rows, as_json, ["repo", "license", "parameters", "size", "downloads", "likes", "gated", "last_modified", "revision"])


@models.command()
@click.argument("names", nargs=-1)
@catalog_option
@home_option
def fetch(names: tuple[str, ...], catalog_path: Path, home: Path) -> None:
    """Fetch the named models, or all of the catalog that come from the hub. Interrupted, it continues where it stopped.

    Example: inhouse models fetch qwen3-8b
    """
    from serving.fetch import fetch as bring

    with one_line_errors():
        chosen = [model for model in _chosen(read_catalog(catalog_path), names) if model.repo is not None or names]
        for model in chosen:
            if model.path is not None:
                click.echo(f"{model.name} is a local folder: {model.folder(home, catalog_path.parent)}")
                continue
            with _progress(model.name) as progress:
                result = bring(model, home, progress=progress)
            click.echo(f"{model.name}: {result.bytes / 1e9:.2f} GB in {model.folder(home, catalog_path.parent)}")
        if not chosen:
            click.echo("nothing to fetch: every model of the catalog is a local folder")


@models.command()
@click.argument("names", nargs=-1)
@catalog_option
@home_option
def verify(names: tuple[str, ...], catalog_path: Path, home: Path) -> None:
    """Hash every file of fetched models again; name those that changed, are missing or do not belong.

    Example: inhouse models verify qwen3-8b
    """
    from serving import manifest

    with one_line_errors():
        chosen = [model for model in _chosen(read_catalog(catalog_path), names) if model.repo is not None]
        found = [problem for model in chosen for problem in manifest.problems(model.folder(home, catalog_path.parent))]
    for problem in found:
        click.echo(problem, err=True)
    if found:
        raise click.ClickException(f"{len(found)} problems; delete the files named above and fetch again")
    click.echo(f"{len(chosen)} fetched models are as their manifests say")


@models.command()
@click.argument("names", nargs=-1)
@click.option("--node", "nodes", multiple=True, metavar="SPEC",
              help="A machine: name=gpu1,gpus=4,gpu_memory=80GiB,gpu_type=h100,ram=512GiB. Default: this one.")
@click.option("--nodes", "nodes_path", type=click.Path(path_type=Path), help="A YAML file with `nodes:`, a list of such machines.")
@click.option("--together", is_flag=True, help="Place all replicas of all the models on the machines, beside each other.")
@click.option("--placed", multiple=True, metavar="NAME[@NODE]", help="A catalog model already on the machines (or on one).")
@catalog_option
@home_option
@json_option
def fit(names: tuple[str, ...], nodes: tuple[str, ...], nodes_path: Path | None, placed: tuple[str, ...], **options: Any) -> None:
    """Say whether models fit machines, with how many cached tokens, or what would make them fit. Downloads no weights.

    Example: inhouse models fit qwen3-8b --node name=gpu1,gpus=2,gpu_memory=80GiB
    """
    from serving import hub
    from serving.fit import fit as try_on
    from serving.fit import place, read_subject

    catalog_path, home = options["catalog_path"], options["home"]
    with one_line_errors():
        catalog = read_catalog(catalog_path)

        def subject(model: Model) -> "Subject":
            return read_subject(model, home, catalog_path.parent, hub.describe)

        machines = _machines(nodes, nodes_path)
        beside = [(subject(catalog.named(name)), at) for name, at in (_placed(text, machines) for text in placed)]
        asked = [subject(model) for model in _chosen(catalog, names)]
        if options["together"]:
            answers = place(asked, machines, beside)
        else:
            answers = [try_on(one, node, [other for other, at in beside if at in ("", node.name)]) for one in asked for node in machines]
    if options["as_json"]:
        click.echo(json.dumps([{**asdict(answer), "requests": round(answer.requests, 2) if answer.kv_tokens else None,
                                "sentence": answer.sentence} for answer in answers], indent=1))
        return
    columns = ["model", "node", "verdict", "weights", "runtime", "cache", "per token", "tokens", "requests"]
    show([fit_row(answer) for answer in answers], False, columns)
    for answer in answers:
        click.echo(answer.sentence + (f" (not exact: {'; '.join(answer.doubts)})" if answer.doubts else ""))


@models.group()
def bundle() -> None:
    """Carry models into a site that has no network."""


@bundle.command("create")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1)
@catalog_option
@home_option
def bundle_create(out: Path, names: tuple[str, ...], catalog_path: Path, home: Path) -> None:
    """Write a bundle of the named models (or all): a tar where OUT ends in .tar, else a folder.

    Example: inhouse models bundle create /media/usb/models.tar qwen3-8b
    """
    from serving import bundle as bundles

    with one_line_errors():
        made = bundles.create(_chosen(read_catalog(catalog_path), names), out, home=home, catalog_folder=catalog_path.parent)
    click.echo(f"{out}: {len(made.models)} models, {sum(f.manifest.bytes for f in made.folders) / 1e9:.2f} GB\ndigest {made.digest}")


@bundle.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@home_option
def bundle_import(path: Path, home: Path) -> None:
    """Verify a bundle and bring its models in; prints the lines for models.yaml.

    Example: inhouse models bundle import /media/usb/models.tar
    """
    import yaml

    from serving import bundle as bundles

    with one_line_errors():
        brought = bundles.import_(path, home)
    click.echo(f"{len(brought.models)} models verified and imported, digest {brought.digest}\nadd to models.yaml:", err=True)
    click.echo(yaml.safe_dump({"models": bundles.catalog_lines(brought, home)}, sort_keys=False, allow_unicode=True), nl=False)


@models.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write it there instead of printing it.")
def schema(out: Path | None) -> None:
    """Print the JSON schema of models.yaml, for editors.

    Example: inhouse models schema --out models.schema.json
    """
    text = json.dumps(json_schema(), indent=1) + "\n"
    if out is None:
        click.echo(text, nl=False)
    else:
        with one_line_errors():
            out.write_text(text, encoding="utf-8")


def _chosen(catalog: Catalog, names: Sequence[str]) -> list[Model]:
    return [catalog.named(name) for name in names] if names else list(catalog.models)


def _machines(specs: Sequence[str], path: Path | None) -> "list[Node]":
    from serving.machines import parse_node, read_nodes, this_machine

    found = [parse_node(spec) for spec in specs] + (read_nodes(path) if path is not None else [])
    return found or [this_machine()]


def _placed(text: str, machines: "Sequence[Node]") -> tuple[str, str]:
    name, _, at = text.partition("@")
    if at and at not in [node.name for node in machines]:
        raise ConfigError(f"--placed {text}: no machine `{at}`; known here: {', '.join(node.name for node in machines)}")
    return name, at


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Bytes, rate and time left on a terminal; nothing where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda there, size: bar.update(task, completed=there, total=size)
