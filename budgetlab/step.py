"""THE training step, in five phases; the profiler counts and times the very program that the runner runs.

teacher forward -> student forward -> loss -> backward -> update. Arms differ in their strategy and in nothing else
here. What no loss reads is not computed (`Needs`); with `execute = "everything"` all of it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from budgetlab.batches import MaskedBatch
from budgetlab.checkpoint import tensors_hash
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.hardware import is_out_of_memory
from budgetlab.in_parts import InParts
from budgetlab.models import FAMILIES, Network, build_network, load_parameters, start_from_teacher
from budgetlab.ranks import Ranks, averaged_in_bfloat16
from budgetlab.strategies import Strategy
from budgetlab.strategies.losses import largest
from budgetlab.transfer import Staged, to_device
from budgetlab.values import Batch, Kept, ModelSpec, Needs, Recipe, Signals
from budgetlab.values.model_specs import same_vocabulary

LOGITS_AT_ONCE = 2**25
"""Numbers that one network's logits may take in memory where the loss is a mean over rows: 128 MB in float32."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each tensor."""
OnPhase = Callable[[str], None]


class TrainingStep:
    """One arm's step: networks, learned projections, optimizer.

    `idle_parameters` are the student's tensors that the loss sends no gradient to: no weight decay, no optimizer state.
    `kept` is what the teacher's logits are reduced to; with `teacher_unmasked` it reads the words to be guessed.
    """

    def __init__(
        self,
        arm: str,
        strategy: Strategy,
        student: Network,
        teacher: Network | None,
        recipe: Recipe,
        *,
        projection_seed: int = 0,
        trained: Collection[str] | None = None,
        ranks: Ranks | None = None,
        bfloat16_gradients: bool = False,
        compiled: bool = False,
        kept: Kept | None = None,
        teacher_unmasked: bool = False,
    ) -> None:
        self.arm, self.strategy, self.recipe = arm, strategy, recipe
        self.kept, self.teacher_unmasked = kept, teacher_unmasked
        self.temperature: float = getattr(strategy, "temperature", 1.0)
        self.student, self.teacher = student.train(), teacher
        self.everything = recipe.execute == "everything"
        self.device = next(student.parameters()).device
        self._generators = [self.device] if self.device.type == "cuda" else []
        teacher_spec = teacher.spec if teacher is not None else None
        self.student_needs = strategy.student_needs(student.spec, teacher_spec)
        self.teacher_needs = Needs() if teacher is None else strategy.teacher_needs(student.spec, teacher.spec)
        sizes = [spec.vocab_size or 0 for spec in (student.spec, teacher_spec) if spec is not None]
        self.shared_vocab = None if len(set(sizes)) == 1 else min(sizes)
        """Entries that both vocabularies have, where one of them is padded."""
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        with torch.random.fork_rng(devices=self._generators), torch.device(self.device):
            torch.manual_seed(projection_seed)
            widths = strategy.projections(student.spec, teacher_spec)
            self.projections = nn.ModuleDict({name: nn.Linear(*pair, bias=False) for name, pair in widths.items()})
        kind = "cpu" if self.device.type == "meta" else self.device.type
        self.autocast = torch.autocast(kind, torch.bfloat16, enabled=recipe.dtype == "bfloat16")
        named = self._learned()
        self.replica: DistributedDataParallel | None = None
        reached = self._reached_by_gradient() if trained is None else trained
        self.idle_parameters = tuple(name for name in named if name not in reached)
        self.trained = {name: parameter for name, parameter in named.items() if name in reached}
        self.optimizer = self._optimizer() if self.device.type != "meta" else None
        if ranks is not None and ranks.world > 1:
            self.replica = self._replicated(named)
            if bfloat16_gradients:
                self.replica.register_comm_hook(None, averaged_in_bfloat16)
            for _ in range(2):  # it sums in another order after its first step; so let no training have that first one
                self._reached_by_gradient()
        for network in (student, teacher) if compiled else ():
            if network is not None:
                network.compile(dynamic=False)

    def _learned(self) -> dict[str, nn.Parameter]:
        projections = dict(self.projections.named_parameters(prefix="projections"))
        return dict(self.student.named_parameters()) | projections

    def _reached_by_gradient(self) -> set[str]:
        """Find out with one sequence which tensors the loss sends a gradient to."""
        length = self.recipe.seq_len
        ids = torch.zeros((1, length), dtype=torch.long, device=self.device)
        one = torch.ones(1, dtype=torch.long, device=self.device)
        batch = Batch(ids, target_positions=one, target_ids=one, causal=self.student.spec.causal)
        return self._tried(batch, alone=self.replica is None)

    def warm_up(self, batch: MaskedBatch, micro_batch_sequences: int | None) -> None:
        """Run forward and backward once on each size of micro-batch, which compiles networks; nothing is changed."""
        try:
            for part in {len(part.input_ids): part for part, _ in batch.split(micro_batch_sequences)}.values():
                self._tried(to_device(part, self.device))
        except RuntimeError as error:  # what dynamo and inductor raise
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise CallerError(f"torch.compile of {self.arm}", reason, "set execution.compile = never") from error
        for network in (self.student, self.teacher):
            if network is not None:
                network.sealed = True

    def _tried(self, batch: Batch, *, alone: bool = False) -> set[str]:
        """Run forward and backward, and forget all of it but the names of the tensors that got a gradient."""
        named = self._learned()
        with torch.random.fork_rng(devices=self._generators):
            self.backward(self._terms(batch, lambda phase: None, alone=alone))
        reached = {name for name, parameter in named.items() if parameter.grad is not None}
        for parameter in named.values():
            parameter.grad = None
        return reached

    def _replicated(self, named: dict[str, nn.Parameter]) -> DistributedDataParallel:
        """One of the copies that average their gradients while the backward pass still runs."""
        for name in self.idle_parameters:
            named[name].requires_grad_(False)  # else the others would wait for its gradient
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another name for it, 2.11 this one alone
            return DistributedDataParallel(
                _Student(self.student, self.projections), broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _optimizer(self) -> torch.optim.AdamW:
        recipe = self.recipe
        decayed = [parameter for parameter in self.trained.values() if parameter.ndim >= 2]
        plain = [parameter for parameter in self.trained.values() if parameter.ndim < 2]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True)

    def teacher_forward(self, batch: Batch, *, alone: bool = False) -> Signals | None:
        """Phase 1: the teacher's signals, without a graph, or what was kept of them; `alone`: not compiled."""
        if self.teacher is None:
            return None
        if batch.kept is not None:
            return Signals(kept=batch.kept)
        with torch.no_grad(), self.autocast:
            needs = self._before_head(batch, self.teacher.spec, self.teacher_needs)
            read = batch.unmasked() if self.teacher_unmasked else batch
            signals = self._forward(self.teacher.forward if alone else self.teacher, read, needs)
            if self.strategy.largest_logits is not None and signals.logits is not None:
                return Signals(largest=largest(signals.logits, self.strategy.largest_logits))
            return signals

    def student_forward(self, batch: Batch, *, alone: bool = False) -> Signals:
        """Phase 2: the student's signals; `alone`: not compiled, and no other process will hear of its gradients."""
        network = self.student.forward if alone else self.replica or self.student
        with self.autocast:
            needs = self._before_head(batch, self.student.spec, self.student_needs)
            return self._forward(network, batch, needs)

    def _forward(self, network: Callable[..., Signals], batch: Batch, needs: Needs) -> Signals:
        signals = network(batch.input_ids, needs, batch.target_positions, batch.attention_mask, self.everything)
        if self.shared_vocab is not None and signals.logits is not None:
            signals.logits = signals.logits[..., : self.shared_vocab]
        return signals

    def _in_parts(self, batch: Batch) -> bool:
        """Whether the batch's logits are more than are held at once, and the loss can do without."""
        logits = len(batch.target_ids) * (self.student.spec.vocab_size or 0)
        # Gradients that several processes average may not be taken on the way forward.
        able = self.strategy.by_rows and not self.everything and self.replica is None
        counted = self.device.type == "meta" or type(batch.input_ids) is not Tensor  # without storage, phase by phase
        return able and not counted and logits > LOGITS_AT_ONCE

    def _before_head(self, batch: Batch, spec: ModelSpec, needs: Needs) -> Needs:
        """Read the state under the head in the place of logits, where these come a part at a time in the loss."""
        reads = needs.logits != "none" and self._in_parts(batch)
        return replace(needs, logits="none", hidden=(spec.num_layers,)) if reads else needs

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None) -> dict[str, Tensor]:
        """Phase 3: the strategy's terms, float32 scalars in nats or squared units."""
        if self._in_parts(batch):
            return self._loss_in_parts(batch, student, teacher)
        return self.strategy.loss(batch, student, self._reduced(teacher, student.logits), self.projections)

    def _reduced(self, teacher: Signals | None, student_MV: Tensor | None) -> Signals | None:
        """Return the teacher with the logits that what is kept of it stands for."""
        if self.kept is None or teacher is None or student_MV is None:
            return teacher
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            entries = teacher.kept
            if entries is None and teacher.logits is not None:  # it reads along
                entries = self.kept.entries(teacher.logits / self.kept.kept_at(self.temperature))
            dense = None if entries is None else self.kept.logits(entries, student_MV.detach(), self.temperature)
            return teacher if dense is None else replace(teacher, logits=dense)

    def _loss_in_parts(self, batch: Batch, student: Signals, teacher: Signals | None) -> dict[str, Tensor]:
        """Compute the head and the loss a few rows at a time, each part's gradients at once."""

        def at_targets(signals: Signals | None) -> Tensor | None:
            states = [] if signals is None else list(signals.hidden.values())
            return states[0].flatten(0, 1).index_select(0, batch.target_positions) if states else None

        ours_MD, theirs_MD = at_targets(student), at_targets(teacher)
        entries = None if teacher is None else teacher.kept
        assert ours_MD is not None
        rows = max(1, LOGITS_AT_ONCE // (self.student.spec.vocab_size or 1))

        def of_rows(first: int, rows_MD: Tensor) -> dict[str, Tensor]:
            here = slice(first, first + rows)
            with self.autocast:
                logits = self.student.head(rows_MD)[..., : self.shared_vocab]
                with torch.no_grad():
                    known = None if theirs_MD is None or self.teacher is None else self.teacher.head(theirs_MD[here])
            known = None if known is None else Signals(logits=known[..., : self.shared_vocab])
            known = known if entries is None else Signals(kept=(entries[0][here], entries[1][here]))
            known = self._reduced(known, logits)
            some = replace(batch, target_positions=batch.target_positions[here], target_ids=batch.target_ids[here])
            return self.strategy.loss(some, Signals(logits=logits), known, self.projections)

        parts = [getattr(self.student.model, name) for name in FAMILIES[self.student.spec.family].head]
        learned = {id(value): value for part in parts for value in part.parameters() if value.requires_grad}
        return InParts.terms(of_rows, ours_MD, list(learned.values()), rows)

    def backward(self, terms: dict[str, Tensor], share: float = 1.0) -> None:
        """Phase 4: gradients of the sum of the terms, times the micro-batch's share of the batch."""
        (torch.stack(list(terms.values())).sum() * share).backward()

    def update(self, learning_rate: float) -> Tensor:
        """Phase 5: clip, step, and clear the gradients; returns the gradient norm before clipping."""
        if self.optimizer is None:
            wrong = "networks on the meta device cannot be trained"
            raise BudgetlabError(f"arm {self.arm}", wrong, "build them on one")
        limit = self.recipe.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(list(self.trained.values()), limit)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def forward_backward(self, batch: Batch, share: float = 1.0, on_phase: OnPhase | None = None) -> dict[str, Tensor]:
        """Run phases 1 to 4 and return the detached terms; `on_phase(name)` is called as each one ends."""
        done = on_phase or (lambda phase: None)
        terms = self._terms(batch, done)
        self.backward(terms, share)
        done("backward")
        return {name: term.detach() for name, term in terms.items()}

    def _terms(self, batch: Batch, done: OnPhase, *, alone: bool = False) -> dict[str, Tensor]:
        batch = batch.unmasked() if self.strategy.reads_unmasked else batch
        teacher = self.teacher_forward(batch, alone=alone)
        done("teacher_forward")
        student = self.student_forward(batch, alone=alone)
        done("student_forward")
        terms = self.loss(batch, student, teacher)
        done("loss")
        return terms

    def run(
        self,
        batch: MaskedBatch | Staged,
        learning_rate: float,
        *,
        micro_batch_sequences: int | None = None,
        dropout_seed: int | None = None,
        on_phase: OnPhase | None = None,
    ) -> dict[str, Tensor]:
        """Take one step; a staged batch is in its micro-batches already."""
        if dropout_seed is not None and self.recipe.dropout > 0:
            torch.manual_seed(dropout_seed)
        sums: dict[str, Tensor] = {}
        parts = batch.take() if isinstance(batch, Staged) else batch.split(micro_batch_sequences)
        for number, (samples, share) in enumerate(parts, start=1):
            part = samples if isinstance(samples, Batch) else to_device(samples, self.device)
            # Gradients are averaged over the processes once, with those of the last micro-batch.
            with nullcontext() if self.replica is None or number == len(parts) else self.replica.no_sync():
                terms = self.forward_backward(part, share, on_phase)
            for name, term in terms.items():
                sums[name] = sums[name] + term * share if name in sums else term * share
        sums["gradient_norm"] = self.update(learning_rate)
        if on_phase is not None:
            on_phase("update")
        return sums

    def signs(self, batch: MaskedBatch, sequences: int = 4) -> dict[str, float]:
        """Look how the terms and the optimiser fare, on a few sequences; nothing is changed."""
        logits = (self.student.spec.vocab_size or 1) * self.recipe.masked_per_sequence
        few = batch.split(max(1, min(sequences, LOGITS_AT_ONCE // logits)))[0][0]
        terms = self._terms(to_device(few, self.device), lambda phase: None, alone=True)
        parameters = list(self.trained.values())
        norms = {}
        for name, term in terms.items():
            found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            norms[name] = float(torch.stack([g.norm() for g in found if g is not None]).norm())
        total = sum(norms.values()) or 1.0
        signs = {f"gradient_share.{name}": norm / total for name, norm in norms.items()}
        below, numbers = 0, 0
        for parameter in self.trained.values():
            state = {} if self.optimizer is None else self.optimizer.state.get(parameter, {})
            if state:
                mean_square = state["exp_avg_sq"] / (1 - self.recipe.betas[1] ** float(state["step"]))
                below += int((mean_square.sqrt() < self.recipe.eps).sum())
                numbers += parameter.numel()
        return signs | ({"below_eps_fraction": below / numbers} if numbers else {})

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that must be saved to go on bit for bit: parameters and optimizer moments by name."""
        state = {f"student.{name}": value.data for name, value in self.student.named_parameters()}
        state |= {f"projections.{name}": value.data for name, value in self.projections.named_parameters()}
        if self.optimizer is not None:
            for name, parameter in self.trained.items():
                for moment, value in self.optimizer.state.get(parameter, {}).items():
                    state[f"optimizer.{moment}.{name}"] = value
        return state

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        load_parameters(self.student, state)
        for name, parameter in self.projections.named_parameters():
            parameter.data.copy_(state[f"projections.{name}"])
        if self.optimizer is None:
            return
        for name, parameter in self.trained.items():
            keys = {moment: f"optimizer.{moment}.{name}" for moment in _MOMENTS}
            saved = {moment: state[key].to(self.device, copy=True) for moment, key in keys.items() if key in state}
            if saved:
                self.optimizer.state[parameter] = saved

    def teacher_hash(self) -> str | None:
        """Hash the teacher's weights; it must never change."""
        return None if self.teacher is None else tensors_hash(dict(self.teacher.named_parameters()))


class _Student(nn.Module):
    """The student with the projections that its loss learns, as one module whose gradients are averaged."""

    def __init__(self, student: Network, projections: nn.ModuleDict) -> None:
        super().__init__()
        self.student, self.projections = student, projections

    def forward(self, *inputs: object) -> Signals:
        return self.student(*inputs)


def build_step(
    arm: str,
    strategy: Strategy,
    student: ModelSpec,
    teacher: Network | ModelSpec | None,
    recipe: Recipe,
    *,
    seed: int,
    device: str | torch.device,
    trained: Collection[str] | None = None,
    ranks: Ranks | None = None,
    bfloat16_gradients: bool = False,
    compiled: bool = False,
    kept: Kept | None = None,
    teacher_unmasked: bool = False,
) -> TrainingStep:
    """Build an arm's networks and its step.

    `seed` decides the student and the projections; what comes after the device is as in `TrainingStep`.
    """
    if strategy.uses_teacher and teacher is None:
        raise CallerError(f"arm {arm}", "its strategy needs a teacher", "name one")
    attention = recipe.attention if recipe.attention != "auto" else "sdpa"
    shape: dict[str, Any] = {"seq_len": recipe.seq_len, "attention": attention, "device": device}
    if isinstance(teacher, ModelSpec):
        teacher = build_network(teacher, seed=seed + 1, **shape)
    if teacher is not None and not same_vocabulary(student, teacher.spec):
        wrong = f"the teacher's vocabulary has {teacher.spec.vocab_size} entries, the student's {student.vocab_size}"
        raise CallerError(f"arm {arm}", wrong, "use one tokenizer for both")
    network = build_network(student, seed=seed, dropout=recipe.dropout, **shape)
    if recipe.initialisation != "random":
        if teacher is None:
            raise CallerError(f"arm {arm}", "its student starts from a teacher's layers", "name the teacher")
        start_from_teacher(network, teacher, recipe.initialisation.teacher_layers)
    if not strategy.uses_teacher:
        teacher = None
    how = {"ranks": ranks, "compiled": compiled, "kept": kept, "teacher_unmasked": teacher_unmasked}
    how |= {"trained": trained, "bfloat16_gradients": bfloat16_gradients}
    return TrainingStep(arm, strategy, network, teacher, recipe, projection_seed=seed, **how)
