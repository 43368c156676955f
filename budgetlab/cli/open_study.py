"""The verbs in order for one study and one results folder, each reusing what is already there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from budgetlab.cli.screen import Screen, show_run
from budgetlab.engines.leases import Leases
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.frames import scores_frame
from budgetlab.store import Store, read_profile, write_whole
from budgetlab.studies import dump_study, find_data, load_study, profile_key
from budgetlab.values import CostProfile, CurveFit, EvaluateSpec, Plan, RunRecord, Score, Verdict
from budgetlab.values.scoring import CAUSAL_PROBES

if TYPE_CHECKING:
    import pandas as pd

    from budgetlab.corpus import Corpus
    from budgetlab.decisions import Decisions, Evidence
    from budgetlab.evaluation import Task
    from budgetlab.ranks import Ranks
    from budgetlab.reporting import Report


def scored_with(plan: Plan, spec: EvaluateSpec) -> list[object]:
    """Return what trials depend on beside the plan: yardsticks, and the files of given weights, whatever their path."""
    used = {name for arm in plan.arms.values() for name in (arm.student, arm.teacher) if name is not None}
    given = [plan.models[name] for name in sorted(used) if plan.models[name].weights is not None]
    if not given:
        return [spec.readout_tokens, spec.adapted_tokens]
    from budgetlab.models import given_key

    return [spec.readout_tokens, spec.adapted_tokens, *map(given_key, given)]


def beside(store: Store, plan: Plan) -> Iterator[Evidence]:
    """Yield other studies of the results folder that read the same text; what is half-written is no evidence."""
    from budgetlab.decisions import Evidence, may_test

    for folder in sorted(store.folder.parent.iterdir()):
        if folder.resolve() == store.folder.resolve() or not (folder / "plan.json").is_file():
            continue
        other = Store(folder.parent, folder.name)
        try:
            found = other.read_plan()
            if found is None or not may_test(plan, found):
                continue
            scores = scores_frame(other.scores())
        except (CallerError, ValueError):
            continue
        if len(scores):
            yield Evidence(found.study, found, scores)


class OpenStudy:
    """One study in one results folder."""

    def __init__(self, study: str, results: Path, data_root: Path | None, *, quiet: bool = False) -> None:
        self.study, self.screen = load_study(study, data_root=data_root), Screen(quiet=quiet)
        self.store = Store(results, self.study.name)
        self.store.say = self.screen.say
        self.recorded_profile = Path(study).with_name(f"{Path(study).stem}.profile.json")
        self._corpus: Corpus | None = None
        self.left_out: dict[str, int] = {}
        """What could not be scored, a line each, and the exit status that it asks for."""

    def use_teacher(self, name: str, weights: Path) -> None:
        """Take a model and the tokenizer from a folder of weights, in the place of what the study says."""
        folder = str(weights.resolve())  # paths are looked for under the data roots otherwise
        model = self.study.models[name].model_copy(update={"weights": folder})
        corpus = self.study.corpus.model_copy(update={"tokenizer": folder})
        models = {**self.study.models, name: model}
        self.study = self.study.model_copy(update={"models": models, "corpus": corpus})

    def study_through(self, depth: Literal["quick", "timed"] = "timed") -> Report:
        """Go through all verbs, resuming; what is done is not done again. `depth` is of the profile."""
        self._check_room()
        with self.alone():
            self.corpus()
            profile = self.profile(to_run=True, depth=depth)
            made = self.plan(profile)
        plan = self.tune(made)
        from budgetlab.planner import predicted_times

        if not self.store.records(last_point=True) and (told := predicted_times(plan, self.study.evaluate)):
            self.screen.say(f"plan      {told}, predicted")
        records = self.run(plan)
        return self.report(plan, profile, records, self.table(self.evaluate(plan, records)))

    def _check_room(self) -> None:
        """Refuse to start where the first file could not be written."""
        folder = self.store.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise CallerError(f"results in {folder}", str(error), "choose another folder with --results") from None
        if free < 200e6:
            raise CallerError(f"results in {folder}", f"only {free / 1e6:.0f} MB are free", "free some room")

    def corpus(self) -> Corpus:
        """Build the corpus, or open the one that was built."""
        if self._corpus is not None:
            return self._corpus
        from budgetlab.corpus import build_corpus

        with self.screen.stage("corpus") as stage:
            corpus = build_corpus(
                self.study.corpus, roots=self.study.data_roots, cache=self.store.cache, progress=stage
            )  # fmt: skip
            tokens = f"{len(corpus.train):,} train, {len(corpus.heldout):,} held-out tokens"
            unknown = " and ".join(f"{share:.2%}" for share in corpus.unknown_fraction.values())
            stage.note = f"{tokens}, {unknown} of them [UNK], vocabulary {corpus.vocab_size:,}"
        self._corpus = corpus
        tokenizer = self.study.corpus.tokenizer
        for line in corpus.warnings(None if isinstance(tokenizer, str) else tokenizer.train):
            self.screen.warn(line)
        self._check_vocabulary(corpus)
        return corpus

    def _check_vocabulary(self, corpus: Corpus) -> None:
        from budgetlab.corpus import vocabulary_of

        if corpus.special.mask == corpus.special.sep and not self.study.recipe.causal:
            asked = f"corpus.tokenizer = {self.study.corpus.tokenizer!r}"
            raise CallerError(asked, "it has no mask token", "use the tokenizer of a masked language model")
        for name, spec in self.study.models.items():
            if spec.vocab_size is not None and spec.vocab_size < corpus.vocab_size:
                asked = f"models.{name}.vocab_size = {spec.vocab_size}"
                wrong = f"the tokenizer has {corpus.vocab_size} entries"
                raise CallerError(asked, wrong, "leave it out, or make it at least as large")
            theirs = vocabulary_of(Path(spec.weights)) if spec.weights is not None else None
            for piece, number in corpus.tokenizer().get_vocab().items() if theirs is not None else ():
                if theirs is not None and theirs.get(piece) != number:
                    asked, own = f"models.{name}.weights = {spec.weights!r}", theirs.get(piece, "absent")
                    wrong = f"word piece {piece!r} is number {number} of the corpus, and {own} there"
                    raise CallerError(asked, wrong, f'set corpus.tokenizer = "{spec.weights}"')

    def profile(
        self,
        *,
        fresh: bool = False,
        count_only: bool = False,
        to_run: bool = False,
        depth: Literal["quick", "timed", "full"] = "timed",
        peak: float | None = None,
        keep: bool = True,
    ) -> CostProfile:
        """Return the prices of this study: those in its folder, those recorded beside it, or new ones.

        A run needs them timed here, since timing is also what settles precision and attention.
        """
        execution = self.study.execution
        known = None if fresh else self.known_profile(recorded=not to_run)
        packs = execution.workers == "auto" and execution.devices == 1
        if known is not None and (not to_run or (known.timed and (known.packing is not None or not packs))):
            return known
        from budgetlab.hardware import emulated_bfloat16, pick_device
        from budgetlab.profiler import profile

        if not count_only:
            dtypes = {self.study.recipe.dtype, *(arm.recipe.dtype for arm in self.study.arms.values())}
            if (emulated := emulated_bfloat16(dtypes, pick_device(execution))) is not None:
                self.screen.warn(emulated)
        with self.screen.stage("profile") as stage:
            found = profile(
                self.study, count_only=count_only, depth=depth, peak_flops_per_second=peak, progress=stage
            ).model_copy(update={"study_key": profile_key(self.study)})
            first = found.arms[0]
            stage.note = f"{len(found.arms)} arms, {first.dtype}, {first.attention} attention"
        if keep:
            self.keep_profile(found)
        return found

    def known_profile(self, *, recorded: bool = False) -> CostProfile | None:
        """Return the profile in the results folder, or one `recorded` beside the study, if it is of this study as now.

        One that cannot be read is passed over.
        """
        found, key = self.store.spared(self.store.read_profile), profile_key(self.study)
        if (found is None or found.study_key != key) and recorded and self.recorded_profile.is_file():
            found = read_profile(self.recorded_profile)
        return found if found is not None and found.study_key == key else None

    def prices(self) -> CostProfile:
        """Return the profile that there is, else FLOPs alone: for what needs no seconds of this machine."""
        return self.known_profile(recorded=True) or self.profile(count_only=True, keep=False)

    def keep_profile(self, found: CostProfile) -> None:
        """Write a profile, unless the results folder has one of the same study that says more."""

        def richness(profile: CostProfile) -> tuple[bool, bool]:
            return profile.timing is not None, any(cost.time_model for cost in profile.arms)

        self.store.write_study(dump_study(self.study))
        kept = self.known_profile()
        if kept is not None and richness(kept) > richness(found):
            self.screen.say("profile   the fuller profile in the results folder is kept; this one is only shown")
        else:
            self.store.write_profile(found)

    def plan(self, profile: CostProfile, *, keep: bool = True) -> Plan:
        """Match the budgets, and `keep` the plan; the corpus counts towards passes once it has been built."""
        from budgetlab.planner import choose_rates, other_machine, plan, rereads

        before = self.store.spared(self.store.read_plan)
        made = plan(self.study, profile, corpus_tokens=self._pass_tokens(before), before=before)
        further = [line for line in (other_machine(profile), rereads(made)) if line is not None]
        made = made.model_copy(update={"warnings": (*made.warnings, *further)})
        if self._corpus is not None:
            made = made.model_copy(update={"corpus_hash": self._corpus.content_hash})
        losses = self.store.read_rates(self._trials_key(made)) if made.trials else None
        if losses is not None:
            made = choose_rates(made, losses)
        if not keep:
            return made
        old, new = before.corpus_hash if before is not None else None, made.corpus_hash
        if None not in (old, new) and old != new:
            done = sum(record.status == "complete" for record in self.store.records())
            changed = f"the corpus is {new}, that of the last plan was {old}"
            self.screen.warn(f"{changed}: {done} finished runs read the old text and count no more")
        self.store.write_study(dump_study(self.study))
        self.store.write_plan(made)
        return made

    def _pass_tokens(self, before: Plan | None) -> int | None:
        """Tokens in one pass, from the corpus or from a plan that was made of the same text."""
        seq_len = self.study.recipe.seq_len
        if self._corpus is not None:
            body = seq_len if self.study.recipe.causal else seq_len - 2
            return (len(self._corpus.train) - self.study.recipe.causal) // body * seq_len
        if before is None or self.study.corpus.unique_tokens is not None:
            return None
        same = before.corpus == self.study.corpus and before.recipe.seq_len == seq_len
        return before.schedules[0].unique_tokens if same else None

    def _trials_key(self, plan: Plan) -> str:
        from budgetlab.planner import trials_key

        return trials_key(plan, *scored_with(plan, self.study.evaluate))

    def tune(self, plan: Plan) -> Plan:
        """Run the trials of [tuning] that were not run yet, and give every arm its best rate."""
        if not plan.trials or plan.tried:
            return plan
        from budgetlab.planner import choose_rates, trial_losses, trial_plan

        trials, corpus = trial_plan(plan), self.corpus()
        from budgetlab.evaluation import evaluate
        from budgetlab.runner import run

        # Trials have an index of their own; their runs lie beside the others, which share their teacher.
        store = Store(self.store.folder.parent, self.study.name, part="tuning")
        with self.screen.stage("tuning") as stage:
            records = run(trials, corpus, store, progress=show_run(stage), say=self._say_of_run)
            spec = self.study.evaluate.model_copy(update={"tasks": (), "lm_eval": (), "largest_budget_only": ()})
            losses = trial_losses(plan, evaluate(trials, records, spec, corpus, store, []))
            chosen = choose_rates(plan, losses)
            stage.note = ", ".join(f"{name} {arm.recipe.learning_rate:g}" for name, arm in chosen.arms.items())
        self.store.write_rates(self._trials_key(plan), losses)
        self.store.write_plan(chosen)
        return chosen

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other workers of the study from measuring and planning meanwhile; wait for one that does."""
        with Leases(self.store.folder / "leases", {}) as leases:
            if not leases.take("plan"):
                with self.screen.stage("plan") as stage:
                    while not leases.take("plan"):
                        stage("waiting for a worker that plans")
                        time.sleep(1.0)
            yield

    def run(self, plan: Plan, ranks: Ranks | None = None, left: list[str] | None = None) -> list[RunRecord]:
        """Train what is not trained yet, with the other processes where there are any; `left` as in `runner.run`."""
        for line in plan.warnings:
            self.screen.warn(line)
        corpus = self.corpus()
        from budgetlab.runner import run

        with self.screen.stage("run") as stage:
            show, say = show_run(stage), self._say_of_run
            records = run(plan, corpus, self.store, ranks=ranks, progress=show, say=say, left=left)
            failed = [record for record in records if record.status == "failed"]
            stage.note = f"{len(records) - len(failed)} units complete" + (f", {len(failed)} failed" if failed else "")
        for record in failed:
            self.screen.say(f"failed    {record.run_id}: {record.message}; budgetlab retry trains it anew")
        return records

    def _say_of_run(self, line: str) -> None:
        self.screen.say(f"run       {line}")

    def evaluate(self, plan: Plan, records: Sequence[RunRecord], left: list[str] | None = None) -> list[Score]:
        """Score what is not scored yet; `left_out` says what could not be, `left` is as in `evaluation.evaluate`."""
        corpus, tasks = self.corpus(), self.tasks()
        spec = self.study.evaluate
        here = [str(find_data(self.study, task)) if task.endswith(".yaml") else task for task in spec.lm_eval]
        spec = spec.model_copy(update={"lm_eval": tuple(here)})
        from budgetlab.evaluation import evaluate
        from budgetlab.modelcard import model_card

        with self.screen.stage("evaluate") as stage:
            scores = evaluate(
                plan,
                records,
                spec,
                corpus,
                self.store,
                tasks,
                progress=lambda where: stage(where.what, where.done / where.total, where.seconds_left),
                say=lambda line: self.left_out.update({line: BudgetlabError.exit_status}),
                left=left,
            )
            stage.note = f"{len(scores)} scores"
        for record in records:
            if (folder := self.store.model_folder(record.run_id)).is_dir():
                write_whole(folder / "README.md", model_card(plan, record, scores))
        return scores

    def tasks(self) -> list[Task]:
        """Load the tasks of the study; one that cannot be read is left out, and the others go on."""
        from budgetlab.evaluation import GLUE, build_probes, load_task

        spec, probes, folder, found = self.study.evaluate, {}, None, []
        if set(spec.tasks) - set(CAUSAL_PROBES) and spec.source == "probes":
            folder = self.store.cache / f"probes-{self.corpus().content_hash}"
            probes = build_probes(self.corpus(), folder)
        for name in spec.tasks:
            if name in CAUSAL_PROBES:
                continue  # nothing is fine-tuned on
            try:
                given = spec.folder_of(name)
                if spec.source == "glue":
                    folder = find_data(self.study, given) if given is not None and name in GLUE else None
                found.append(load_task(name, spec, folder=folder, probes=probes, roots=self.study.data_roots))
            except CallerError as error:
                self.left_out[str(error)] = error.exit_status
                self.screen.say(f"left out  {error}")
        return found

    def table(self, scores: Sequence[Score]) -> pd.DataFrame:
        """Return scores as a table, with this study's rule of which tasks are informative."""
        return scores_frame(scores, informative_points=self.study.evaluate.informative_points)

    def fit(self, scores: pd.DataFrame, plan: Plan) -> tuple[tuple[CurveFit, ...], tuple[Verdict, ...]]:
        """Fit the curves, compare the arms, and write both."""
        from budgetlab.fitting import compare_arms, fit_arms

        fits, verdicts = fit_arms(scores, self.study.fit), compare_arms(scores, self.study.fit, tuned=plan.tuned)
        self.store.write_fits(fits, verdicts)
        return fits, verdicts

    def decide(
        self, plan: Plan, scores: pd.DataFrame, fits: Sequence[CurveFit], verdicts: Sequence[Verdict]
    ) -> Decisions:
        """Test the assumptions of the study; others of its results folder serve where they differ in one thing."""
        from budgetlab.decisions import Decisions, Evidence, decide

        if not verdicts:
            return Decisions()
        with self.screen.stage("decide") as stage:
            others = list(beside(self.store, plan))
            own = Evidence(plan.study, plan, scores)
            found = decide(own, self.study.fit, verdicts, fits=fits, beside=others)
            named = f", beside {', '.join(evidence.study for evidence in others)}" if others else ""
            stage.note = f"{len(found.assumptions)} assumptions{named}"
        return found

    def report(
        self, plan: Plan, profile: CostProfile, records: Sequence[RunRecord], scores: pd.DataFrame
    ) -> Report:  # fmt: skip
        """Fit, compare and decide, as far as there are scores; draw and write everything."""
        from budgetlab.planner import sensitivity
        from budgetlab.reporting import report

        fits, verdicts = self.fit(scores, plan) if len(scores) else ((), ())
        decisions = self.decide(plan, scores, fits, verdicts)
        with self.screen.stage("report") as stage:
            made = report(
                study=self.study.name, plan=plan, profile=profile, records=records, scores=scores, fits=fits,
                verdicts=verdicts, folder=self.store.folder, decisions=decisions,
                sensitivity=sensitivity(self.study, profile) if any(s.feasible for s in plan.schedules) else None,
            )  # fmt: skip
            stage.note = str(made.page)
        return made
