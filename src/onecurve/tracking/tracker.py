"""Events of a run, written by rank 0: a bar or plain lines, one JSON object a line, and the recipe's trackers."""

import json
import sys
from math import isfinite
from pathlib import Path
from time import time
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from onecurve.config import Recipe
from onecurve.data.plan import BatchPlan
from onecurve.machine.device import describe_launch, launch_facts
from onecurve.run.directory import RunDirectory
from onecurve.tracking.profile import Profile
from onecurve.tracking.resumption import continuing, flattened

_PLAIN_LINES = 40
"""About as many progress lines as a run writes where there is no terminal."""
_SHOW_TEXT = ("tensorboard",)
"""The trackers that show text and Markdown as they are logged."""


class Tracker:
    """Prints and records events; does nothing on ranks other than 0."""

    def __init__(
        self,
        directory: RunDirectory,
        accelerator: Accelerator,
        recipe: Recipe,
        plan: BatchPlan,
        run_id: str,
        resumed: dict[str, Any] | None,
    ) -> None:
        self.directory, self.accelerator = directory, accelerator
        self.main = accelerator.is_main_process
        self.resume, self.mixed_precision = recipe.train.resume, recipe.train.mixed_precision
        self.max_steps, self.log_every = (max_steps := plan.max_steps), recipe.tracking.log_every
        self.print_every = max(self.log_every, max_steps // _PLAIN_LINES)
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(total=max_steps, unit="step", disable=not (self.main and self.terminal), dynamic_ncols=True)
        self.tokens, self.seconds = 0, 0.0
        """Since the last line of metrics.jsonl."""
        self.steps, self.total_seconds = 0, 0.0
        """Of this launch."""
        self.first = resumed["step"] if resumed else 0
        """The step that this launch goes on after."""
        left = max_steps - self.first
        self.profile = Profile(recipe.tracking.profile, left, directory.path / "profile", accelerator, self.say)
        if recipe.tracking.trackers:
            project = recipe.tracking.project
            name = Path(recipe.output_dir).resolve().name
            known = continuing(recipe.tracking.trackers, project, run_id, name) if self.main else {}
            # A run that goes on has told its recipe before, and MLflow takes no other value for a parameter
            told = None if resumed else dict(flattened(recipe.model_dump(mode="json")))
            accelerator.init_trackers(project, config=told, init_kwargs=known)
        if resumed:
            self.bar.update(resumed["step"])
            self.say(f"resumed from {resumed['checkpoint']}, after step {resumed['step']}", *resumed["remarks"])
            for key, now in recipe.train.cut.items():
                if (earlier := resumed["from_cut"][key]) != now:
                    self.say(f"train.{key} was {earlier} and is {now}: dropout masks, if any, change with it")
            self.event("resume", **resumed)
        if recipe.train.micro_batch_size == "auto":
            found = recipe.train.examples_a_pass
            self.say(f"train.micro_batch_size auto is {found}; dropout masks, if any, depend on this size")
            self.event("micro_batch_size", self.first, found=found)

    def say(self, *texts: str) -> None:
        """Print what is not empty to the terminal, above the bar where there is one."""
        for text in filter(None, texts) if self.main else ():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def open(self, precision: str, *texts: str) -> None:
        """Print and record what this launch computes on and in, before the first step; print further texts."""
        facts = launch_facts(self.accelerator, precision)
        self.say(describe_launch(facts, self.mixed_precision), *texts)
        self.event("launch", self.first, **facts)

    def event(self, event: str, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl and send its numbers to the trackers."""
        if not self.main:
            return
        line = {"event": event, "step": step, "time": round(time(), 3), **finite(values)}
        self.directory.append(json.dumps(line, allow_nan=False))
        numbers = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
        self.accelerator.log(numbers, step=step)

    def train(self, step: int, outcome: dict[str, Any]) -> int:
        """Record what one optimizer step returned; return the step."""
        outcome = {name: value for name, value in outcome.items() if name not in ("fault", "ranks", "requests")}
        seconds = outcome.pop("seconds")
        self.tokens, self.seconds = self.tokens + outcome["num_tokens"], self.seconds + seconds
        self.total_seconds += seconds
        self.steps += 1
        rate = self.tokens / self.seconds
        self.bar.update()
        told = "  ".join(f"{name} {outcome[name]:.4f}" for name in ("loss", "reward") if name in outcome)
        self.bar.set_postfix_str(f"{told}, lr {outcome['lr']:.2e}, {rate:,.0f} tokens/s")
        if not self.terminal and (self.steps == 1 or step % self.print_every == 0 or step == self.max_steps):
            left = self.total_seconds / self.steps * (self.max_steps - step)
            self.say(
                f"step {step}/{self.max_steps}  {told}  lr {outcome['lr']:.2e}  "
                f"{rate:,.0f} tokens/s  {_clock(left)} left"
            )
        if step % self.log_every == 0 or step == self.max_steps:
            self.event("train", step, **outcome, tokens_per_second=rate)
            self.tokens, self.seconds = 0, 0.0
        self.profile.after(step)
        return step

    def skipped(self, step: int, why: str, **values: Any) -> None:
        """Record a step whose update was not made."""
        self.bar.update()
        self.say(f"step {step} is skipped: {why}")
        self.event("skipped_step", step, reason=why, **values)

    def went_back(self, step: int, why: str, **values: Any) -> None:
        """Record that the run stands after an earlier step again: what was told of the steps since is taken back."""
        if self.main:
            self.directory.cut(step)
        self.bar.n = step
        self.bar.refresh()
        self.tokens, self.seconds = 0, 0.0
        self.say(f"{why}; back to step {step}")
        self.event("rewind", step, reason=why, **values)

    def scores(self, event: str, step: int, scores: dict[str, Any]) -> dict[str, Any]:
        """Record and return the scores of a split: `event` is eval, test, or average (of the dev split, at the end)."""
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in scores.items() if isinstance(v, (int, float)))
        left_out = scores.get("left_out", {})
        reasons = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in left_out.items() if why != "of_rows")
        note = f"; not scored, of {left_out['of_rows']} rows: {reasons}" if left_out else ""
        steps = ", ".join(map(str, scores.get("averaged_steps", [])))
        self.say(f"{event} {f'of steps {steps}' if steps else f'at step {step}'}: {numbers}{note}")
        self.event(event, step, **scores)
        for tracker in self.accelerator.trackers if self.main and scores.get("samples") else ():
            if tracker.name in _SHOW_TEXT:
                tracker.log({f"{event}/samples": _as_table(scores["samples"])}, step=step)
        return scores

    def close(self, step: int) -> None:
        """Say where the model is, whose weights are those of `step`, and finish the bar and the trackers."""
        self.bar.close()
        self.say(f"model of step {step}: {self.directory.model}")
        self.event("end", step, model=str(self.directory.model))
        self._finish()

    def stop(self, step: int, reason: str) -> None:
        """Say that the run ends here for now, its checkpoint complete, and why."""
        self.bar.close()
        never = " (without train.resume never)" if self.resume == "never" else ""
        self.say(f"stopped after step {step} by {reason}; launch again{never} to resume")
        self.event("stop", step, reason=reason)
        self._finish()

    def _finish(self) -> None:
        self.profile.close()
        for tracker in self.accelerator.trackers:  # not `end_training`: it also ends the process group (see `leave`)
            tracker.finish()


def _as_table(samples: list[dict[str, Any]]) -> str:
    """Return generated texts as a Markdown table."""
    names = ("prompt", "text", "reference")
    lines = (" | ".join(sample[name].replace("|", "\\|").replace("\n", "<br>") for name in names) for sample in samples)
    return "\n".join([" | ".join(names), "--- | --- | ---", *lines])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def finite(value: Any) -> Any:
    """JSON has no infinity: what is not finite becomes null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value
