"""The verbs in order for one study and one results folder, each reusing what is already there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from budgetlab.cli.screen import Screen, Stage
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.frames import scores_frame
from budgetlab.store import Store, read_value
from budgetlab.studies import Study, dump_study, find_data, load_study, profile_key
from budgetlab.units import format_quantity
from budgetlab.values import CostProfile, CurveFit, Plan, RunRecord, Score, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from budgetlab.corpus import Corpus
    from budgetlab.evaluation import Task
    from budgetlab.ranks import Ranks
    from budgetlab.reporting import Report
    from budgetlab.runner import Progress


def open_workbench(
    study: str, results: Path, data_root: Path | None, screen: Screen, *, seeds: tuple[int, ...] | None = None
) -> Workbench:
    """Load a study and open its results folder."""
    loaded = load_study(study, data_root=data_root)
    if seeds is not None:
        loaded = loaded.model_copy(update={"seeds": seeds})
    recorded = Path(study).with_name(f"{Path(study).stem}.profile.json")
    return Workbench(loaded, Store(results, loaded.name), screen, recorded if recorded.is_file() else None)


def _says_more(kept: CostProfile, found: CostProfile) -> bool:
    """Whether a profile of the same study has what a new one lacks."""

    def says(profile: CostProfile) -> tuple[bool, bool]:
        return profile.timing is not None, any(cost.time_model is not None for cost in profile.arms)

    return says(kept) > says(found)


class Workbench:
    """One study in one results folder."""

    def __init__(self, study: Study, store: Store, screen: Screen, recorded_profile: Path | None = None) -> None:
        self.study, self.store, self.screen = study, store, screen
        store.say = screen.say
        self.recorded_profile = recorded_profile
        self._corpus: Corpus | None = None
        self.left_out: dict[str, int] = {}
        """What could not be scored, a line each, and the exit status that it asks for."""

    def corpus(self) -> Corpus:
        """Build the corpus, or open the one that was built."""
        if self._corpus is None:
            from budgetlab.corpus import build_corpus

            with self.screen.stage("corpus") as stage:
                self._corpus = build_corpus(
                    self.study.corpus, roots=self.study.data_roots, cache=self.store.cache, progress=stage
                )
                tokens = f"{len(self._corpus.train):,} train, {len(self._corpus.heldout):,} held-out tokens"
                unknown = " and ".join(f"{share:.2%}" for share in self._corpus.unknown_fraction.values())
                stage.note = f"{tokens}, {unknown} of them [UNK], vocabulary {self._corpus.vocab_size:,}"
            tokenizer = self.study.corpus.tokenizer
            for line in self._corpus.warnings(None if isinstance(tokenizer, str) else tokenizer.train):
                self.screen.say(f"warning   {line}")
            self._check_vocabulary(self._corpus)
        return self._corpus

    def _check_vocabulary(self, corpus: Corpus) -> None:
        from budgetlab.corpus import vocabulary_of

        for name, spec in self.study.models.items():
            if spec.vocab_size is not None and spec.vocab_size < corpus.vocab_size:
                raise CallerError(
                    f"models.{name}.vocab_size = {spec.vocab_size}",
                    f"the tokenizer has {corpus.vocab_size} entries",
                    "leave it out, or make it at least as large",
                )
            theirs = vocabulary_of(Path(spec.weights)) if spec.weights is not None else None
            if theirs is None:
                continue
            for piece, number in corpus.tokenizer().get_vocab().items():
                if theirs.get(piece) != number:
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
        key = profile_key(self.study)
        known = None if fresh else self.store.read_profile()
        if known is None and not fresh and not to_run and self.recorded_profile is not None:
            known = read_value(CostProfile, self.recorded_profile)
        execution = self.study.execution
        packs = execution.workers == "auto" and execution.devices == 1
        known_enough = known is not None and (not to_run or (known.timed and (known.packing is not None or not packs)))
        if known is not None and known_enough and known.study_key == key:
            return known
        from budgetlab.hardware import emulated_bfloat16, pick_device
        from budgetlab.profiler import profile

        if not count_only:
            dtypes = {self.study.recipe.dtype, *(arm.recipe.dtype for arm in self.study.arms.values())}
            if (emulated := emulated_bfloat16(dtypes, pick_device(execution))) is not None:
                self.screen.say(f"warning   {emulated}")
        with self.screen.stage("profile") as stage:
            found = profile(
                self.study, count_only=count_only, depth=depth, peak_flops_per_second=peak, progress=stage
            ).model_copy(update={"study_key": key})
            first = found.arms[0]
            stage.note = f"{len(found.arms)} arms, {first.dtype}, {first.attention} attention"
        if keep:
            self.keep_profile(found)
        return found

    def prices(self) -> CostProfile:
        """Return the profile that there is, else FLOPs alone: for what needs no seconds of this machine."""
        recorded = self.recorded_profile
        beside = None if recorded is None else read_value(CostProfile, recorded)
        if beside is not None and beside.study_key != profile_key(self.study):
            beside = None
        return self.known_profile() or beside or self.profile(count_only=True, keep=False)

    def keep_profile(self, found: CostProfile) -> None:
        """Write a profile, unless the results folder has one of the same study that says more."""
        self.store.write_study(dump_study(self.study))
        kept = self.known_profile()
        if kept is not None and _says_more(kept, found):
            self.screen.say("profile   the fuller profile in the results folder is kept; this one is only shown")
        else:
            self.store.write_profile(found)

    def known_profile(self) -> CostProfile | None:
        """Return the profile in the results folder if it can be read and is of this study as it is now."""
        try:
            known = self.store.read_profile()
        except CallerError:
            return None
        return known if known is not None and known.study_key == profile_key(self.study) else None

    def ask(self, *, budgets: Sequence[str] = (), match: str | None = None, teacher_charge: str | None = None) -> None:
        """Put other budgets, another match or charge in the place of the study's own."""
        self.study = self.study.asked(budgets=budgets, match=match, teacher_charge=teacher_charge)

    def plan(self, *, profile: CostProfile | None = None, keep: bool = True) -> Plan:
        """Match the budgets, and `keep` the plan; the corpus counts towards passes once it has been built."""
        from budgetlab.planner import other_machine, plan, rereads

        prices = profile or self.profile()
        made = plan(self.study, prices, corpus_tokens=self._known_pass_tokens())
        further = [line for line in (other_machine(prices), rereads(made)) if line is not None]
        made = made.model_copy(update={"warnings": (*made.warnings, *further)})
        if self._corpus is not None:
            made = made.model_copy(update={"corpus_hash": self._corpus.content_hash})
        made = self._with_known_rates(made)
        if not keep:
            return made
        self._say_if_the_text_changed(made)
        self.store.write_study(dump_study(self.study))
        self.store.write_plan(made)
        return made

    def _say_if_the_text_changed(self, made: Plan) -> None:
        try:
            before = self.store.read_plan()
        except CallerError:
            return
        if before is None or None in (before.corpus_hash, made.corpus_hash) or before.corpus_hash == made.corpus_hash:
            return
        done = sum(record.status == "complete" for record in self.store.records())
        changed = f"the corpus is {made.corpus_hash}, that of the last plan was {before.corpus_hash}"
        self.screen.say(f"warning   {changed}: {done} finished runs read the old text and count no more")

    def tune(self, plan: Plan) -> Plan:
        """Run the trials of [tuning] that were not run yet, and give every arm its best rate."""
        if not plan.trials or plan.tried:
            return plan
        from budgetlab.cli.plans import scored_with
        from budgetlab.planner import choose_rates, trial_losses, trial_plan, trials_key

        trials, corpus = trial_plan(plan), self.corpus()
        from budgetlab.evaluation import evaluate
        from budgetlab.runner import run

        # Trials have an index of their own; their runs lie beside the others, which share their teacher.
        store = Store(self.store.folder.parent, self.study.name, part="tuning")
        with self.screen.stage("tuning") as stage:
            records = run(trials, corpus, store, progress=self._show_run(stage), say=self._say_of_run)
            spec = self.study.evaluate.model_copy(update={"tasks": (), "largest_budget_only": ()})
            scores = evaluate(trials, records, spec, corpus, store, [])
            losses = trial_losses(plan, scores)
            chosen = choose_rates(plan, losses)
            stage.note = ", ".join(f"{name} {arm.recipe.learning_rate:g}" for name, arm in chosen.arms.items())
        self.store.write_rates(trials_key(plan, *scored_with(plan, self.study.evaluate)), losses)
        self.store.write_plan(chosen)
        return chosen

    def _with_known_rates(self, plan: Plan) -> Plan:
        """Apply the rates of the same trials where they were run before."""
        from budgetlab.cli.plans import scored_with
        from budgetlab.planner import choose_rates, trials_key

        if not plan.trials:
            return plan
        losses = self.store.read_rates(trials_key(plan, *scored_with(plan, self.study.evaluate)))
        return plan if losses is None else choose_rates(plan, losses)

    def _known_pass_tokens(self) -> int | None:
        """Tokens in one pass, from the corpus or from a plan that was made of the same text."""
        if self._corpus is not None:
            return self._pass_tokens(self._corpus)
        try:
            before = self.store.read_plan()
        except CallerError:
            return None
        if before is None or self.study.corpus.unique_tokens is not None:
            return None
        same = before.corpus == self.study.corpus and before.recipe.seq_len == self.study.recipe.seq_len
        return before.schedules[0].unique_tokens if same else None

    def _pass_tokens(self, corpus: Corpus) -> int:
        seq_len = self.study.recipe.seq_len
        return len(corpus.train) // (seq_len - 2) * seq_len

    def run(self, plan: Plan, ranks: Ranks | None = None) -> list[RunRecord]:
        """Train what is not trained yet, with the other processes where there are any."""
        for line in plan.warnings:
            self.screen.say(f"warning   {line}")
        corpus = self.corpus()
        from budgetlab.runner import run

        with self.screen.stage("run") as stage:
            show = self._show_run(stage)
            records = run(plan, corpus, self.store, ranks=ranks, progress=show, say=self._say_of_run)
            failed = [record for record in records if record.status == "failed"]
            stage.note = f"{len(records) - len(failed)} units complete" + (f", {len(failed)} failed" if failed else "")
        for record in failed:
            self.screen.say(f"failed    {record.run_id}: {record.message}; delete its folder to try again")
        return records

    def _show_run(self, stage: Stage) -> Callable[[Progress], None]:
        def show(where: Progress) -> None:
            said = [f"{100 * where.spent_fraction:.0f} % of the FLOPs spent"]
            said += [f"{where.run_id} step {where.step:,}/{where.steps:,}"]
            said += [f"{name} {value:.3g}" for name, value in where.losses.items()]
            if where.tokens_per_second is not None:
                used = "n/a" if where.utilisation is None else f"{100 * where.utilisation:.0f} %"
                said += [f"{format_quantity(where.tokens_per_second)} tokens/s", f"utilisation {used}"]
            stage(", ".join(said), where.done_fraction, where.seconds_left)

        return show

    def _say_of_run(self, line: str) -> None:
        self.screen.say(f"run       {line}")

    def evaluate(self, plan: Plan, records: Sequence[RunRecord]) -> list[Score]:
        """Score what is not scored yet; `left_out` says what could not be."""
        corpus = self.corpus()
        from budgetlab.evaluation import evaluate
        from budgetlab.modelcard import model_card

        tasks = self.tasks()
        with self.screen.stage("evaluate") as stage:

            def show(where: Any) -> None:
                stage(where.what, where.done / where.total, where.seconds_left)

            scores = evaluate(
                plan,
                records,
                self.study.evaluate,
                corpus,
                self.store,
                tasks,
                progress=show,
                say=lambda line: self.left_out.update({line: BudgetlabError.exit_status}),
            )
            stage.note = f"{len(scores)} scores"
        for record in records:
            if self.store.model_folder(record.run_id).is_dir():
                self.store.write_card(record.run_id, model_card(plan, record, scores))
        return scores

    def table(self, scores: Sequence[Score]) -> pd.DataFrame:
        """Return scores as a table, with this study's rule of which tasks are informative."""
        return scores_frame(scores, informative_points=self.study.evaluate.informative_points)

    def tasks(self) -> list[Task]:
        """Load the tasks of the study; one that cannot be read is left out, and the others go on."""
        from budgetlab.evaluation import GLUE, build_probes, load_task

        spec, probes, folder, found = self.study.evaluate, {}, None, []
        if spec.tasks and spec.source == "probes":
            folder = self.store.cache / f"probes-{self.corpus().content_hash}"
            probes = build_probes(self.corpus(), folder)
        for name in spec.tasks:
            try:
                given = spec.folder_of(name)
                if spec.source == "glue":
                    folder = find_data(self.study, given) if given is not None and name in GLUE else None
                found.append(load_task(name, spec, folder=folder, probes=probes, roots=self.study.data_roots))
            except CallerError as error:
                self.left_out[str(error)] = error.exit_status
                self.screen.say(f"left out  {error}")
        return found

    def records(self) -> list[RunRecord]:
        """Return the records of this study's folder."""
        return self.store.records()

    def fit(self, scores: pd.DataFrame, plan: Plan) -> tuple[tuple[CurveFit, ...], tuple[Verdict, ...]]:
        """Fit the curves, compare the arms, and write both."""
        from budgetlab.fitting import compare_arms, fit_arms

        fits, verdicts = fit_arms(scores, self.study.fit), compare_arms(scores, self.study.fit, tuned=plan.tuned)
        self.store.write_fits(fits, verdicts)
        return fits, verdicts

    def report(
        self,
        plan: Plan,
        profile: CostProfile,
        records: Sequence[RunRecord],
        scores: pd.DataFrame,
        fits: Sequence[CurveFit],
        verdicts: Sequence[Verdict],
    ) -> Report:
        """Draw and write everything."""
        from budgetlab.cli.deciding import decided
        from budgetlab.planner import sensitivity
        from budgetlab.reporting import report

        decisions = decided(self, plan, scores, fits, verdicts)
        with self.screen.stage("report") as stage:
            made = report(
                study=self.study.name,
                plan=plan,
                profile=profile,
                records=records,
                scores=scores,
                fits=fits,
                verdicts=verdicts,
                folder=self.store.folder,
                decisions=decisions,
                sensitivity=sensitivity(self.study, profile) if any(s.feasible for s in plan.schedules) else None,
            )
            stage.note = str(made.page)
        return made

    def study_through(self) -> Report:
        """Go through all verbs, resuming; what is done is not done again."""
        self._room()
        self.corpus()
        profile = self.profile(to_run=True)
        plan = self.tune(self.plan(profile=profile))
        records = self.run(plan)
        scores = self.table(self.evaluate(plan, records))
        fits, verdicts = self.fit(scores, plan)
        return self.report(plan, profile, records, scores, fits, verdicts)

    def _room(self) -> None:
        """Refuse to start where the first file could not be written."""
        folder = self.store.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise CallerError(f"results in {folder}", str(error), "choose another folder with --results") from None
        if free < 200e6:
            raise CallerError(f"results in {folder}", f"only {free / 1e6:.0f} MB are free", "free some room")
