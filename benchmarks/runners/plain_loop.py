"""The loop that anybody would write, on a work: `python plain_loop.py WORK.json FOLDER defaults|best SAVE_AFTER`.

Padded batches, transformers' own model and loss, fused AdamW, torch.save. Best: on a GPU the model is compiled.
"""

from typing import Any

import torch
from reading import load_model, read_arguments, read_examples, write_event
from torch.nn.utils.rnn import pad_sequence

work, folder, league, save_after = read_arguments()
device = torch.device(work["device"])
model = load_model(work).to(device)
classifies = work["task"] == "text_classification"
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=work["lr"], weight_decay=0.0, fused=True)
forward = torch.compile(model) if league == "best" and device.type == "cuda" else model


def loss_of(rows: list[dict[str, Any]], count: Any) -> torch.Tensor:
    """Return the loss of a micro-batch, divided by the number of items of its whole batch."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }
    if classifies:
        labels = torch.tensor([row["labels"] for row in rows])
    else:
        labels = pad_sequence([torch.tensor(row["labels"]) for row in rows], batch_first=True, padding_value=-100)
    batch = {name: tensor.to(device) for name, tensor in (batch | {"labels": labels}).items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=work["precision"] == "bf16"):
        if classifies:
            return forward(**batch).loss * (len(rows) / count)
        return forward(**batch, num_items_in_batch=count).loss


def cut(rows: list[dict[str, Any]], size: int) -> list[list[dict[str, Any]]]:
    """Return the rows in pieces of that size."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def num_items(rows: list[dict[str, Any]]) -> torch.Tensor:
    """Count what the loss is a mean over."""
    count = len(rows) if classifies else sum(label != -100 for row in rows for label in row["labels"][1:])
    return torch.tensor(count, device=device)


model.train()
for number, rows in enumerate(cut(read_examples(work), work["global_batch_size"]), 1):
    total = torch.zeros((), device=device)
    for micro_batch in cut(rows, work["micro_batch_size"]):
        loss = loss_of(micro_batch, num_items(rows))
        loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    write_event(folder, "train", step=number, loss=total.item())
    if number == save_after:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "checkpoint.pt")
model.eval()
rows = read_examples(work, "eval")
with torch.no_grad():
    total = sum(loss_of(part, num_items(rows)) for part in cut(rows, work["micro_batch_size"]))
write_event(folder, "eval", step=work["num_steps"], loss=float(total))
model.save_pretrained(folder / "model")
