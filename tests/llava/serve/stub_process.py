"""A worker with a stub model in a process of its own, to be killed: see `test_serve_faults`."""

import logging

from conftest import ByteTokenizer, StubModel, stub_processor

from llava.errors import flag, make_parser
from llava.serve import model_worker
from llava.serve.engine import Engine, load_engine
from llava.serve.model_worker import ModelWorker

parser = make_parser(
    __doc__,
    *model_worker.WORKER_FLAGS,
    flag("--answer", default=""),
    flag("--delay", type=float, default=0.0),
    flag("--model-path", help="a real model in place of the stub"),
)
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
