"""The `orders` command: one function a subcommand, each in a module of its name."""

import typer

from services.cli import (
    bench,
    cache,
    dead_letters,
    demo,
    migrate,
    outbox,
    partitions,
    payments,
    rebuild,
    republish,
    seed,
    tail,
    token,
    up,
    verify,
    watch,
)

app = typer.Typer(
    name="orders",
    help="Run, look after and look into the order backend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("migrate")(migrate.migrate)
app.command("seed")(seed.seed)
app.command("verify")(verify.verify)
app.command("rebuild")(rebuild.rebuild)
app.command("republish")(republish.republish)
app.command("partitions")(partitions.partitions)
app.command("outbox")(outbox.outbox)
app.command("cache")(cache.cache)
app.command("payments")(payments.payments)
app.command("token")(token.token)
app.command("tail")(tail.tail)
app.command("dead-letters")(dead_letters.dead_letters)
app.command("watch")(watch.watch)
app.command(
    "bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)(bench.bench)
