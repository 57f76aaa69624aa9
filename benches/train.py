"""Trains a model made from a config, on random data, with the Hugging Face Trainer.

Talks to the bench over its standard streams, so that one process, warm, serves all turns. Each line
that comes in has one answer:

    try TOOL      "ok", or why the tool cannot be used
    train TOOL    the seconds that it took to train once; TOOL may be "nothing"

Nothing is downloaded.

    train.py tiny|small|large
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
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

LENGTH = 32


def model_of(size):
    """The model, the batch and the steps of a turn."""
    if size == "tiny":
        config = BertConfig(
            vocab_size=1000,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
        )
        return BertForSequenceClassification(config), 8, 10
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


def train(model, arguments, data, tool):
    """Seconds of one training; neither the tool's start nor its end is among them."""
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    tool.start()
    start = time.perf_counter()
    trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    tool.stop()
    return seconds


def main():
    # Standard output carries the answers and nothing else, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.set_verbosity_error()
    set_seed(1)
    model, batch, steps = model_of(sys.argv[1])
    data = Random(batch * steps, model.config.vocab_size)
    with tempfile.TemporaryDirectory() as directory:
        # Whatever a tool writes is gone with it.
        os.chdir(directory)
        tempfile.tempdir = directory
        arguments = TrainingArguments(
            output_dir=directory,
            max_steps=steps,
            per_device_train_batch_size=batch,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        print("ready", "cuda" if torch.cuda.is_available() else "cpu", file=answers)
        for line in sys.stdin:
            order, name = line.split()
            try:
                tool = TOOLS[name]()
                if order == "train":
                    print(train(model, arguments, data, tool), file=answers)
                else:
                    tool.start()
                    tool.stop()
                    print("ok", file=answers)
            except (Exception, SystemExit) as error:
                print(repr(error).replace("\n", " ")[:200], file=answers)


if __name__ == "__main__":
    main()
