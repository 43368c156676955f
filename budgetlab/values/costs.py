"""What a step costs: FLOPs counted, time, memory and energy measured, and what is known of the device.

FLOPs are two per multiply-add. `tokens` are positions fed to the student, without padding; `target_tokens`
carry loss. None means unknown and prints n/a.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from budgetlab.values.base import Interval, Record, Value, passed_over

PHASES: tuple[str, ...] = ("teacher_forward", "student_forward", "loss", "backward", "update")
"""The phases of a training step, in the order in which they run."""


class Environment(Value):
    """The machine and the versions that a number was measured with; the last three are settings of a GPU."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset({"deterministic", "tf32", "bfloat16_sums"})

    device: str
    device_name: str
    device_memory_bytes: int | None = None
    devices: int = 1
    threads: int
    python: str
    torch: str
    transformers: str
    budgetlab: str
    deterministic: bool | None = None
    tf32: bool | None = None
    bfloat16_sums: bool | None = None


class PhaseCost(Value):
    """The price of one phase of the step; FLOPs a token, seconds a step."""

    required_flops_per_token: float
    executed_flops_per_token: float
    seconds_per_step: float | None = None
    cpu_seconds_per_step: float | None = None
    """Processor time, summed over threads, of a step on a CPU; other programs do not add to it."""


class PhaseTime(Value):
    """How long a phase takes for a number of tokens in sequences of a length."""

    constant_seconds: float
    seconds_per_token: float
    seconds_per_token_position: float
    floor_seconds: float = 0.0
    """Of a GPU that waits for its launches, whatever the tokens."""

    def seconds(self, tokens: float, seq_len: int) -> float:
        """Return the larger of the floor and ``constant + tokens * (per_token + per_token_position * seq_len)``."""
        slope = self.seconds_per_token + self.seconds_per_token_position * seq_len
        return max(self.floor_seconds, self.constant_seconds + tokens * slope)


class HeldOut(Value):
    """A measurement that the time model was not fitted to."""

    sequences: int
    seq_len: int
    predicted_seconds: float
    measured_seconds: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_seconds / self.measured_seconds - 1.0


class TimeModel(Value):
    """Seconds of each phase of an arm's step for any batch and sequence length, from a few short measurements.

    `shapes` are those it was fitted to, (sequences, positions). `clock`: "cpu" is processor time, summed over threads,
    which other programs on the machine do not add to; "device" is time on the GPU.
    """

    clock: Literal["cpu", "device"]
    phases: dict[str, PhaseTime]
    shapes: tuple[tuple[int, int], ...]
    held_out: tuple[HeldOut, ...]

    def phase_seconds(self, sequences: int, seq_len: int, micro_batch_sequences: int | None = None) -> dict[str, float]:
        """Return the seconds of each phase of a step, all sequences at once or in micro-batches and one update."""
        size = min(micro_batch_sequences or sequences, sequences)
        parts = [size] * (sequences // size) + ([sequences % size] if sequences % size else [])
        return {
            name: phase.seconds(size * seq_len, seq_len)
            if name == "update"  # once, whatever the tokens
            else sum(phase.seconds(part * seq_len, seq_len) for part in parts)
            for name, phase in self.phases.items()
        }

    def seconds(self, sequences: int, seq_len: int, micro_batch_sequences: int | None = None) -> float:
        """Return the seconds of a whole step."""
        return sum(self.phase_seconds(sequences, seq_len, micro_batch_sequences).values())

    def covers(self, sequences: int, seq_len: int) -> bool:
        """Whether a step lies within what was measured, held-out measurements included."""
        seen = [*self.shapes, *((held.sequences, held.seq_len) for held in self.held_out)]
        tokens, lengths = [s * t for s, t in seen], [t for _, t in seen]
        return min(tokens) <= sequences * seq_len <= max(tokens) and min(lengths) <= seq_len <= max(lengths)


class Ratio(Value):
    """An arm over the first one, round by round: the median of the ratios, and its interval."""

    value: float
    interval: Interval | None = None


class CompiledCost(Value):
    """What `torch.compile` makes of a step."""

    seconds_ratio: Ratio
    """Compiled over not, in the same round."""
    compile_seconds: float
    """Of the first step over an ordinary one."""


class Packing(Value):
    """What several processes side by side on one device do."""

    processes: int
    speed_ratio: float
    """Steps a second of all of them over those of one alone."""


class ArmCost(Value):
    """The price of one arm (or of pretraining one teacher) on one device.

    `train_required_flops_per_token` is the sum over phases at `target_fraction`. It is linear in the number of
    target tokens: `flops = tokens * ..._per_position + target_tokens * ..._per_target_token`.
    """

    arm: str
    batch_tokens: int
    seq_len: int | None = None
    target_fraction: float
    train_required_flops_per_token: float
    train_executed_flops_per_token: float
    required_flops_per_position: float
    required_flops_per_target_token: float
    executed_flops_per_position: float
    executed_flops_per_target_token: float
    head_required_flops_per_token: float | None = None
    """Of the student's forward pass, what its output head takes."""
    phases: dict[str, PhaseCost]
    agreement: dict[str, str] = {}
    """What agrees with torch's count: the closed form, fvcore."""
    seconds_per_step: float | None = None
    seconds_per_step_interval: Interval | None = None
    cpu_seconds_per_step: float | None = None
    seconds_ratio: Ratio | None = None
    cpu_seconds_ratio: Ratio | None = None
    first_step_seconds: float | None = None
    """Over an ordinary step: kernels chosen, optimizer state made. In no other number."""
    compiled: CompiledCost | None = None
    """None where it was not measured; all other seconds are of steps that are not compiled."""
    interval_level: float = 0.95
    tokens_per_second: float | None = None
    steps_timed: int = 0
    time_model: TimeModel | None = None
    peak_memory_bytes: int | None = None
    reserved_memory_bytes: int | None = None
    memory_source: str | None = None
    largest_micro_batch_sequences: int | None = None
    """That fit at once, looked for up to the whole batch; None where it was not looked for."""
    joules_per_token: float | None = None
    joules_source: str | None = None
    num_params_total: int
    num_params_non_embedding: int
    idle_parameters: tuple[str, ...] = ()
    """Student tensors that get no gradient, hence no weight decay and no optimizer state."""
    dtype: str
    attention: str

    _retired = passed_over("predicted_seconds_per_step", "cpu_seconds_per_step_interval")

    def required_flops(self, tokens: int, target_tokens: int, taught_tokens: int | None = None) -> float:
        """Required FLOPs of training on so many tokens, of which the teacher reads `taught_tokens` (None: all)."""
        untaught = 0 if taught_tokens is None else tokens - taught_tokens
        flops = tokens * self.required_flops_per_position + target_tokens * self.required_flops_per_target_token
        return flops - untaught * self.phases["teacher_forward"].required_flops_per_token

    def executed_flops(self, tokens: int, target_tokens: int, taught_tokens: int | None = None) -> float:
        """Executed FLOPs of training on so many tokens, of which the teacher reads `taught_tokens` (None: all)."""
        untaught = 0 if taught_tokens is None else tokens - taught_tokens
        flops = tokens * self.executed_flops_per_position + target_tokens * self.executed_flops_per_target_token
        return flops - untaught * self.phases["teacher_forward"].executed_flops_per_token

    @property
    def required_flops_per_second(self) -> float | None:
        """Required FLOPs over seconds, as timed here: what utilisation is a share of."""
        rate = self.tokens_per_second
        return None if rate is None else rate * self.train_required_flops_per_token


class ModelCost(Value):
    """FLOPs of one language model by itself; a position is a token of a sequence without padding."""

    model: str
    architecture: str
    kind: Literal["masked", "causal"]
    seq_len: int
    body_forward_flops_per_token: float
    head_forward_flops_per_position: float
    """Where logits are computed."""
    backward_flops_per_token: float
    """With logits at every position, and every parameter trained."""
    train_required_flops_per_token: float
    """With logits at `target_fraction` of the positions."""
    target_fraction: float
    num_params_total: int
    num_params_non_embedding: int
    verdict: dict[str, str]
    """What agrees with torch's count."""


class Timing(Value):
    """How the seconds were taken, and what speaks against them."""

    rounds: int
    """Of every arm, each in a random order; the first, which warms up, is not counted."""
    measured_seconds: float
    """Of the arm that was measured the least."""
    waiting_share: float | None
    """Of the time that threads could have run, what they waited for a core; None where the system does not say."""
    drift: float
    """The second half of the rounds over the first, less one."""
    warnings: tuple[str, ...] = ()


class CostProfile(Record):
    """The prices of a study's arms and teachers on a device."""

    study: str
    study_key: str = ""
    """Hash of what decided the prices: models, arms, recipe, execution."""
    arms: tuple[ArmCost, ...]
    teachers: tuple[ArmCost, ...] = ()
    """Pretraining each teacher, named as its model."""
    conventions: dict[str, str]
    environment: Environment
    micro_batch_sequences: int | None = None
    """Sequences at once, where the whole batch does not fit or the study says so; None for all."""
    timing: Timing | None = None
    peak_flops_per_second: float | None = None
    """Of the device by its maker, dense, in the arms' precision."""
    peak_source: str | None = None
    packing: tuple[Packing, ...] | None = None
    """Of the dearest arm's steps; None where it was not measured."""
    predicted_for: str | None = None
    """The shape and device that the seconds are a prediction for; None where they were measured."""

    _retired = passed_over("calibration")

    @property
    def arms_have_seconds(self) -> bool:
        """Whether every arm has seconds, wherever they are from."""
        return all(cost.seconds_per_step is not None for cost in self.arms)

    @property
    def timed(self) -> bool:
        """Whether steps were timed, not only counted."""
        return all(cost.seconds_per_step is not None for cost in (*self.arms, *self.teachers))
