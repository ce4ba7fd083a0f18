"""A worker with a stub model in a process of its own, to be killed: see `test_serve_faults`."""

import argparse
import logging

from conftest import ByteTokenizer, StubModel, stub_processor

from llava.serve import model_worker
from llava.serve.engine import Engine, load_engine
from llava.serve.model_worker import ModelWorker

parser = argparse.ArgumentParser()
model_worker.add_worker_flags(parser)
parser.add_argument("--answer", default="")
parser.add_argument("--delay", type=float, default=0.0)
parser.add_argument("--model-path", help="a real model in place of the stub")
args = parser.parse_args()
logging.basicConfig(level=logging.INFO)
if args.model_path:
    engine = load_engine(args.model_path, device="cpu", model_name="llava-v1-stub")
else:
    model = StubModel(args.answer, delay_s=args.delay)
    engine = Engine(ByteTokenizer(), model, stub_processor, "llava-v1-stub")
worker = ModelWorker(
    args.controller_address, args.worker_address, "stub", args.no_register,
    "", None, None, False, False, "cpu", engine=engine,
    limit_model_concurrency=args.limit_model_concurrency,
)  # fmt: skip
model_worker.serve(worker, args)
