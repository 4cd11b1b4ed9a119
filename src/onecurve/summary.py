"""The summary printed before step 1."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onecurve.config import Recipe, beyond_the_end
from onecurve.data.plan import BatchPlan, num_passes
from onecurve.data.sources import left_out_files
from onecurve.data.splits import Data, Split
from onecurve.machine.cores import describe_threads
from onecurve.machine.memory import spelt
from onecurve.model.float8 import describe_float8
from onecurve.model.head import shown
from onecurve.model.quantization import num_weights
from onecurve.model.reading import UNLIMITED
from onecurve.regularization.building import describe
from onecurve.strategies.average import describe_average
from onecurve.tasks.base import Annotates, Follows, Processing, Recognises, Survey, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

_LABELS_NAMED = 12
"""How many labels the summary gives a count each."""
_NAMED = 20
"""How many unread columns the summary names."""
_WEIGHTS = (".safetensors", ".bin")


def describe_run(
    recipe: Recipe,
    task: Task,
    data: Data,
    plan: BatchPlan,
    model: "nn.Module",
    reading: Processing,
    ranks: "Accelerator",
) -> str:
    """Return the summary: what is trained, batch sizes, data, and one example as the model sees it."""
    sizes = [(num_weights(p), p.requires_grad) for p in model.parameters()]
    trained, total = sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes)
    batch, train, tokens = recipe.train.global_batch_size, data.train, recipe.train.micro_batch_tokens
    world_size, num_micro_batches = ranks.num_processes, len(plan.step(1).micro_batches)
    if plan.each > 1:  # a step's prompts are completed first
        num_micro_batches = ceil(len(plan.step(1).sample_ids) * plan.each / recipe.train.examples_a_pass)
    passes, idle = num_passes(num_micro_batches, world_size), max(0, world_size - num_micro_batches)
    lines = [
        f"model     {recipe.model.path}: {trained:,} of {total:,} parameters trained ({trained / total:.2%}), "
        f"{recipe.peft.method if recipe.peft else 'full fine-tuning'}",
        *([f"adapter   trained further from {there}"] if (there := getattr(model, "continued_from", "")) else []),
        *([f"trained   {_describe_trained(model)}"] if trained < total else []),
        *([f"new       {new}{_unread(recipe)}"] if (new := getattr(model, "new_weights", "")) else []),
        f"batch     {batch} examples a step = {f'up to {tokens} tokens' if tokens else recipe.train.examples_a_pass} a "
        f"pass x {world_size} rank(s) x {passes} pass(es){' in the first step' if tokens else ''}; "
        f"{plan.steps_per_epoch} steps an epoch"
        + (f", the last with {plan.short_last_batch * plan.each}" if plan.short_last_batch else "")
        + (f"; {idle} rank(s) without a micro-batch" if idle else ""),
        *filter(None, [describe_average(recipe.regularization, 4 * trained), describe_float8(model)]),
        *describe(recipe, model, data.survey, data.label_counts),
        f"threads   {describe_threads()}",
        *_describe_prompts(model),
        *(f"vectors   {note}" for note in (task.notes if isinstance(task, Follows) else ())),
        *(["compile   layers: the first passes may take minutes"] if recipe.train.compile else []),
        *_describe_labels(data.survey, getattr(model, "head_remark", "")),
        *_describe_counts(data.survey, data.splits),
        *_describe_partial(data),
        *_describe_splits(data, plan),
        *_describe_windows(plan),
        f"columns   {_describe_columns(data.parts, task)}",
        *_describe_left_out(data.parts),
        *_describe_tally(data.splits),
        *_describe_annotations(task, data.splits),
        _describe_items(train, plan, task.terms) + _limit(data) + (", read from the cache" if data.cached else ""),
        *(f"note      {remark}" for remark in beyond_the_end(recipe, plan.max_steps)),
        "example   " + task.describe(train[0], data.survey, reading.tokenizer).rstrip().replace("\n", "\n          "),
    ]
    return "\n".join(lines)


def _describe_items(train: Split, plan: BatchPlan, terms: Mapping[str, float]) -> str:
    """Count items; those that every term of a loss is of are counted once."""
    of_terms, tokens = np.atleast_1d(train.num_items.sum(0)).tolist(), int(train.num_tokens.sum())
    if plan.each > 1:
        return f"prompts   of {tokens:,} tokens; {plan.each} completions of each"
    items, which = of_terms[0], ""
    if len({*of_terms}) > 1:
        items, named = sum(of_terms), zip(terms, of_terms, strict=True)
        which = f" ({', '.join(f'{name} {count:,}' for name, count in named)})"
    elif len(of_terms) > 1:
        which = f", each of {' and '.join(terms)},"
    return f"items     {items:,} terms of the loss{which} from {tokens:,} tokens ({items / tokens:.1%})"


def _limit(data: Data) -> str:
    return "" if data.max_length >= UNLIMITED else f"; at most {data.max_length} tokens an example"


_OF_ADAPTERS = re.compile(r"\.(base_layer|modules_to_save|default|lora_\w+|ia3_\w+|\w+_embedding_\w+)(?=\.|$)")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def _describe_trained(model: "nn.Module") -> str:
    """Name the modules of which something is trained, each once over all layers."""
    names = [f".{name.rpartition('.')[0]}" for name, p in model.named_parameters() if p.requires_grad]
    owners = dict.fromkeys(_OF_ADAPTERS.sub("", f"{name}.").rstrip(".") for name in names)
    layers = Counter(_NUMBER.sub("", name).rpartition(".")[-1] or "the input" for name in owners)
    told = [f"{name} ({count})" if count > 1 else name for name, count in layers.most_common()]
    return shown(told)


def _unread(recipe: Recipe) -> str:
    """Say that a folder has weights that are not read."""
    folder = Path(recipe.model.path).expanduser()
    if recipe.model.init != "random" or not any(next(folder.glob(f"*{kind}"), None) for kind in _WEIGHTS):
        return ""
    return "; the folder's own weights are not read: set model.init to pretrained for them"


_ORDERS = {
    "natural": "sorted",
    "dataset": "in the dataset's order",
    "model": "in the model's order",
    "recipe": "in the order of task.labels",
}


def _describe_prompts(model: "nn.Module") -> Iterator[str]:
    """Say how prompts are batched, where that is not as the recipe says."""
    if getattr(model, "prompts_apart", False):
        yield "prompts   of one length in a pass: this model's text for a prompt depends on the padding beside it"


def _describe_labels(survey: Survey, head: str) -> Iterator[str]:
    for name, own in survey.heads.items():
        yield from (line.replace("labels    ", f"labels    {name}: ", 1) for line in _describe_labels(own, ""))
    if survey.labels:
        unseen = f"; no training row has {shown(survey.unseen)}" if survey.unseen else ""
        yield f"labels    {len(survey.labels)}, {_ORDERS[survey.order]}: {shown(survey.labels)}{unseen}"
    if head:
        yield f"head      {head}"


def _describe_counts(survey: Survey, splits: list[Split]) -> Iterator[str]:
    """Say how many rows (of tags: words) of each split have each label; of many labels, the most and least frequent."""
    told = [(split.name, _counted(survey.labels, split.report.label_counts)) for split in splits]
    for head, own in survey.heads.items():
        known = {label: f"{head}/{label}" for label in own.labels}
        each = [(split.name, {n: split.report.label_counts.get(k, 0) for n, k in known.items()}) for split in splits]
        if known:
            yield f"counts    {head}: " + "; ".join(f"{name}: {_counted(own.labels, counts)}" for name, counts in each)
    if survey.labels and any(split.report.label_counts for split in splits):
        yield "counts    " + "; ".join(f"{name}: {counts}" for name, counts in told)
    if single := sum(count == 1 for count in survey.label_counts):
        yield f"          with a single one in training: {single} of {len(survey.labels)} labels"


def _counted(labels: list[str], counts: dict[str, int]) -> str:
    each = [f"{name} {counts.get(name, 0):,}" for name in labels]
    if len(labels) <= _LABELS_NAMED:
        return ", ".join(each)
    order = sorted(range(len(labels)), key=lambda index: -counts.get(labels[index], 0))
    most, least = order[: _LABELS_NAMED // 4], order[-_LABELS_NAMED // 4 :]
    return ", ".join([*(each[index] for index in most), "...", *(each[index] for index in least)])


def _describe_partial(data: Data) -> Iterator[str]:
    """Say which labels only some of the training sources have."""
    sources, known = data.train.sets, [name for name in data.survey.labels if name not in data.survey.unseen]
    counts = {source.title: source.report.label_counts for source in sources if source.report.label_counts}
    absent = {name: [label for label in known if label not in seen] for name, seen in counts.items()}
    if told := [f"{name} has no {shown(labels)}" for name, labels in absent.items() if labels]:
        yield f"          {'; '.join(told)}"


def _describe_splits(data: Data, plan: BatchPlan) -> Iterator[str]:
    """Say what each split has; of named sources and sets, each, and how much of the training a source is."""
    draws = plan.position(plan.max_steps).samples
    mixture = plan.mixture
    shares = mixture.shares if mixture else {one.title: len(one) / len(data.train) for one in data.train.sets}
    for split in data.splits:
        yield _describe_split(split)
        for part in split.sets:
            share = ""
            if split is data.train:
                weight = f"weight {mixture.weights[part.title]}, " if mixture else ""
                share = f"; {weight}{shares[part.title]:.1%} of the draws, {draws * shares[part.title] / len(part):.3g}"
                share += " passes"
            yield f"  {_describe_split(part, part.title)}{share}"


def _describe_windows(plan: BatchPlan) -> Iterator[str]:
    """Say how far examples are shuffled, where it is not over all of them."""
    of_sources = plan.mixture.windows.values() if plan.mixture else ()
    for windows in (*filter(None, [plan.windows]), *of_sources):
        number, shards = -(-len(windows.sizes) // windows.shards), len(windows.sizes)
        whose = f"{windows.name}: " if windows.name else ""
        yield (
            f"order     {whose}{number} windows of {min(windows.shards, shards)} of {shards} shards, about "
            f"{windows.examples:,} examples each; shuffled within a window"
        )


def _describe_split(split: Split, name: str = "") -> str:
    report = split.report
    bad = f"bad row{'s' * (report.skipped != 1)} skipped"
    told = {bad: report.skipped, "truncated": report.truncated, "too long, dropped": report.dropped}
    told["with nothing to learn, dropped"] = report.empty
    notes = "".join(f", {count} {what}" for what, count in told.items() if count)
    total = f" of {report.rows + report.not_chosen:,}" if report.not_chosen else ""
    why = f" ({report.reason})" if report.not_chosen else ""
    texts = f"; {len(split.prompts):,} texts to generate" if split.prompts else ""
    return f"{name or split.name:<9} {len(split):,} examples from {report.rows:,}{total} rows{why}{notes}{texts}"


def _describe_left_out(splits: list[Split]) -> Iterator[str]:
    """Name files of the data's folders that no split reads."""
    for folder, paths in left_out_files([split.source for split in splits if split.source]).items():
        yield f"files     {len(paths)} of {folder} not read: {shown([path.as_posix() for path in paths])}"


def _describe_tally(splits: list[Split]) -> Iterator[str]:
    total: Counter[str] = sum((Counter(split.report.tally) for split in splits), Counter())
    if total:
        yield "found     " + ", ".join(f"{count:,} {phrase}" for phrase, count in total.most_common())


def _describe_annotations(task: Task, splits: list[Split]) -> Iterator[str]:
    """Say which model was asked of the examples, and what keeping its answers takes."""
    said = [split.annotations for split in splits if split.annotations is not None]
    if said and isinstance(task, Annotates):
        whose = task.reference_model.path if task.reference_model else "the model before step 1"
        size, count = sum(one.num_bytes for one in said), sum(map(len, said))
        yield f"asked     {whose}, of {count:,} examples: {spelt(size)} in annotations/, and as much in the cache"


def _describe_columns(splits: list[Split], task: Task) -> str:
    read: dict[str, str] = {}
    for split in splits:
        read = split.columns.read | read
    others = {
        _mapped(one.columns.read): one.title for one in splits if one.title and one.columns.read.items() - read.items()
    }
    differing = "".join(f"; in {name} {mapped}" for mapped, name in others.items())
    unread = list(dict.fromkeys(name for split in splits for name in split.columns.unread))
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    not_read = f"; not read: {', '.join(unread[:_NAMED])}{more}" if unread else ""
    return _shape(read, task) + _mapped(read) + differing + not_read


def _mapped(read: Mapping[str, str]) -> str:
    return ", ".join(name if name == column else f"{name} as {column}" for column, name in read.items())


def _shape(read: dict[str, str], task: Task) -> str:
    """Name the form that rows have, where it is another than the task's own."""
    for name, columns in task.shapes.items() if isinstance(task, Recognises) else ():
        known = {column.removesuffix("?"): file for column, file in columns.items()}
        own = all(column == file for column, file in read.items())
        if not own and all(known.get(column) == file for column, file in read.items()):
            return f"{name}: "
    return ""
