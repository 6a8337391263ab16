"""Many trainings: sweeps, method benchmarks, the paper's tables and their numbers."""

from pathlib import Path


def template(name: str):
    """A jinja2 template of this folder; into a .html everything is put as text, not as markup."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
