"""A study: the runs that a grid of settings means, with their baselines and controls, over seeds; and what of them is tuned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from icpctl.ablate.ranges import EXAMPLE, Range, ranges_of, texts_of
from icpctl.config import RunConfig, choices, declaration, earlier_settings, option, resolve
from icpctl.config.catalogue import METHODS, PLAIN
from icpctl.config.cost import compute_matched
from icpctl.config.grid import grid_values, holds, key_of
from icpctl.config.settings import load_toml, typed_settings
from icpctl.errors import UserError, abbreviated, unknown
from icpctl.files import locked, not_writable, write_atomic
from icpctl.runs.claims import PlannedClaim
from icpctl.runs.references import controls_of
from icpctl.statistics import LEAST_SEEDS

STUDY_FILE = "study.toml"
DEFAULT_MAX_SEEDS, MOST_SEEDS = 40, 100
"""Of claims whose seeds go on until they are decided: without --max-seeds, and with it."""
LARGEST = 100_000
"""Combinations that a study may have; more are a slip of the pen."""

TRIALS, MOST_TRIALS = 20, 1000
"""Trials of each arm where tuning does not say how many; and how many these may be."""

Role = Literal["baseline", "method", "control", "compute-matched", "trial"]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study, and what it is there for.

    The roles: `method`, a combination of the grid; `baseline`, the plain training beside it, as long in epochs;
    `compute-matched`, plain training of as many passes; `control`, a perturbation that is not constructive. The runs of
    tuning are a `trial` each.
    """

    config: RunConfig
    role: Role


Value = str | bool | int | float


class _StudyTable(BaseModel):
    """The keys of a study in a TOML file; a description says what a key can be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    settings: dict[str, Any] = Field({}, description="a table")
    grid: dict[str, Value | list[Value]] = Field({}, description="a table of values and lists of values")
    where: str | list[str] = Field([], description="a text or a list of texts")
    seeds: int | str | list[Any] = Field(1, description="a number, a text or a list")
    controls: bool = Field(False, description="true or false")
    compute_matched: bool = Field(False, description="true or false")
    tune: dict[str, str] = Field({}, description=f"a table of ranges, such as {EXAMPLE.replace('=', ' = ')}")
    trials: int = Field(
        TRIALS, ge=1, le=MOST_TRIALS, description=f"a number from 1 to {MOST_TRIALS:,}, with ranges under [tune]"
    )

    @classmethod
    def read(cls, table: Mapping[str, Any], where: str) -> Self:
        """The keys of a table.

        Raises:
            UserError: a fault in it, with the place.
        """
        named = {key.replace("-", "_"): value for key, value in table.items()}
        try:
            return cls.model_validate(named)
        except ValidationError as error:
            key = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
        if key in cls.model_fields:
            meant = cls.model_fields[key].description
            raise UserError(f"{where}: {key} cannot be {abbreviated(named[key])}. It is {meant}.")
        if key in RunConfig.model_fields:
            raise UserError(f"{where}: {key} belongs under [settings], or with several values under [grid].")
        if key in ("execution", *Plan.model_fields):
            name = "[execution]" if key == "execution" else key
            raise UserError(f"{where}: {name} stands once in the file, beside the studies.")
        raise UserError(f"{where}: {unknown('key', key, cls.model_fields)}")


@dataclass(frozen=True)
class Study:
    """The definition of a study; `runs` are the runs that it means.

    Each combination of the grid is a run, with its baseline. Combinations that come to the same run are one: settings
    that a run ignores (η in a baseline, α with Adam) do not create extra runs.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    """What the runs share."""
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The values of each hyper-parameter that varies, as text, ranges written out."""
    where: Sequence[str] = ()
    """Conditions; a combination for which one is false is left out."""
    seeds: Sequence[int] = (0,)
    controls: bool = False
    """Whether each run of a method has its controls, as `icpctl.config.catalogue` says."""
    compute_matched: bool = False
    """Whether each run of the method has a baseline with as many passes of the network."""
    tune: Mapping[str, Range] = field(default_factory=dict)
    """The settings that are tuned, each arm by itself: see `icpctl.ablate.tuning`. `runs` are then those before their tuning."""
    trials: int = TRIALS
    """Of each arm."""

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> Self:
        """A study as a TOML file gives it: the tables `settings` and `grid`; `where`, `seeds`, `controls`, `compute-matched`; `tune` and `trials`.

        Raises:
            UserError: a fault in it, with the place.
        """
        given = _StudyTable.read(table, where)
        grid: dict[str, list[str]] = {}
        for key, listed in given.grid.items():
            pieces = listed if isinstance(listed, list) else abbreviated(listed, longest=10**6).split(",")
            name, values = grid_values(key, pieces, f"{where}, [grid] {key}")
            if name in grid:
                raise UserError(f"{where}, [grid]: {name} is given twice, as {name} and as {name.replace('_', '-')}.")
            grid[name] = values
        if "seed" in grid and "seeds" in given.model_fields_set:
            raise UserError(f"{where}: seeds and seed under [grid] both say which seeds to run. Give one of them.")
        settings = typed_settings(given.settings, f"{where}, [settings]")
        if not given.model_fields_set & {"grid", "seeds", "controls", "compute_matched", "tune"}:
            raise UserError(f"{where}: there is nothing to vary. Give values under [grid], or seeds.")
        if "trials" in given.model_fields_set and not given.tune:
            raise UserError(f"{where}: trials is given, and no range to choose from. Give ranges under [tune].")
        return cls(
            settings,
            grid,
            (given.where,) if isinstance(given.where, str) else tuple(given.where),
            parse_seeds(given.seeds, settings.pop("seed", None), f"{where}, seeds"),
            given.controls,
            given.compute_matched,
            ranges_of(given.tune.items(), f"{where}, [tune]"),
            given.trials,
        )

    def to_table(self) -> dict[str, Any]:
        """The study for a TOML file; `from_table` gives it back. It says which order of the passes it has, as files of 0.1 do not."""
        table: dict[str, Any] = {} if "seed" in self.grid else {"seeds": list(self.seeds)}
        table |= {"where": list(self.where)} if self.where else {}
        table |= {"controls": True} if self.controls else {}
        table |= {"compute-matched": True} if self.compute_matched else {}
        table |= {"trials": self.trials, "tune": texts_of(self.tune)} if self.tune else {}
        explicit = _without(self.grid, {name: choices(name)[0] for name in earlier_settings()})
        settings = {name: _plain(v) for name, v in {**explicit, **self.settings}.items() if v is not None}
        return table | {"settings": settings, "grid": {name: list(values) for name, values in self.grid.items()}}

    def __post_init__(self) -> None:
        for name in self.grid:
            if name in self.settings:
                raise UserError(
                    f"{option(name)} is set to {self.settings[name]} for all runs, and varied by the grid. "
                    "Leave out one of them."
                )
        for name in self.tune:
            if name in self.settings or name in self.grid:
                how = f"set to {self.settings[name]} for all runs" if name in self.settings else "varied by the grid"
                raise UserError(f"{option(name)} is tuned, and {how}. Leave out one of them.")
        if (count := math.prod(map(len, self.grid.values())) * len(self.seeds)) > LARGEST:
            raise UserError(
                f"The grid has {count:,} combinations, and may have {LARGEST:,}. Vary fewer things at once."
            )

    def runs(self) -> list[PlannedRun]:
        """Every run, in order, all of one seed before those of the next: so a study that is cut short can be compared.

        Raises:
            UserError: a combination that is not a valid configuration; conditions that leave none; controls or
                compute-matched baselines of nothing.
        """
        planned: dict[str, PlannedRun] = {}
        for seed in self.seeds:
            combinations = [_with_cost(config) for config in self._combinations(seed)]
            for config in combinations:
                for run in self._with_references(config):
                    planned.setdefault(run.config.run_id, run)
            if self.compute_matched:
                for config in map(compute_matched, combinations):
                    planned.setdefault(config.run_id, PlannedRun(config, "compute-matched"))
        for name, values in self.grid.items():
            if len(values) > 1 and not self.where and len({getattr(run.config, name) for run in planned.values()}) == 1:
                raise UserError(
                    f"--grid {key_of(name)}={','.join(values)}: this changes no run, as {option(name)} means nothing with the other settings. "
                    "Leave it out, or change those."
                )
        if not planned:
            raise UserError(f"--where {' --where '.join(map(repr, self.where))}: no combination of the grid is left.")
        roles = {run.role for run in planned.values()}
        if self.controls and not any(controls_of(run.config) for run in planned.values()):
            raise UserError(
                "--controls: no run of this study has controls; "
                + ", ".join(name for name, row in METHODS.items() if row.controls)
                + " have them. Leave it out."
            )
        if self.compute_matched and "compute-matched" not in roles:
            raise UserError(
                "--compute-matched: no run of this study costs more than its baseline, so there is nothing to match. Leave it out."
            )
        return list(planned.values())

    def _with_references(self, config: RunConfig) -> Iterator[PlannedRun]:
        yield PlannedRun(config.baseline(), "baseline")
        if config.method == PLAIN:
            return
        yield PlannedRun(config, "control" if config.control else "method")
        for made in controls_of(config).values() if self.controls else ():
            yield PlannedRun(made, "control" if made.control else "method")  # label smoothing is one itself

    def _combinations(self, seed: int) -> Iterator[RunConfig]:
        for values in itertools.product(*self.grid.values()):
            combination = dict(zip(self.grid, values, strict=True))
            place = " ".join(f"--grid {key_of(name)}={value}" for name, value in combination.items())
            given = {**self.settings, "seed": seed, **combination}
            try:
                config = resolve(given, place)
            except UserError as invalid:
                try:  # a condition may be there to leave out just this
                    kept = self._kept(typed_settings(given, place))
                except UserError:
                    raise invalid from None
                if kept:
                    raise
                continue
            if self._kept(dict(config)):
                yield config

    def _kept(self, settings: Mapping[str, object]) -> bool:
        return all(holds(condition, settings, f"--where {condition!r}") for condition in self.where)


def _with_cost(config: RunConfig) -> RunConfig:
    """A configuration with what its method measures on the model, on which its cost depends."""
    if all(getattr(config, name) is not None for name in METHODS[config.method].measured):
        return config
    from icpctl import models

    return models.complete(config)


def _without(names: Container[str], settings: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name not in names}


def _plain(value: object) -> object:
    """A setting as TOML can hold it."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def parse_seeds(given: object, first: object = None, where: str = "--seeds") -> tuple[int, ...]:
    """Seeds from 5 (so many, counted up from `first`, or 0), from "0,3,7" or "0..4", or from a list.

    Raises:
        UserError: it is none of these, or a seed is out of range; with the place.
    """
    text = ",".join(map(abbreviated, given)) if isinstance(given, list) else abbreviated(given, longest=10**6)
    listed = isinstance(given, list) or "," in text or ".." in text
    if listed and first is not None:
        raise UserError(
            f"{where} {abbreviated(text)} and {option('seed')} {first} both say which seeds to run. Give one of them."
        )
    try:
        if listed:
            _, seeds = grid_values("seed", text.split(","), where)
            return tuple(resolve({"seed": seed}).seed for seed in seeds)
        count = resolve({"seed": text}).seed  # read as every whole number is: 5.0 is 5
        if not 1 <= count <= LARGEST:
            raise UserError("It is no number of seeds.")
        start = resolve({"seed": first or 0}).seed
        resolve({"seed": start + count - 1})
        return tuple(range(start, start + count))
    except UserError:
        raise UserError(
            f"{where} {abbreviated(text)}: give how many seeds, 1 to {LARGEST:,}, or which, such as 0,3,7 or 0..4. A seed is "
            "a whole number from 0 to 2147483647, and is given once."
        ) from None


class Execution(BaseModel):
    """Where and how the runs of a study are executed; no result depends on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    executor: Literal["local", "ray", "slurm"] = "local"
    jobs: int | None = Field(None, ge=1)
    """Runs at once; None: as many as the executor has room for."""
    jobs_per_gpu: int = Field(1, ge=1)
    """Runs that share a CUDA device."""
    stack: int = Field(1, ge=1)
    """Runs that are trained together in one process, where they can be: see `icpctl.training.stack`."""
    retries: int = Field(1, ge=0)
    """How often a run that failed is tried again."""
    track: Literal["tensorboard", "wandb"] | None = None
    """The tool that follows the runs while they go on: see `icpctl.training.tracking`."""
    address: str | None = None
    """Of the Ray cluster; None: the one that runs on this machine."""
    slurm: dict[str, str | int] = {}
    """Parameters of the Slurm jobs, by submitit's names: slurm_partition, timeout_min, gpus_per_node …"""


class Plan(BaseModel):
    """What a study is to decide: keys of its TOML file, and options; a description says what a key can be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    claims: list[str | PlannedClaim] = Field([], description="a list of texts")
    margin: float | None = Field(None, gt=0, allow_inf_nan=False, description="a number above 0")
    until_decided: bool = Field(False, description="true or false")
    max_seeds: int | None = Field(
        None, ge=LEAST_SEEDS, le=MOST_SEEDS, description=f"a whole number from {LEAST_SEEDS} to {MOST_SEEDS}"
    )

    @classmethod
    def pop(cls, table: dict[str, Any], where: str, recorded: bool) -> Self:
        """The plan in a TOML table, which loses its keys.

        Raises:
            UserError: a fault in it, with the place.
        """
        given = {name: table.pop(key) for key in [*table] if (name := key.replace("-", "_")) in cls.model_fields}
        plan = cls.of(given, where)
        return plan if recorded else plan.model_copy(update={"claims": [*plan.planned(where)]})

    @classmethod
    def of(cls, given: Mapping[str, object], where: str) -> Self:
        """The plan of these keys.

        Raises:
            UserError: a value that a key cannot have, with the place.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            key = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
            meant, shown = cls.model_fields[key].description, key if key == "claims" else option(key)
            raise UserError(f"{where}: {shown} cannot be {abbreviated(given[key])}. It is {meant}.") from None

    def planned(self, where: str) -> tuple[PlannedClaim, ...]:
        """The claims, with the margin and the seeds of the plan; without what another results folder has recorded of them.

        Raises:
            UserError: one cannot be read, or is there twice; seeds that nothing is to decide; with the place.
        """
        if self.max_seeds is not None and not self.until_decided:
            raise UserError(f"{where}: --max-seeds is for --until-decided, which adds seeds. Give both, or neither.")
        if self.until_decided and not self.claims:
            raise UserError(
                f"{where}: --until-decided adds seeds until the claims are decided, and there is none. Give claims."
            )
        if self.margin is not None and not self.claims:
            raise UserError(
                f"{where}: --margin is of claims, and there is none. Give claims; `icpctl report --margin` needs none."
            )
        most = (self.max_seeds or DEFAULT_MAX_SEEDS) if self.until_decided else None
        found: dict[str, PlannedClaim] = {}
        for each in self.claims:
            own = PlannedClaim.parse(each) if isinstance(each, str) else each
            claim = PlannedClaim.parse(own.claim, own.margin or self.margin)
            claim = claim.model_copy(update={"max_seeds": own.max_seeds or most})
            if claim.claim in found:
                raise UserError(f"{where}: {claim.place[0].lower()}{claim.place[1:]} is given twice.")
            found[claim.claim] = claim
        return tuple(found.values())


@dataclass(frozen=True)
class Definition:
    """What study.toml holds: one study or several, what they are to decide, and how their runs are executed."""

    studies: Sequence[Study]
    execution: Execution = field(default_factory=Execution)
    claims: Sequence[PlannedClaim] = ()
    until_decided: bool = False
    """Whether seeds are added until every claim is decided."""

    @classmethod
    def read(cls, file: Path, recorded: bool = False) -> Self:
        """A definition from a TOML file: the keys of one study, or `[[study]]` tables; and `[execution]`.

        Args:
            file: the file.
            recorded: whether it is a results folder's own: a setting that it lacks then has the value that version 0.1 used.

        Raises:
            UserError: the file cannot be read, or a fault in it, with the place.
        """
        table = load_toml(file)
        try:
            execution = Execution.model_validate(
                {key.replace("-", "_"): value for key, value in table.pop("execution", {}).items()}
            )
        except (ValidationError, AttributeError) as error:
            fault: Any = (
                error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "it is a table"}
            )
            name = ".".join(map(str, fault["loc"]))
            message = f"{fault['msg']}."
            if fault.get("type") == "extra_forbidden":
                message = str(unknown("key", name, Execution.model_fields))
            raise UserError(f"{file}, [execution] {name}: {message}") from None
        plan = Plan.pop(table, str(file), recorded)
        tables = table.get("study", [table])
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables) or not tables:
            raise UserError(f"{file}: several studies are written as [[study]] tables.")
        if "study" in table and (beside := set(table) - {"study"}):
            raise UserError(f"{file}: {', '.join(sorted(beside))} stands beside [[study]]. Write it into each of them.")
        places = [f"{file}" if len(tables) == 1 else f"{file}, study {i}" for i in range(1, len(tables) + 1)]
        studies = [Study.from_table(each, place) for each, place in zip(tables, places, strict=True)]
        if recorded:
            studies = [
                replace(each, settings={**_without(each.grid, earlier_settings()), **each.settings}) for each in studies
            ]
        return cls(
            studies,
            execution,
            tuple(PlannedClaim.parse(each) if isinstance(each, str) else each for each in plan.claims),
            plan.until_decided,
        )

    @classmethod
    def kept(cls, folder: Path) -> Self | None:
        """The definition that a results folder has; None if it has none.

        Raises:
            UserError: as `read`.
        """
        file = folder / STUDY_FILE
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise UserError(f"{file} is no file. Remove it, or take another results folder, with --output.")
        return cls.read(file, recorded=True) if file.exists() else None

    def keep(self, folder: Path) -> None:
        """Add the studies to study.toml of a results folder, which has those that were run there before.

        Raises:
            UserError: it is damaged or cannot be written.
        """
        file = folder / STUDY_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with study_lock(folder):
                kept = self.kept(folder) or Definition([])
                studies = {_meaning(study): study for study in (*kept.studies, *self.studies)}
                claims = {each.claim: each for each in (*kept.claims, *self.claims)}
                execution = self.execution.model_dump(exclude_defaults=True)
                content: dict[str, Any] = {"until-decided": True} if self.until_decided or kept.until_decided else {}
                content |= {"execution": execution} if execution else {}
                listed = [
                    each.model_dump(mode="json", by_alias=True, exclude_defaults=True) for each in claims.values()
                ]
                content |= {"claims": listed} if listed else {}
                content |= {"study": [study.to_table() for study in studies.values()]}
                write_atomic(file, tomli_w.dumps(content).encode())
        except OSError as error:
            raise not_writable(folder, error) from error

    def runs(self) -> list[PlannedRun]:
        """The runs of all studies, each once, all of one seed before those of the next.

        Raises:
            UserError: as `Study.runs`.
        """
        return in_order(run for study in self.studies for run in study.runs())


def in_order(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Each run once, all of one seed before those of the next: so studies that are cut short can be compared."""
    planned: dict[str, PlannedRun] = {}
    for run in runs:
        planned.setdefault(run.config.run_id, run)
    seeds = dict.fromkeys(run.config.seed for run in planned.values())
    rank = {seed: place for place, seed in enumerate(seeds)}
    return sorted(planned.values(), key=lambda run: rank[run.config.seed])


def study_lock(folder: Path) -> AbstractContextManager[None]:
    """What an ablation holds while it writes study.toml or study.csv of a results folder."""
    return locked(folder / f".{STUDY_FILE}.lock")


def _meaning(study: Study) -> str:
    """Equal for studies that mean the same runs in the same words, wherever their data are."""
    settings = {name: value for name, value in study.settings.items() if declaration(name).identity}
    return repr(replace(study, settings=settings).to_table())
