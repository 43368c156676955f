"""What a scaling law is: a formula, named bounded parameters, and a guess of where a fit begins.

The formula is written once, for the logarithm of the outcome: with arrays it predicts, with jets it gives its exact
derivatives. A sum of power terms needs no more than its terms: formula, parameters and guess follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from budgetlab.errors import CallerError
from budgetlab.laws.terms import Array, Term, log_sum, start_terms

Rule = Callable[[Mapping[str, Any], Mapping[str, Array]], Any]
Proposal = Callable[[Mapping[str, Array], Array, int], Array]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Parameters
    ----------
    name
        As printed.
    low, high
        Its bounds; a fit that ends on one is reported, never trusted.
    positive
        Whether it is a scale, and solved for in logarithms: coefficients, places and widths are. Exponents are not.
    centred
        For a coefficient, the exponent that belongs to each input: it is solved for as the size of its term at the
        geometric mean of the inputs, since at an input of 1, far from any data, it would hang on the exponent.
    grows
        Whether its term grows with these inputs, instead of falling.
    place
        The input that it is a value of, if it is one: a break, a midpoint. It is looked for within a factor of ten of
        the table's values.
    """

    name: str
    low: float = 0.0
    high: float = float("inf")
    positive: bool = True
    centred: Mapping[str, str] = field(default_factory=dict)
    grows: bool = False
    place: str | None = None

    @property
    def sign(self) -> float:
        """Of its exponents, as they stand under the term's fraction line."""
        return -1.0 if self.grows else 1.0


@dataclass(frozen=True)
class Law:
    """A scaling law: either its `terms`, or `inputs`, `parameters`, `rule` and `propose`.

    Parameters
    ----------
    name, outcome
        What it is asked for by, and what it predicts, such as ``loss``; above zero.
    terms
        The power terms of a sum of them: positive coefficients, exponents in [0, `exponent_max`], decreasing in
        every input; the first term without inputs is the floor.
    formula, source
        As printed, and where the form comes from.
    derived
        Quantities that follow from the parameters, by name.
    inputs, parameters
        Names of the inputs, above zero, and the parameters.
    rule
        The logarithm of the outcome, from the parameters (logarithms of those that are `positive`) and the
        logarithms of the inputs, except of `plain` ones. Written with numpy's functions that `jets` knows.
    propose
        Starting points, shape (starts, parameters), in natural units, from inputs and outcome of shape (points,).
    floor
        Name of the parameter that is the outcome's limit and may be zero, if there is one.
    plain
        Inputs that `rule` takes as they are, such as a loss that an exponential runs along.
    most
        The largest outcome that there can be, such as 1 for an accuracy.
    falling, rising
        Inputs in which the outcome never rises, or never falls, whatever the parameters.
    size
        Power of each input in what counts as the size of a run: the largest are held out to test the law. By default
        the product of all inputs.
    lacking
        Says in a sentence which variation the inputs lack for the parameters to be told apart, given the names of
        the free ones; empty where there is enough. Inputs that never vary are found without it.
    scope
        What the form is not validated for; a note on every fit.
    typical, ranges
        Plausible parameters, and ranges of the inputs over which they can be told apart: what the form is tested on.
    """

    name: str
    outcome: str
    terms: tuple[Term, ...] = ()
    formula: str = ""
    source: str = ""
    derived: Mapping[str, Callable[[Mapping[str, Array]], Array]] = field(default_factory=dict)
    exponent_max: float = 10.0
    inputs: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    rule: Rule = lambda p, x: np.nan
    propose: Proposal | None = None
    floor: str | None = None
    plain: tuple[str, ...] = ()
    most: float = float("inf")
    falling: tuple[str, ...] = ()
    rising: tuple[str, ...] = ()
    size: Mapping[str, float] = field(default_factory=dict)
    lacking: Callable[[Mapping[str, Array], tuple[str, ...]], str] | None = None
    scope: str = ""
    typical: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known: dict[str, Any] = {} if self.size else {"size": dict.fromkeys(self.inputs, 1.0)}
        if self.terms:
            powers = dict.fromkeys(power for term in self.terms for power in term.exponents.values())
            inputs = tuple(dict.fromkeys(name for term in self.terms for name in term.exponents))
            known = {
                "inputs": inputs,
                "falling": inputs,
                "size": dict.fromkeys(inputs, 1.0),
                "floor": next((term.coefficient for term in self.terms if not term.exponents), None),
                "rule": partial(log_sum, self.terms),
                "parameters": (
                    *(Parameter(term.coefficient, centred=term.exponents) for term in self.terms),
                    *(Parameter(power, high=self.exponent_max, positive=False) for power in powers),
                ),
            }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @property
    def params(self) -> tuple[str, ...]:
        """Names of all parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the parameters that are solved for as they are."""
        return tuple(parameter.name for parameter in self.parameters if not parameter.positive)

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Parameters in the order in which they are solved for; of a sum each term's, so that one may come twice."""
        in_terms = tuple(name for term in self.terms for name in (term.coefficient, *term.exponents.values()))
        return in_terms or self.params

    @property
    def powers(self) -> tuple[tuple[str, str], ...]:
        """Every input with the power that a coefficient's term gives it."""
        pairs = (pair for parameter in self.parameters for pair in parameter.centred.items())
        return tuple((name, power) for name, power in pairs if name not in self.plain)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Bounds of every parameter."""
        return {parameter.name: (parameter.low, parameter.high) for parameter in self.parameters}

    def predict(self, params: Mapping[str, float | Array], inputs: Mapping[str, float | Array]) -> Array:
        """Evaluate the law.

        Parameters
        ----------
        params
            A value for every parameter, or arrays that broadcast against the inputs.
        inputs
            A positive array for every input.

        Returns
        -------
        Array
            The outcome, in the shape that parameters and inputs broadcast to.

        Raises
        ------
        CallerError
            When a parameter or an input is missing.
        """
        for kind, needed, given in (("parameter", self.params, params), ("input", self.inputs, inputs)):
            if missing := [name for name in needed if name not in given]:
                raise CallerError(f"law {self.name}", f"no {kind} {', '.join(missing)}", "give a value to each")
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.exp(self.rule(self.raw(params), self.seen(inputs)))

    def seen(self, inputs: Mapping[str, float | Array]) -> dict[str, Array]:
        """Turn inputs into what `rule` takes: logarithms, except of `plain` ones."""
        arrays = {name: np.asarray(inputs[name], dtype=float) for name in self.inputs}
        return {name: values if name in self.plain else np.log(values) for name, values in arrays.items()}

    def raw(self, params: Mapping[str, float | Array]) -> dict[str, Array]:
        """Turn natural parameters into those that `rule` takes: logarithms of the positive ones."""
        arrays = {name: np.asarray(params[name], dtype=float) for name in self.params}
        with np.errstate(divide="ignore"):
            return {p.name: np.log(arrays[p.name]) if p.positive else arrays[p.name] for p in self.parameters}

    def derive(self, params: Mapping[str, float | Array]) -> dict[str, Array]:
        """Compute what follows from the parameters; NaN where that is undefined."""
        arrays = {name: np.asarray(value, dtype=float) for name, value in params.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: np.asarray(rule(arrays)) for name, rule in self.derived.items()}

    def of_terms(self, terms: Sequence[Term]) -> Law:
        """Return the smaller sum of these terms, named by what it lacks, such as ``power without E``."""
        left = {term.coefficient for term in terms}
        gone = " and ".join(term.coefficient for term in self.terms if term.coefficient not in left)
        name = f"{self.name} without {gone}" if gone else self.name
        formula = " + ".join(term.formula for term in terms)
        return replace(self, name=name, terms=tuple(terms), formula=formula, derived={})

    def without(self, *coefficients: str) -> Law:
        """Return the smaller sum that lacks these terms."""
        return self.of_terms([term for term in self.terms if term.coefficient not in coefficients])

    def starts(
        self, inputs: Mapping[str, Array], outcome: Array, count: int = 8, pinned: Mapping[str, float] | None = None
    ) -> Array:
        """Propose starting points inside the bounds, shape (at most `count`, parameters), in the order of `params`.

        The best half comes first, the others are spread over what was proposed: where the objective has several
        basins, the closest starts often share one. A sum of terms proposes what it would without `pinned` ones.
        """
        if self.propose is None:
            return start_terms(self.terms, self.exponents, inputs, outcome, count)
        # In one order of rows, so that no other order leads to another basin.
        order = np.lexsort([outcome, *inputs.values()])
        inputs, outcome = {name: values[order] for name, values in inputs.items()}, outcome[order]
        low, high = np.array(list(self.bounds.values())).T
        proposed = np.clip(self.propose(inputs, outcome, count), low, high)
        for name, value in (pinned or {}).items():
            proposed[:, self.params.index(name)] = value
        proposed = np.unique(proposed, axis=0)
        columns = {name: values[:, None] for name, values in zip(self.params, proposed.T, strict=True)}
        # A prediction may vanish, or be infinite: such a start is as bad as can be.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            missed = np.log(self.predict(columns, {name: inputs[name][None] for name in self.inputs}) / outcome)
        # Absolute, as a start that misses one point by far may still be the best.
        error = np.where(np.isfinite(missed), np.abs(missed), 1e6).mean(axis=1)
        order = np.argsort(error, kind="stable")
        best, others = order[: (count + 1) // 2], order[(count + 1) // 2 :]
        spread = others[np.linspace(0, len(others) - 1, min(count // 2, len(others))).astype(int)]
        return proposed[np.concatenate([best, spread])]


@dataclass(frozen=True)
class Instance:
    """A law with published values for its parameters.

    Parameters
    ----------
    name, law
        Who fitted what.
    params
        Published values, by the law's names.
    scope
        What it was fitted to, and what it is not validated for.
    source
        Where the values are printed.
    intervals
        Published intervals, at `interval_level`.
    input_ranges
        Ranges of the inputs that it was fitted to, as far as they are published.
    """

    name: str
    law: Law
    params: Mapping[str, float]
    scope: str
    source: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    interval_level: float | None = None
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def predict(self, inputs: Mapping[str, float | Array]) -> Array:
        """Evaluate the law at the published values; `inputs` and result as in `Law.predict`."""
        return self.law.predict(self.params, inputs)
