"""The `ressl` command: arguments only, each subcommand calls one function."""
