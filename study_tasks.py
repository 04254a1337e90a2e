"""A study of several tasks: the same systems on each, and one page that ranks them over all.

Each task is a study by itself, in a folder of its own name (study.py): what is cached is not done again, and
a task whose data set is missing does not stop the others. The embeddings of all tasks are in one bank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import pandas as pd

from .cache.identity import safe_name
from .errors import InvalidRequest
from .files import locked, sha256, write_text
from .probe.report.tasks import frame, page_of, tasks_html, tasks_markdown
from .probe.results.files import ProbeResult
from .probe.results.tasks import Task as Scored
from .probe.results.tasks import board_of
from .steps import Outcome, Places, State, Step, digest
from .study import plan_absent, plan_study, run_study
from .study_file import Study, Task
from .study_page import FILES, code_of_page
from .texts import cells_of_csv, write_csv
from .version import __version__


@dataclass
class TasksResult(Outcome):
    """What a study of tasks has: all steps as they ended, and table.csv.

    missing : task -> why it has no results
    """

    table: pd.DataFrame
    missing: dict[str, str]
    files: list[Path]
    seconds: float


def plan_tasks(study: Study, where: Places, *, measure: bool = False) -> list[Step]:
    """The steps of all tasks, their titles begin with the task's name. Writes nothing."""
    steps: list[Step] = []
    for task in study.tasks:
        alone = study.of_task(task)
        of_task = plan_absent(alone, where)
        if task.train not in {step.title for step in of_task}:
            of_task = plan_study(alone, _places(where, task), measure=measure)
        titles = [one.title if one.title == task.name else f"{task.name}: {one.title}" for one in of_task]
        steps += [replace(step, title=title) for step, title in zip(of_task, titles, strict=True)]
    return steps


def run_tasks(study: Study, where: Places, *, say: Callable[[str], None] = print) -> TasksResult:
    """Run every task as `study.run_study` does, rank the systems over those that have results, and write
    OUT/report.html, report.md and table.csv.

    Raises OutputError where OUT cannot be written or another run has it.
    """
    started = perf_counter()
    with locked(where.out):
        steps: list[Step] = []
        scored: list[Scored] = []
        missing: dict[str, str] = {}
        for task in study.tasks:
            say(f"task {task.name}")
            places = _places(where, task)
            try:
                done = run_study(study.of_task(task), places, say=say)
            except InvalidRequest as error:
                missing[task.name] = str(error)
                steps.append(Step(kind="data", title=task.train, state="blocked", why=str(error)))
                continue
            steps += done.steps
            outcome = "no system has results"
            if done.page.result is not None:
                outcome = _scored(task, done.page.result)
            if isinstance(outcome, str):
                missing[task.name] = outcome
            else:
                scored.append(outcome)
        files = [where.out / name for name in FILES]
        steps.append(_page(study, where, scored, missing, files))
        steps[-1].run(say)
        table = cells_of_csv(pd.read_csv(files[-1]))
        return TasksResult(steps, table, missing, files, perf_counter() - started)


def _page(
    study: Study,
    where: Places,
    tasks: Sequence[Scored],
    missing: Mapping[str, str],
    files: Sequence[Path],
) -> Step:
    """Writing the page of all tasks: again when a result, the study file or the code of the page changes."""
    state = State(where.out / "state.json")
    folders = {task.name: _places(where, task).out for task in study.tasks}
    results = {
        name: sha256(file) for name, folder in folders.items() if (file := folder / "results.json").exists()
    }
    step = Step(kind="report", title=str(files[0]))
    step.request = digest(study.model_dump(), results, missing, code_of_page())
    if state.get("report", "digest") == step.request and all(file.exists() for file in files):
        step.state = "cached"
        return step
    about = {"title": study.title, "about": study.about, "missing": missing}

    def write() -> None:
        html, text, table = files
        board = board_of(tasks) if tasks else None
        pages = {task.name: page_of(folders[task.name]) for task in tasks}
        write_csv(table, frame(board))
        write_text(html, tasks_html(board, **about, pages=pages, made_by=f"patchbank {__version__}"))
        write_text(text, tasks_markdown(board, **about))
        state.remember("report", "digest", step.request)

    step.action = write
    return step


def _places(where: Places, task: Task) -> Places:
    return replace(where, out=where.out / safe_name(task.name))


def _scored(task: Task, result: ProbeResult) -> Scored | str:
    """The task with the evaluation set that it is scored on, or why it has no scores."""
    sets = result.results.sets
    dataset = task.on or next(iter(sets[1:]), sets[0])
    if dataset not in sets:
        return f"on = {dataset!r} is none of its evaluation sets ({', '.join(sets)})"
    scored = Scored(name=task.name, result=result, dataset=dataset, metric=task.metric)
    if scored.scores():
        return scored
    fix = ' Fix: metric = "pearson"' if result.results.train.targets else ""
    return f"no system has {task.metric} on {dataset}.{fix}"
