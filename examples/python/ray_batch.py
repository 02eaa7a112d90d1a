"""Answers prompts by engines on a Ray cluster, with Ray Data: pip install "lynx_rt[ray]" "ray[data]"

    python examples/python/ray_batch.py [MODEL] [--engines 2]

Each row has a `prompt`, and may have `sampling_params`, a dict. Rows come back with `generated_text`, `num_generated_tokens` and
`error`, which is empty where all went well. A program on a cluster reads and writes files of many formats: ray.data.read_json() and others.
"""

from __future__ import annotations

import argparse
from typing import Any

import lynx_rt


class Predictor:
    """One engine. Ray Data makes one per actor, and calls it with batches of rows."""

    def __init__(self, model: str, engine: dict[str, Any]) -> None:
        self._engine = lynx_rt.Engine(model, **engine)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        prompts = [str(prompt) for prompt in batch["prompt"]]
        params = [dict(given or {}) for given in batch.get("sampling_params", [{}] * len(prompts))]
        texts, counts, errors = [], [], []
        for prompt, given in zip(prompts, params, strict=True):
            try:
                self._engine.add_request(prompt, given, request_id=str(len(texts)))
                errors.append("")
            except lynx_rt.LynxError as error:
                errors.append(str(error))
            texts.append("")
            counts.append(0)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    [answer], row = output.outputs, int(output.request_id)
                    texts[row], counts[row], errors[row] = answer.text, len(answer.token_ids), answer.error or ""
        return {**batch, "generated_text": texts, "num_generated_tokens": counts, "error": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=lynx_rt.shipped_model())
    parser.add_argument("--engines", type=int, default=2)
    args = parser.parse_args()
    import ray

    rows = ray.data.from_items([{"prompt": f"Q: {n} times 22 = ?\nA:"} for n in range(11, 43)])
    answers = rows.map_batches(
        Predictor,
        fn_constructor_args=(args.model, {"num_threads": 1, "expert_selection": "lynx"}),
        batch_size=16,  # the rows that an engine has at once: selection gains by full batches
        compute=ray.data.ActorPoolStrategy(size=args.engines),
        num_cpus=1,
    )
    for row in answers.take_all():
        print(row["prompt"].strip(), row["generated_text"].strip(), row["error"])


if __name__ == "__main__":
    main()
