"""The cells of one of the paper's tables: of each its config, its folder and its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ressl_plugin import config
from ressl_plugin.config.diff import config_differences
from ressl_plugin.evaluate.subject import method_name
from ressl_plugin.experiments import benchmark, paper_spec, sweep
from ressl_plugin.experiments.paper_numbers import tables
from ressl_plugin.utils.errors import UserError

# Table 3 takes the best one of them
TEMPERATURES = ("method_kwargs.temperature_q", "method_kwargs.temperature_k")


@dataclass(frozen=True)
class Cell:
    """One training of a table.

    Attributes:
        cfg: its complete config, `run_dir` set.
        row: in the table (in a figure, its name), where the file names it; else None.
    """

    cfg: DictConfig
    row: str | None = None

    @property
    def run_dir(self) -> str:
        """Where it is trained."""
        return self.cfg.run_dir

    @property
    def epochs(self) -> int:
        """After which it is finished; of the untrained network, 1: that it is written."""
        return 1 if self.cfg.method == "random" else self.cfg.max_epochs

    def name(self, out: Path) -> str:
        """As `--cells` names it: its folder below that of the runs."""
        return str(Path(self.run_dir).relative_to(out))

    def place(self, number: int, labels: str = "") -> dict:
        """`{table, row, column}` of its number in one of the paper's tables, which may lack it.

        Args:
            labels: that the evaluator was given, as Tables 9 and 10 name them: 16, full, 0.01.

        Raises:
            UserError: its config lacks what the table's rows or columns are called after.
        """
        table = tables()[number]
        row = self.row or self._called(number, table.row)
        return {"table": number, "row": row, "column": self._called(number, table.column, labels)}

    def _called(self, number: int, keys: tuple[str, ...], labels: str = "") -> str:
        about = {"method": method_name(self.cfg), "cell": Path(self.run_dir).name, "labels": labels}
        values = [about[k] if k in about else OmegaConf.select(self.cfg, k) for k in keys]
        if None in values:
            raise UserError(
                f"{self.run_dir}: no place in Table {number}: {keys[values.index(None)]} is not set"
            )
        return ", ".join(map(str, values))


def cells(spec: dict, overrides: list[str], out: Path) -> list[Cell]:
    """Every cell of a table's file, in its order, each once.

    Raises:
        UserError: a recipe or method that is not there, a config that cannot work, two cells that
            differ and would have one folder.
    """
    made: dict[str, Cell] = {}
    for number, group in enumerate(spec["groups"], 1):
        with paper_spec.within(f"group {number}"):
            for cell in _of_group(group, spec.get("operations", {}), overrides, out):
                first = made.setdefault(cell.run_dir, cell)
                differing = first is not cell and config_differences(first.cfg, cell.cfg)
                if differing:
                    raise UserError(
                        f"{cell.run_dir} is the folder of another cell, too, which is not the "
                        f"same: {'; '.join(differing)}; give one of them another name"
                    )
    return list(made.values())


def _of_group(group: dict, operations: dict, overrides: list[str], out: Path) -> Iterator[Cell]:
    recipe, names = group["recipe"], group.get("words", [])
    folder = out / "-".join([recipe.replace("/", "-"), *map(sweep.short, names)])
    words = [operations.get(name, name) for name in names]
    if "methods" in group:
        base = config.finish(config.load(recipe, [*words, *overrides]))
        rows = group["methods"] if isinstance(group["methods"], dict) else {}
        for method in group["methods"]:
            with paper_spec.within(f"method {method}"):
                cfg = _with_method(base, method, folder)
            yield Cell(_placed(cfg, folder / method), rows.get(method))
        return
    if "cells" in group:
        named = group["cells"]
    else:
        with paper_spec.within("sweep"):
            combinations = sweep.combinations(group["sweep"])
        named = {",".join(map(sweep.short, cell)): cell for cell in combinations}
    for name, more in named.items():
        with paper_spec.within(f"cell {name}"):
            own = [operations.get(word, word) for word in more]
            cfg = config.finish(config.load(recipe, [*words, *own, *overrides]))
        yield Cell(_placed(cfg, folder / name), group.get("row"))


def _with_method(base: DictConfig, method: str, folder: Path) -> DictConfig:
    if method == "random":
        cfg = OmegaConf.create({**OmegaConf.to_container(base), "method": "random"})
        return config.finish(cfg)
    settings = benchmark.read_methods(base)
    if method not in settings:
        raise UserError(f"{benchmark.METHODS_FILE}: no method {method}; {', '.join(settings)}")
    return benchmark.cell_config(base, method, settings[method], base.seed, folder)


def _placed(cfg: DictConfig, folder: Path) -> DictConfig:
    cfg.run_dir, cfg.resume, cfg.name = str(folder), True, f"{folder.parent.name}-{folder.name}"
    return cfg


def check_places(number: int, planned: list[Cell]) -> None:
    """A place in the table is for one cell and its seeds; the table would refuse others, too late.

    Overrides for every cell can undo what makes the difference between two.

    Raises:
        UserError: two cells for one place.
    """
    free = {"seed", *TEMPERATURES} if tables()[number].best_of > 1 else {"seed"}
    found: dict[tuple, dict[tuple, Cell]] = {}  # by their differences from the first
    for cell in planned:
        place = cell.place(number)
        others = found.setdefault((place["row"], place["column"]), {})
        first = next(iter(others.values()), cell)
        differing = tuple(config_differences(first.cfg, cell.cfg))
        keys = {difference.partition(":")[0] for difference in differing}
        other = others.get(differing) if keys <= free else first
        if other is not None:
            raise UserError(
                f"{other.run_dir} and {cell.run_dir} are both {place['row']} / {place['column']} "
                f"of Table {number}: cells must differ in what the table varies, or in the seed "
                "alone"
            )
        others[differing] = cell
