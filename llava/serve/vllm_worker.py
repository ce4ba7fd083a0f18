"""A worker of LLaVA's protocol with vLLM's engine, for exported checkpoints.

In and out: as for `llava.serve.model_worker`. vLLM runs in this process and batches requests
itself; it is imported only when the worker starts.

    lrm export hf --model runs/mini --out runs/mini-hf
    python -m llava.serve.vllm_worker --model-path runs/mini-hf --tensor-parallel-size 2
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from llava.errors import ConfigError, flag, make_parser, run_command
from llava.images import to_rgb
from llava.serve.model_worker import WORKER_FLAGS, parse_request, serve, start
from llava.serve.remote_worker import RemoteWorker, engine_ids


def import_vllm() -> Any:
    """Returns vLLM.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(
            "vLLM is not installed: `pip install vllm` in an environment with a GPU, or use "
            "`python -m llava.serve.model_worker`"
        ) from error
    return vllm


class VllmWorker(RemoteWorker):
    """A worker whose model is in vLLM's asynchronous engine.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        worker_id: Short random name for logs.
        no_register: Do not register with the controller.
        model_path: The exported checkpoint.
        model_name: Name to serve the model under; by default derived from the path.
        limit_model_concurrency: Maximum number of requests in the engine at the same time.
        engine_options: Further arguments of `vllm.AsyncEngineArgs`.

    Raises:
        CheckpointError: If there is no tokenizer at `model_path`.
        ConfigError: If vLLM is not installed, or the checkpoint was not exported.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_path: str,
        model_name: str | None,
        limit_model_concurrency: int,
        **engine_options: Any,
    ) -> None:
        super().__init__(
            controller_addr, worker_addr, worker_id, no_register, model_name or model_path,
            model_path, limit_model_concurrency,
        )  # fmt: skip
        self._vllm = import_vllm()
        engine_args = self._vllm.AsyncEngineArgs(model=model_path, **engine_options)
        self.engine = self._vllm.AsyncLLMEngine.from_engine_args(engine_args)

    async def texts(self, params: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Yields the answer so far whenever it has grown."""
        request = parse_request(params)
        sampling = self._vllm.SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p or 1e-6,  # vLLM refuses 0
            max_tokens=request.max_new_tokens,
            stop=[request.stop] if request.stop else None,
            seed=request.seed,
        )
        prompt: dict[str, Any] = {"prompt_token_ids": engine_ids(request.prompt, self.tokenizer)}
        if request.images:
            prompt["multi_modal_data"] = {"image": [to_rgb(image) for image in request.images]}
        request_id = uuid.uuid4().hex
        try:
            async for output in self.engine.generate(prompt, sampling, request_id):
                yield output.outputs[0].text
        except BaseException:
            await self.engine.abort(request_id)
            raise


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = make_parser(
        __doc__,
        *WORKER_FLAGS,
        flag("--model-path", required=True, help="an exported checkpoint"),
        flag("--tensor-parallel-size", type=int, default=1, help="GPUs"),
        flag("--pipeline-parallel-size", type=int, default=1, help="machines"),
        flag("--max-model-len", type=int),
        flag("--gpu-memory-utilization", type=float, default=0.9),
        flag("--max-images", type=int, default=8, help="images in a request"),
        prog="python -m llava.serve.vllm_worker",
    )
    parser.set_defaults(limit_model_concurrency=256)  # vLLM itself limits what runs
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the worker until interrupted."""
    args, worker_id = start("vllm_worker", build_parser(), argv)
    worker = VllmWorker(
        args.controller_address,
        args.worker_address,
        worker_id,
        args.no_register,
        args.model_path,
        args.model_name,
        args.limit_model_concurrency,
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        max_model_len=args.max_model_len,
        gpu_memory_utilization=args.gpu_memory_utilization,
        limit_mm_per_prompt={"image": args.max_images},
    )
    serve(worker, args)


if __name__ == "__main__":
    run_command(main)
