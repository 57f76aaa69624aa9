"""Trains a model made from a config, on random data, with the Hugging Face Trainer.

One training that does not end; the bench says over the standard streams what is to run beside the next
steps, and is told how long they took. Each line that comes in has one answer:

    try TOOL              "ok", or why the tool cannot be used
    train TOOL WARM_UP    the seconds of a turn's steps, after steps that took WARM_UP seconds at least;
                          TOOL may be "nothing"

Nothing is downloaded.

    train.py tiny|small|large SECONDS

SECONDS is what a turn with the tiny model takes, about; the others have steps of their own.
"""

import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

LENGTH = 32


def model_of(size):
    """The model, the batch and the steps of a turn; `None`: as many as there is time for."""
    if size == "tiny":
        config = BertConfig(
            vocab_size=1000,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
        )
        return BertForSequenceClassification(config), 8, None
    if size == "small":
        return DistilBertForSequenceClassification(DistilBertConfig()), 16, 100
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    return BertForSequenceClassification(config), 8, 50


class Random(Dataset):
    """Token ids that mean nothing."""

    def __init__(self, items, vocabulary):
        self.tokens = torch.randint(vocabulary, (items, LENGTH))
        self.labels = torch.randint(2, (items,))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {
            "input_ids": self.tokens[index],
            "attention_mask": torch.ones(LENGTH, dtype=torch.long),
            "labels": self.labels[index],
        }


class Codecarbon:
    def __init__(self):
        from codecarbon import OfflineEmissionsTracker

        # The default would look up where we are on the network.
        self.tracker = OfflineEmissionsTracker(
            country_iso_code="USA", measure_power_secs=1, save_to_file=False, log_level="critical"
        )

    def start(self):
        self.tracker.start()

    def stop(self):
        self.tracker.stop()


class Eco2ai:
    def __init__(self):
        import eco2ai

        self.tracker = eco2ai.Tracker(
            file_name=os.path.join(tempfile.gettempdir(), f"eco2ai-{os.getpid()}.csv"),
            measure_period=1,
            alpha_2_code="US",
            region="California",
            ignore_warnings=True,
        )

    def start(self):
        self.tracker.start()

    def stop(self):
        self.tracker.stop()


class Zeus:
    def __init__(self):
        if not torch.cuda.is_available():
            raise RuntimeError("it measures GPUs, and there is none")
        from zeus.monitor import ZeusMonitor

        self.monitor = ZeusMonitor()

    def start(self):
        self.monitor.begin_window("training")

    def stop(self):
        self.monitor.end_window("training")


class Nothing:
    def start(self):
        pass

    def stop(self):
        pass


TOOLS = {"codecarbon": Codecarbon, "eco2ai": Eco2ai, "zeus": Zeus, "nothing": Nothing}


class EachStep(TrainerCallback):
    """Goes on with a generator after each step, and tells it the time."""

    def __init__(self, generator):
        self.generator = generator
        next(generator)

    def on_step_end(self, _arguments, _state, control, **_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        try:
            self.generator.send(time.perf_counter())
        except StopIteration:
            control.should_training_stop = True


def serve(answers, steps, seconds):
    """Answers all orders. Each `yield` is a step, and the time of its end."""
    start = yield
    if steps is None:
        taken, end = 0, start
        while end < start + 1.0:
            end = yield
            taken += 1
        steps = max(1, round(seconds * taken / (end - start)))
    print("ready", "cuda" if torch.cuda.is_available() else "cpu", file=answers)
    for line in sys.stdin:
        order, name, *warm_up = line.split()
        try:
            tool = TOOLS[name]()
            tool.start()
            try:
                answer = "ok"
                if order == "train":
                    warm = time.perf_counter() + float(warm_up[0])
                    start = yield
                    while start < warm:
                        start = yield
                    for _ in range(steps):
                        end = yield
                    answer = end - start
            finally:
                tool.stop()
        except (Exception, SystemExit) as error:
            answer = repr(error).replace("\n", " ")[:200]
        print(answer, file=answers)


def main():
    # Standard output carries the answers and nothing else, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.set_verbosity_error()
    set_seed(1)
    model, batch, steps = model_of(sys.argv[1])
    data = Random(100 * batch, model.config.vocab_size)
    with tempfile.TemporaryDirectory() as directory:
        # Whatever a tool writes is gone with it.
        os.chdir(directory)
        tempfile.tempdir = directory
        arguments = TrainingArguments(
            output_dir=directory,
            max_steps=10**9,
            per_device_train_batch_size=batch,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        each_step = EachStep(serve(answers, steps, float(sys.argv[2])))
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[each_step]).train()


if __name__ == "__main__":
    main()
